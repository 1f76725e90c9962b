// One figure on the page: asks for it, draws it, keeps it up to date. No framework in here.

import { AGAIN_MS, Failure, getFirst } from "./api.js";
import { fitted, isEmpty, marginsOf, rangeFrom, whole, zoomed } from "./figure_view.js";
import { live } from "./live.js";
import { CONFIG, plotly } from "./plotly.js";
import { gathered, turn } from "./throttle.js";

const REDRAW_MS = 250;
const LONGEST_REDRAW_MS = 450;
const COARSE = matchMedia("(pointer: coarse)");

/**
 * @typedef {{path: string, params: Record<string, any>, range: [number, number] | null | undefined, run: string | string[] | null,
 *   change: (figure: any) => any, onRange?: (range: [number, number] | null) => void, onPoint?: (point: any, meta: any) => void,
 *   onFigure?: (figure: any) => void, onStatus: (status: {state: string, failure?: Failure}) => void}} Wish
 */

/** Draws into `place` (the plot) and says on `frame` what is drawn (data-last-step, data-drawn). */
export class Drawing {
  /** @param {HTMLElement} frame @param {HTMLElement} place @param {Wish} wish */
  constructor(frame, place, wish) {
    this.frame = frame;
    this.place = place;
    this.wish = wish;
    this.figure = null;
    this.cost = 0;
    this.visible = false;
    this.stale = true;
    this.pressed = false;
    this.bound = false;
    this.drawn = 0;
    this.dragMode = "";
    this.size = "";
    /** @type {import("./figure_view.js").Margins | null} */
    this.margins = null;
    /** @type {PointerEvent | null} */
    this.pointer = null;
    this.abort = new AbortController();
    this.updates = gathered(() => this.update(), { pause: () => Math.min(Math.max(REDRAW_MS, 2 * this.cost), LONGEST_REDRAW_MS) });
    this.offRuns = [wish.run ?? []].flat().map((run) => live.onRun(run, () => this.demand()));
    this.watcher = new IntersectionObserver((entries) => this.seen(entries[entries.length - 1].isIntersecting), { rootMargin: "60px" });
    this.watcher.observe(frame);
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(place);
    this.follow();
  }

  /** Follow the pointer: nothing is redrawn under a drag, and a hover label comes back after a redraw. */
  follow() {
    const signal = this.abort.signal;
    this.place.addEventListener("pointerdown", (event) => (this.pressed ||= event.button === 0), { signal }); // a menu keeps the end of others
    addEventListener("pointerup", () => this.released(), { signal });
    addEventListener("pointercancel", () => this.released(), { signal });
    this.place.addEventListener("pointermove", (event) => (this.pointer = event), { signal });
    this.place.addEventListener("pointerleave", () => (this.pointer = null), { signal });
  }

  released() {
    if (!this.pressed) return;
    this.pressed = false;
    if (this.stale) this.updates.demand();
  }

  /** @param {boolean} visible */
  seen(visible) {
    this.visible = visible;
    if (visible && this.stale) this.updates.demand();
  }

  /** Something may be new. */
  demand() {
    this.stale = true;
    if (this.visible) this.updates.demand();
  }

  /** Draw from now on what this wish says. @param {Wish} wish */
  wants(wish) {
    const old = this.wish;
    this.wish = wish;
    const same = old.path === wish.path && JSON.stringify(old.params) === JSON.stringify(wish.params);
    if (!same) {
      this.margins = null;
      this.demand();
    } else if (this.figure) void this.draw();
  }

  async update() {
    if (!this.visible || this.pressed) return;
    this.stale = false;
    const { path, params } = this.wish;
    try {
      const asked = getFirst(path, params, this.abort.signal);
      void plotly().catch(() => {}); // its script runs while the server works
      this.figure = whole(await asked);
      await this.draw();
    } catch (error) {
      if (this.abort.signal.aborted) return;
      const failure = error instanceof Failure ? error : new Failure({ title: "This figure cannot be drawn", detail: String(error) });
      this.wish.onStatus({ state: "failed", failure });
      if (failure.passing) setTimeout(() => this.demand(), AGAIN_MS);
    }
  }

