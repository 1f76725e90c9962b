// One figure among many series: a choice of which, over the figure that shows it.

import { words } from "./format.js";
import { html } from "./html.js";
import { setView } from "./router.js";

/** The series that the address names, else one that most want to see. @param {string[]} names @param {string | undefined} named */
export const chosenOf = (names, named) => named ?? (names.includes("eval_loss") ? "eval_loss" : names[0]);

/** @param {{names: string[], series: string, children?: any}} props */
export function ChosenCurve({ names, series, children }) {
  return html`<div class="chosen-curve"><label class="small muted"><span class="hint">another curve </span><select data-control="series" aria-label="another curve" value=${series} onChange=${(/** @type {any} */ e) => setView({ series: e.target.value })}>
    ${[...new Set([...names, series])].map((name) => html`<option value=${name}>${words(name)}</option>`)}</select></label>
    ${children}</div>`;
}
