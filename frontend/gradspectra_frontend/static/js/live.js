// The one stream of events: tells who asks that a run has advanced or an alert has changed.

const LONGEST_WAIT = 10_000;
const BEAT_MS = 5_000;
/** Timers that stood still for so long: the machine slept, and its stream may be dead without knowing. */
const SLEPT_MS = 30_000;

/**
 * @typedef {{run: string, batch?: number, step?: number, derived_step?: number, state?: string}} RunEvent
 * @typedef {(event: RunEvent | null) => void} RunListener  null: something may have been missed, ask again
 */

/** Connection to /api/v1/live. States: connecting, live, offline, hidden. `paused` only stops the redrawing. */
export class Live {
  /** @param {{url?: string, open?: (url: string) => EventSource, later?: typeof setTimeout, now?: () => number, since?: number}} [parts] */
  constructor({ url = "/api/v1/live", open = (url) => new EventSource(url), later = (f, ms) => setTimeout(f, ms), now = () => performance.now(), since = 0 } = {}) {
    this.url = url;
    this.open = open;
    this.later = later;
    this.now = now;
    /** From when on events may have been missed: a page asks nothing before its clock begins. After a stream was lost: unknown. */
    this.heardUntil = since;
    this.state = "connecting";
    this.paused = false;
    /** @type {EventSource | null} */
    this.source = null;
    this.failures = 0;
    /** @type {Set<RunListener>} */
    this.runListeners = new Set();
    /** @type {Set<(event: any) => void>} */
    this.alertListeners = new Set();
    /** @type {Set<() => void>} */
    this.stateListeners = new Set();
  }

  connect() {
    this.source?.close();
    this.setState("connecting");
    const source = this.open(this.url);
    this.source = source;
    source.onopen = () => this.opened(source);
    source.onerror = () => this.failed(source);
    source.addEventListener("opened", (event) => this.catchUp(JSON.parse(event.data)));
    source.addEventListener("run", (event) => this.tell(JSON.parse(event.data)));
    source.addEventListener("resync", () => this.tell(null));
    source.addEventListener("alert", (event) => {
      const alert = JSON.parse(event.data);
      this.alertListeners.forEach((listener) => listener(alert));
    });
  }

  /** @param {EventSource} source */
  opened(source) {
    if (source !== this.source) return;
    this.failures = 0;
    this.setState("live");
  }

  /** Tell of what was announced before the stream stood: `runs` are seconds since then, all that there were in `seconds`.
   * @param {{seconds: number, runs: Record<string, number>}} lately */
  catchUp({ seconds, runs }) {
    const away = (this.now() - this.heardUntil) / 1000;
    this.heardUntil = -Infinity;
    if (away > seconds) this.tell(null);
    else Object.keys(runs).filter((run) => runs[run] <= away).forEach((run) => this.tell({ run }));
  }

  /** @param {EventSource} source */
  failed(source) {
    if (source !== this.source) return;
    this.setState("offline");
    source.close();
    this.source = null;
    const wait = Math.min(500 * 2 ** this.failures, LONGEST_WAIT);
    this.failures += 1;
    this.later(() => this.source === null && this.state === "offline" && this.connect(), wait);
  }

  /** A hidden tab holds no connection: a browser allows only six to one server. */
  hide() {
    this.source?.close();
    this.source = null;
    this.setState("hidden");
  }

  /** @param {boolean} paused */
  pause(paused) {
    this.paused = paused;
    this.stateListeners.forEach((listener) => listener());
    if (!paused) this.tell(null);
  }

  /** @param {RunEvent | null} event */
  tell(event) {
    if (!this.paused) this.runListeners.forEach((listener) => listener(event));
  }

  /** @param {string} state */
  setState(state) {
    this.state = state;
    this.stateListeners.forEach((listener) => listener());
  }

  /** Hear of one run, or of all where run is null. Returns how to stop. @param {string | null} run @param {RunListener} listener */
  onRun(run, listener) {
    /** @type {RunListener} */
    const chosen = (event) => {
      if (run === null || event === null || event.run === run) listener(event);
    };
    this.runListeners.add(chosen);
    return () => void this.runListeners.delete(chosen);
  }

  /** @param {(event: any) => void} listener */
  onAlert(listener) {
    this.alertListeners.add(listener);
    return () => void this.alertListeners.delete(listener);
  }

  /** @param {() => void} listener */
  onState(listener) {
    this.stateListeners.add(listener);
    return () => void this.stateListeners.delete(listener);
  }
}

export const live = new Live();

/** Connect, follow the tab's visibility, and keep the state where everybody can see it: <body data-connection>. */
export function startLive() {
  const show = () => {
    document.body.dataset.connection = live.state;
    document.body.dataset.paused = String(live.paused);
  };
  live.onState(show);
  const connect = () => location.pathname !== "/login" && live.connect();
  document.addEventListener("visibilitychange", () => (document.hidden ? live.hide() : connect()));
  addEventListener("online", () => live.state === "offline" && connect());
  let beat = Date.now();
  setInterval(() => {
    const slept = Date.now() - beat > SLEPT_MS;
    beat = Date.now();
    if (slept && live.state === "live") connect();
  }, BEAT_MS);
  if (!document.hidden) connect();
}