  async draw() {
    const Plotly = await plotly();
    await turn();
    if (this.pressed) this.stale = true; // drawn when it is released
    if (this.abort.signal.aborted || !this.figure || this.pressed) return;
    const changed = this.wish.change(this.figure);
    const { data, layout } = fitted(zoomed(changed, this.wish.range), this.place.clientWidth, COARSE.matches, this.margins);
    if (this.dragMode) layout.dragmode = this.dragMode;
    this.place.style.height = layout.height ? `${layout.height}px` : "";
    this.size = this.sizeNow();
    const begun = performance.now();
    await Plotly.react(this.place, data, layout, CONFIG);
    this.cost = performance.now() - begun;
    if (this.abort.signal.aborted) return;
    this.margins = marginsOf(this.place);
    if (!this.bound) this.bind();
    this.frame.dataset.lastStep = String(layout.meta.last_step ?? 0);
    this.frame.dataset.drawn = String((this.drawn += 1));
    this.wish.onStatus({ state: !isEmpty(changed) ? "drawn" : isEmpty(this.figure) ? "empty" : "filtered" });
    this.wish.onFigure?.(changed);
    this.hoverAgain();
  }

  bind() {
    this.bound = true;
    const plot = /** @type {any} */ (this.place);
    plot.on("plotly_relayout", (/** @type {any} */ event) => {
      const range = rangeFrom(event);
      if (range === undefined || !this.wish.onRange) return;
      this.wish.onRange(range);
      const shown = plot.layout.xaxis.range;
      if (range && shown[1] - shown[0] < 1) void plotly().then((Plotly) => Plotly.relayout(this.place, { "xaxis.range": [...range] })); // between two steps is nothing
    });
    plot.on("plotly_doubleclick", () => void this.reset());
    plot.on("plotly_click", (/** @type {any} */ event) => this.wish.onPoint?.(event.points[0], plot.layout.meta));
  }

  hoverAgain() {
    if (!this.pointer) return;
    const { clientX, clientY } = this.pointer;
    const target = document.elementFromPoint(clientX, clientY);
    if (target && this.place.contains(target)) {
      target.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY, bubbles: true }));
    }
  }

  resized() {
    if (!this.figure || !this.bound || !this.place.clientWidth || this.size === this.sizeNow()) return;
    this.margins = null;
    void this.draw();
  }

  sizeNow() {
    return `${this.place.clientWidth} × ${this.place.clientHeight}`;
  }

  /** @param {"png" | "svg"} format @param {string} filename */
  async save(format, filename) {
    const Plotly = await plotly();
    const size = { width: Math.max(this.place.clientWidth, 900), height: Math.max(this.place.clientHeight, 400) };
    await Plotly.downloadImage(this.place, { format, filename, ...size, scale: format === "png" ? 2 : 1 });
  }

  /** @param {string} mode */
  async drag(mode) {
    this.dragMode = mode;
    await this.draw();
  }

  /** Show all again: both axes. */
  async reset() {
    const Plotly = await plotly();
    const rows = this.figure && this.wish.change(this.figure).layout.yaxis.range;
    const values = rows ? { "yaxis.range": [...rows] } : { "yaxis.autorange": true };
    const across = this.figure?.layout.xaxis.range;
    await Plotly.relayout(this.place, { ...values, ...(across ? { "xaxis.range": [...across] } : { "xaxis.autorange": true }) });
    this.wish.onRange?.(null);
  }

  stop() {
    this.abort.abort();
    this.updates.stop();
    this.offRuns.forEach((off) => off());
    this.watcher.disconnect();
    this.sizes.disconnect();
    if (this.bound) void plotly().then((Plotly) => Plotly.purge(this.place));
  }
}
