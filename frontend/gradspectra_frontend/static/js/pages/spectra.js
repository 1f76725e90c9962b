// Spectra: singular values of one layer at a chosen step, its ranks over time, and the ranks of all layers.

import { rangeOf } from "../address.js";
import { Figure } from "../figure.js";
import { number, whole } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { setView } from "../router.js";
import { Slider } from "../slider.js";
import { layerAt, LayerChoice, useLayerNames } from "./layers.js";

/** @param {{run: any, view: Record<string, string>}} props */
export function Spectra({ run, view }) {
  const { of = "gradient" } = view;
  const range = rangeOf(view);
  const zoom = (/** @type {[number, number] | null} */ next) => setView({ start: next?.[0], stop: next?.[1] });
  const names = useLayerNames(run.id).filter((one) => one.spectra !== false && (one.shape?.length ?? 2) > 1);
  const layer = view.layer && (names.length === 0 || names.some((one) => one.name === view.layer)) ? view.layer : names[0]?.name ?? "";
  const [facts, setFacts] = useState(/** @type {any} */ (null));
  const step = view.step === undefined ? null : Number(view.step);
  const choose = (/** @type {string} */ name) => setView({ layer: name });
  useEffect(() => setFacts(null), [layer, of]);
  const pick = (/** @type {any} */ point, /** @type {any} */ meta) => choose(layerAt(point, meta) ?? layer);
  return html`
    <div class="controls">
      <label>layer <${LayerChoice} names=${names} value=${layer} onChange=${choose} empty="no layer has a spectrum yet" /></label>
      <label>of the <select data-control="of" value=${of} onChange=${(/** @type {any} */ e) => setView({ of: e.target.value })}>
        ${["gradient", "weight", "update"].map((one) => html`<option value=${one}>${one}</option>`)}</select></label>
      <${Slider} facts=${facts} step=${step} />
    </div>
    <div class="figures">
      ${layer && html`
        <${Facts} facts=${facts} />
        <${Figure} run=${run.id} name="spectrum" key=${`spectrum ${layer} ${of}`} params=${{ layer, of, step: step ?? undefined, columns: 200 }} onFigure=${(/** @type {any} */ figure) => setFacts(figure.layout.meta)} />
        <${Figure} run=${run.id} name="ranks" key=${`ranks ${layer} ${of}`} params=${{ layer, of, columns: 400 }} range=${range} onRange=${zoom} />`}
      <${Figure} run=${run.id} name="effective_rank" wide params=${{ order: "depth" }} range=${range} onRange=${zoom} onPoint=${pick} note="click a row for its spectrum" />
    </div>`;
}

/** @param {{facts: any}} props */
function Facts({ facts }) {
  if (!facts?.rows) return null;
  const rank = Math.min(facts.rows, facts.columns);
  return html`
    <dl class="panel pad facts wide">
      <div><dt>effective rank</dt><dd class="num">${number(facts.effective_rank)} <span class="muted">of ${whole(rank)}</span></dd></div>
      <div><dt>of pure noise</dt><dd class="num">${number(facts.noise_effective_rank)}</dd></div>
      <div><dt>90% of the energy in</dt><dd class="num">${whole(facts.k90)} <span class="muted">values</span></dd></div>
      <div><dt>largest</dt><dd class="num">${number(facts.operator)}</dd></div>
      <div><dt>shape</dt><dd class="num">${whole(facts.rows)} × ${whole(facts.columns)}</dd></div>
      <div><dt>method</dt><dd>${facts.method}</dd></div>
    </dl>`;
}

