// Overview of a run: the numbers of now, and the five curves that share one zoom.

import { rangeOf, runPath } from "../address.js";
import { ChosenCurve, chosenOf } from "../chosen_curve.js";
import { useGet } from "../data.js";
import { Figure } from "../figure.js";
import { lossParams } from "../figure_calls.js";
import { asNumber, every, number, percent, stepTime, whole } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { Tile } from "../parts.js";
import { navigate, setView } from "../router.js";
import { unnamed } from "./compare.js";

const NAMES = ["loss", "grad_norm", "learning_rate", "noise_scale", "step_seconds", "tokens", "examples", "cadence_layers", "cadence_second", "cadence_spectra"];

/** Series that a figure of their own shows. */
const SHOWN = ["loss", "grad_norm", "clip_threshold", "noise_scale", "noise_scale_low", "noise_scale_high", "learning_rate", "step_seconds", "data_seconds", "agent_seconds"];

/** @param {{run: any, view: Record<string, string>}} props */
export function Overview({ run, view }) {
  const range = rangeOf(view);
  const zoom = (/** @type {[number, number] | null} */ next) => setView({ start: next?.[0], stop: next?.[1] });
  const point = (/** @type {any} */ at) => {
    if (at.data.meta === "alerts" && at.customdata) navigate(runPath(run.id, "alerts", { alert: at.customdata }));
  };
  const scale = view.scale;
  const shared = { run: run.id, range, onRange: zoom, onPoint: point, ended: ["finished", "failed"].includes(run.state) };
  return html`
    <${Now} run=${run} />
    <div class="controls">
      <${Range} range=${range} onRange=${zoom} last=${run.last_step} />
      <label class="check"><input type="checkbox" checked=${view.smooth !== "off"} onChange=${(/** @type {any} */ e) => setView({ smooth: e.target.checked ? null : "off" })} /> smoothing over the loss</label>
      <label>scale <select value=${scale ?? "auto"} onChange=${(/** @type {any} */ e) => setView({ scale: e.target.value === "auto" ? null : e.target.value })}>
        <option value="auto">automatic</option><option value="log">logarithmic</option><option value="linear">linear</option></select></label>
      <span class="muted small spread-left">Drag to zoom all curves, double click for the whole run.</span>
    </div>
    <div class="figures">
      <${Figure} name="loss" wide tall title="Loss" params=${lossParams(view)} ...${shared} />
      <${Figure} name="grad_norm" params=${{ scale }} ...${shared} />
      <${Figure} name="noise_scale" params=${{ scale }} ...${shared} />
      <${Figure} name="learning_rate" params=${{ scale }} ...${shared} />
      <${Figure} name="step_time" params=${{ scale }} ...${shared} />
      <${Other} run=${run} view=${view} range=${range} onRange=${zoom} />
    </div>`;
}

/** A curve of what else the run has: what was logged or imported by a name of its own.
 * @param {{run: any, view: Record<string, string>, range: [number, number] | null, onRange: (range: [number, number] | null) => void}} props */
function Other({ run, view, range, onRange }) {
  const { data } = useGet(run.last_step ? `/runs/${encodeURIComponent(run.id)}/series` : null, { names: "loss", columns: 1 }, { run: run.id, pause: 15000 });
  const names = (data?.available ?? []).filter((/** @type {string} */ name) => !SHOWN.includes(name));
  const series = chosenOf(names, view.series);
  if (!series) return null;
  return html`<${ChosenCurve} names=${names} series=${series}>
    <${Figure} run=${[run.id]} name="curves" key=${series} params=${{ series, scale: view.scale, smooth: 0 }} change=${unnamed} range=${range} onRange=${onRange} /></${ChosenCurve}>`;
}

/** The last values, as large figures. @param {{run: any}} props */
function Now({ run }) {
  const start = Math.max(0, (run.last_step ?? 0) - 40);
  const recent = useGet(run.last_step ? `/runs/${encodeURIComponent(run.id)}/series` : null, { names: NAMES.join(","), start, columns: 50 }, { run: run.id, pause: 500, keep: true });
  const last = lastOf(recent.data);
  const perSecond = last("tokens") !== null ? last("tokens") : last("examples");
  const seconds = asNumber(last("step_seconds"));
  const speed = perSecond !== null && seconds ? whole(Number(perSecond) / seconds) : "–";
  return html`
    <div class="tiles" role="group" aria-label="Last values">
      <${Tile} name="loss" value=${number(last("loss"))} />
      <${Tile} name="gradient norm" value=${number(last("grad_norm"))} hint="before clipping" />
      <${Tile} name="learning rate" value=${number(last("learning_rate"), 3)} />
      <${Tile} name="noise scale" value=${number(last("noise_scale"), 3)} hint="batch size at which noise and signal of the gradient are alike" />
      <${Tile} name="step time" value=${stepTime(last("step_seconds"))} />
      <${Tile} name=${last("tokens") !== null ? "tokens per second" : "examples per second"} value=${speed} />
      <${Tile} name="layers measured" value=${every(last("cadence_layers"))} hint="kept by the budget" />
      ${last("cadence_second") !== null && html`<${Tile} name="second tier" value=${every(last("cadence_second"))} hint="of each layer; kept by the budget" />`}
      ${last("cadence_spectra") !== null && html`<${Tile} name="spectra" value=${every(last("cadence_spectra"))} hint="of each layer; kept by the budget" />`}
      <${Tile} name="agent overhead" value=${percent(run.overhead)} hint="share of step time the agent has spent" />
    </div>`;
}

/** Last present value of a series by name. @param {any} data @returns {(name: string) => unknown} */
function lastOf(data) {
  return (name) => (data?.series[name]?.last ?? []).findLast((/** @type {unknown} */ value) => value !== null) ?? null;
}

/** The zoom as two numbers, for those who do not drag. @param {{range: [number, number] | null, onRange: (range: [number, number] | null) => void, last: number | null}} props */
export function Range({ range, onRange, last }) {
  const shown = () => ({ start: String(range?.[0] ?? 0), stop: String(range?.[1] ?? "") });
  const [draft, setDraft] = useState(shown);
  useEffect(() => setDraft(shown()), [String(range)]);
  const type = (/** @type {any} */ event) => {
    event.target.form.elements.stop.setCustomValidity("");
    setDraft({ ...draft, [event.target.name]: event.target.value });
  };
  const set = (/** @type {any} */ event) => {
    event.preventDefault();
    const [start, stop] = [Number(draft.start), draft.stop === "" ? (last ?? 0) + 1 : Number(draft.stop)]; // an empty end is the last step
    if (stop > start) return onRange([start, stop]);
    const field = event.currentTarget.elements.stop;
    field.setCustomValidity(draft.stop === "" ? `The run has no step after ${whole(start - 1)} yet.` : `This must be more than ${whole(start)}, where the steps begin.`);
    return field.reportValidity();
  };
  return html`
    <form class="range" onSubmit=${set}>
      <label>steps <input name="start" type="number" min="0" inputmode="numeric" value=${draft.start} onInput=${type} aria-label="first step shown" /></label>
      <label>to <input name="stop" type="number" min="1" inputmode="numeric" value=${draft.stop} onInput=${type} placeholder=${whole(last)} aria-label="last step shown" /></label>
      <button type="submit" class="quiet">Show</button>
      ${range && html`<button type="button" data-action="whole-run" onClick=${() => onRange(null)}>Whole run</button>`}
    </form>`;
}
