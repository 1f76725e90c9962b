// The calls of figures, for whoever asks first: the figure itself, or the page's head ahead of it. Pure functions.

import { rangeOf } from "./address.js";

/** @typedef {[string, Record<string, any>]} Call path and parameters */

/** Figures that are asked for without what follows from their numbers (`whole` in figure_view.js makes it). */
const HEATMAPS = ["layers", "effective_rank"];

/** The call of a figure. columns follow its width: `wide` ones take the window's, others half of it.
 * @param {string} run @param {string} name @param {Record<string, any>} params
 * @param {{wide?: boolean, range: [number, number] | null, theme: string, width: number}} shown @returns {Call} */
export function figureCall(run, name, params, { wide = false, range, theme, width }) {
  const columns = Math.min(1000, Math.max(200, Math.round(((wide ? 1 : 0.5) * Math.min(width, 2400)) / 1.2 / 50) * 50));
  const compact = HEATMAPS.includes(name) || undefined;
  return [`/runs/${encodeURIComponent(run)}/figures/${name}`, { columns, ...params, compact, theme, start: range?.[0], stop: range?.[1] }];
}

/** The call of a figure of several runs, as `figureCall`.
 * @param {string[]} runs @param {string} name @param {Record<string, any>} params
 * @param {{wide?: boolean, range?: [number, number] | null, theme: string, width: number}} shown @returns {Call} */
export function comparisonCall(runs, name, params, { wide, range = null, theme, width }) {
  const [, { columns, start, stop }] = figureCall("", name, params, { wide, range, theme, width });
  const steps = name === "sweep" ? {} : { columns, start, stop };
  return [`/comparisons/${name}`, { runs: runs.join(","), ...params, ...steps, theme }];
}

/** What the loss is asked with. @param {Record<string, string>} view */
export const lossParams = (view) => ({ smooth: view.smooth === "off" ? 0 : undefined, scale: view.scale });

/** What the heatmap of layers is asked with. @param {Record<string, string>} view */
export const layersParams = ({ statistic = "grad_norm", order = "depth" }) => ({ statistic, order });

/** The calls of the figures that an address begins with; none where what to ask for must be asked for itself.
 * @param {import("./address.js").Address} address @param {string} theme @param {number} width of the window
 * @returns {Call[]} */
export function firstCalls({ run, tab, view }, theme, width) {
  if (run === null) return [];
  const shown = { wide: true, range: rangeOf(view), theme, width };
  if (tab === "overview") return [figureCall(run, "loss", lossParams(view), shown)];
  if (tab === "layers") return [figureCall(run, "layers", layersParams(view), shown)];
  return [];
}
