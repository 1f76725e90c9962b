// One figure among many series: a choice of which, over the figure that shows it.

import { words } from "./format.js";
import { html } from "./html.js";
import { setView } from "./router.js";

/** What is measured and derived of every run, or says how far it is, the most telling first. */
const MEASURED = ["update_norm", "clip_coefficient", "data_seconds", "loss_scale", "skipped", "tokens", "examples", "epoch", "parts", "device_memory_bytes", "device_memory_peak_bytes", "process_memory_bytes", "tr_sigma", "signal_sq", "agent_seconds", "cadence_layers", "cadence_second", "cadence_spectra", "noise_scale_low", "noise_scale_high", "clip_threshold", "noise_w", "noise_w2"];

/** What was logged or imported by a name of its own, then what is measured of every run. @param {string[]} names */
export const ordered = (names) => {
  const own = names.filter((name) => !MEASURED.includes(name)).sort((a, b) => Number(b === "eval_loss") - Number(a === "eval_loss") || (a < b ? -1 : 1));
  return [...own, ...MEASURED.filter((name) => names.includes(name))];
};

/** The series that the address names, else the first. @param {string[]} names @param {string | undefined} named */
export const chosenOf = (names, named) => named ?? ordered(names)[0];

/** @param {{names: string[], series: string, children?: any}} props */
export function ChosenCurve({ names, series, children }) {
  return html`<div class="chosen-curve"><label class="small muted"><span class="hint">another curve </span><select data-control="series" aria-label="another curve" value=${series} onChange=${(/** @type {any} */ e) => setView({ series: e.target.value })}>
    ${[...new Set([...ordered(names), series])].map((name) => html`<option value=${name}>${words(name)}</option>`)}</select></label>
    ${children}</div>`;
}
