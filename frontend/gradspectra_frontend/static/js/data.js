// Data of the interface as state of components: loading, kept up to date, with failures said.

import { AGAIN_MS, Failure, get } from "./api.js";
import { useEffect, useRef, useState } from "./html.js";
import { live } from "./live.js";
import { onTheme, themeNow } from "./theme.js";
import { gathered } from "./throttle.js";

/**
 * The answer of a GET call. It is asked again when the path changes, when `again` is called, and whenever the run
 * (every run for "*") advances or has a changed alert.
 * @param {string | null} path null asks nothing
 * @param {Record<string, unknown>} [params]
 * @param {{run?: string, pause?: number, keep?: boolean, hold?: boolean}} [options] hold: show the old answer of the path until the
 *   new one comes. keep: that, and let none go that is on its way: parameters that change with each step would leave a slow
 *   server's answers unread
 * @returns {{data: any, failure: Failure | null, behind: boolean, again: () => void}} behind: the answer is not yet that of
 *   these parameters
 */
export function useGet(path, params = {}, { run, pause = 1000, keep = false, hold = keep } = {}) {
  const [answer, setAnswer] = useState(/** @type {{key: string, path: string | null, data: any, failure: Failure | null}} */ ({ key: "", path: null, data: null, failure: null }));
  const key = path === null ? "" : path + JSON.stringify(params);
  const wish = useRef({ key, params });
  wish.current = { key, params };
  const asked = useRef("");
  const asking = useRef(/** @type {{demand: () => void, stop: () => void} | null} */ (null));
  useEffect(() => {
    if (path === null) return undefined;
    const abort = new AbortController();
    const job = async () => {
      const { key, params } = wish.current;
      asked.current = key;
      try {
        setAnswer({ key, path, data: await get(path, params, abort.signal), failure: null });
      } catch (error) {
        if (abort.signal.aborted) return;
        const failure = error instanceof Failure ? error : new Failure({ detail: String(error) });
        setAnswer((old) => ({ key, path, data: old.key === key ? old.data : null, failure }));
        if (failure.passing) setTimeout(() => updates.demand(), AGAIN_MS);
      }
    };
    const updates = gathered(job, { pause: () => pause });
    asking.current = updates;
    updates.demand();
    const off = run === undefined ? [] : [
      live.onRun(run === "*" ? null : run, updates.demand),
      live.onAlert((alert) => (run === "*" || alert.run === run) && updates.demand()),
    ];
    return () => {
      abort.abort();
      updates.stop();
      off.forEach((stop) => stop());
    };
  }, [keep ? path : key, run]);
  useEffect(() => void (keep && asked.current !== key && asking.current?.demand()), [key]);
  const now = answer.key === key || (hold && answer.path === path) ? answer : { key: "", data: null, failure: null };
  return { data: now.data, failure: now.failure, behind: now.key !== key, again: () => asking.current?.demand() };
}

/** Seconds since 1970, renewed every `seconds`. @param {number} seconds */
export function useNow(seconds) {
  const [now, setNow] = useState(() => Date.now() / 1000);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000 * seconds);
    return () => clearInterval(timer);
  }, [seconds]);
  return now;
}

/** The connection's state and whether drawing is paused. */
export function useConnection() {
  const [state, setState] = useState({ state: live.state, paused: live.paused });
  useEffect(() => live.onState(() => setState({ state: live.state, paused: live.paused })), []);
  return state;
}

/** Light or dark. */
export function useTheme() {
  const [theme, setTheme] = useState(themeNow);
  useEffect(() => onTheme(() => setTheme(themeNow())), []);
  return theme;
}
