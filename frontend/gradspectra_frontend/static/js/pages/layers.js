// Layers of a run: one statistic as a heatmap layer × step; a row opens that layer's own curves.

import { rangeOf } from "../address.js";
import { useGet } from "../data.js";
import { Figure } from "../figure.js";
import { layersParams } from "../figure_calls.js";
import { escaped, filterRows } from "../figure_view.js";
import { html, useCallback, useEffect, useState } from "../html.js";
import { setView } from "../router.js";
import { Slider } from "../slider.js";
import { Range } from "./overview.js";

export const STATISTICS = {
  "Measured on the gradient": { grad_norm: "gradient norm", grad_max: "largest entry", grad_nonfinite: "entries that are not finite", grad_l1: "sum of absolute entries", grad_zero_rows: "units without gradient", grad_dot_weight: "gradient · weight" },
  "Weights and updates": { weight_norm: "weight norm", update_norm: "update norm", update_ratio: "update ÷ weight", drift_norm: "distance from start", drift_ratio: "distance from start ÷ weight", rotation: "rotation from start", update_dot_grad: "update · gradient", rounding_lost: "update lost in rounding" },
  "Forward pass": { act_max: "largest output", act_nonfinite: "outputs that are not finite" },
  "Adam's moments": { moment_sq: "first moment, squares", second_moment: "second moment, sum", second_moment_median: "second moment, median root" },
  Derived: { noise_scale: "noise scale", effective_rank: "effective rank", stable_rank: "stable rank", participation_ratio: "participation ratio" },
};

/** @param {{run: any, view: Record<string, string>}} props */
export function Layers({ run, view }) {
  const { filter = "", layer = "" } = view;
  const { statistic, order } = layersParams(view);
  const range = rangeOf(view);
  const zoom = (/** @type {[number, number] | null} */ next) => setView({ start: next?.[0], stop: next?.[1] });
  const narrowed = useCallback((/** @type {any} */ figure) => filterRows(figure, filter), [filter]);
  const pick = (/** @type {any} */ point, /** @type {any} */ meta) => setView({ layer: layerAt(point, meta) ?? layer });
  const [settled, setSettled] = useState(false); // thousands of names to choose from are made when the heatmap stands
  const names = useLayerNames(settled ? run.id : null);
  const [profile, setProfile] = useState(/** @type {any} */ (null));
  useEffect(() => setProfile(null), [statistic]);
  const step = view.step === undefined ? null : Number(view.step);
  return html`
    <div class="controls">
      <label>statistic <select data-control="statistic" value=${statistic} onChange=${(/** @type {any} */ e) => setView({ statistic: e.target.value })}>
        ${Object.entries(STATISTICS).map(([group, some]) => html`<optgroup label=${group}>${Object.entries(some).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</optgroup>`)}</select></label>
      <label>order <select data-control="order" value=${order} onChange=${(/** @type {any} */ e) => setView({ order: e.target.value })}>
        <option value="depth">by depth</option><option value="role">by role</option><option value="name">by name</option></select></label>
      <input type="search" data-search placeholder="Filter by name or role  /" aria-label="Filter layers by name or role" value=${filter} onInput=${(/** @type {any} */ e) => setView({ filter: e.target.value })} />
      <${Range} range=${range} onRange=${zoom} last=${run.last_step} />
    </div>
    <div class="figures">
      <${Figure} run=${run.id} name="layers" wide params=${{ statistic, order }} range=${range} onRange=${zoom} onPoint=${pick} onSettled=${() => setSettled(true)} change=${narrowed} note="click a row for its curve" />
      <section class="panel pad wide layer-choice">
        <label>Curves of layer <${LayerChoice} names=${names} value=${layer} onChange=${(/** @type {string} */ name) => setView({ layer: name })} /></label>
      </section>
      ${layer && html`
        <${Figure} run=${run.id} name="layer_curves" params=${{ statistic, layer: escaped(layer) }} range=${range} onRange=${zoom} />
        <${Figure} run=${run.id} name="layer_curves" params=${{ statistic: statistic === "update_ratio" ? "grad_norm" : "update_ratio", layer: escaped(layer) }} range=${range} onRange=${zoom} />`}
      <${Figure} run=${run.id} name="profile" wide tall params=${{ statistic, step: step ?? undefined, columns: 200 }} range=${range} onFigure=${(/** @type {any} */ figure) => setProfile(figure.layout.meta)} />
      ${profile?.steps.length > 1 && html`<section class="panel pad wide" aria-label="Step of the profile"><${Slider} facts=${profile} step=${step} plays drawn=${profile.step} /></section>`}
    </div>`;
}

/** The layer of the row that was clicked in a heatmap. Its label is no name: what Plotly would take as markup is escaped.
 * @param {any} point @param {any} meta @returns {string | undefined} */
export const layerAt = (point, meta) => (Array.isArray(point.pointNumber) ? meta.layers[point.pointNumber[0]] : undefined);

/** Layers of a run in their order: name, role and whether they have spectra; none are asked for while it is null.
 * @param {string | null} run @returns {any[]} */
export function useLayerNames(run) {
  const answer = useGet(run && `/runs/${encodeURIComponent(run)}/layers`, {}, { run: run ?? undefined, pause: 15000 });
  return answer.data?.items ?? [];
}

/** @param {{names: any[], value: string, onChange: (name: string) => void, empty?: string}} props */
export function LayerChoice({ names, value, onChange, empty = "choose …" }) {
  const known = names.some((one) => one.name === value);
  return html`
    <select data-control="layer" class="layer-select" value=${value} onChange=${(/** @type {any} */ e) => onChange(e.target.value)}>
      ${!value && html`<option value="">${empty}</option>`}
      ${value && !known && html`<option value=${value}>${value}</option>`}
      ${names.map((one) => html`<option value=${one.name} key=${one.name}>${one.name}${one.role && one.role !== "other" ? `  (${one.role})` : ""}</option>`)}
    </select>`;
}
