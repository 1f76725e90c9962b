// The address of a view, both ways. Pure functions: what a link shows is all in it.

export const TABS = ["overview", "layers", "spectra", "learning-rate", "alerts", "details"];
export const TAB_NAMES = {
  overview: "Overview",
  layers: "Layers",
  spectra: "Spectra",
  "learning-rate": "Learning rate",
  alerts: "Alerts",
  details: "Details",
};

/** @typedef {{page: string, run: string | null, tab: string, view: Record<string, string>}} Address */

/** @param {string} path @param {string} query @returns {Address} */
export function parse(path, query) {
  const view = Object.fromEntries(new URLSearchParams(query));
  const [first = "", second, third] = path.split("/").filter(Boolean).map(decoded);
  if (first === "runs" && second) {
    return { page: "run", run: second, tab: TABS.includes(third) ? third : "overview", view };
  }
  if (first === "" || first === "runs") return { page: "runs", run: null, tab: "", view };
  if (["compare", "alerts", "settings", "login"].includes(first)) return { page: first, run: null, tab: "", view };
  return { page: "unknown", run: null, tab: "", view };
}

/** Part of a path as text; one that is not well formed stays as it is. @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Path of a run's tab. @param {string} run @param {string} [tab] @param {Record<string, unknown>} [view] */
export function runPath(run, tab = "overview", view = {}) {
  return `/runs/${encodeURIComponent(run)}/${tab}${query(view)}`;
}

/** Path of a comparison. @param {string[]} runs */
export const comparePath = (runs) => `/compare${query({ runs: runs.join(",") })}`;

/** The runs that a value of the address names, each once. @param {string | undefined} text @returns {string[]} */
export const runsOf = (text) => [...new Set((text ?? "").split(",").filter(Boolean))];

/** Query text of the values that are set, in a fixed order. @param {Record<string, unknown>} view */
export function query(view) {
  const pairs = Object.entries(view).filter(([, value]) => value !== null && value !== undefined && value !== "");
  pairs.sort(([a], [b]) => (a < b ? -1 : 1));
  const text = new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])).toString();
  return text ? `?${text}` : "";
}

/** What stays when another tab of the same run is opened: the zoom and the layer. @param {Record<string, string>} view */
export function kept(view) {
  const { start, stop, layer } = view;
  return { start, stop, layer };
}

/** The zoom in the address as whole steps that there can be, null for the whole run. @param {Record<string, string>} view @returns {[number, number] | null} */
export function rangeOf(view) {
  const start = Math.max(0, Math.floor(Number(view.start)));
  const stop = Math.min(Number.MAX_SAFE_INTEGER, Math.ceil(Number(view.stop)));
  return view.start !== undefined && view.stop !== undefined && stop > start ? [start, stop] : null;
}
