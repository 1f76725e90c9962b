// Several runs laid over each other: which is better, where two of them part, and what they were set to.

import { rangeOf, runPath, runsOf } from "../address.js";
import { ChosenCurve, chosenOf } from "../chosen_curve.js";
import { useGet } from "../data.js";
import { Figure } from "../figure.js";
import { filterRows } from "../figure_view.js";
import { asNumber, flattened, number, whole, words } from "../format.js";
import { html, useCallback, useEffect, useState } from "../html.js";
import { Health, RunState } from "../parts.js";
import { setView } from "../router.js";
import { STATISTICS } from "./layers.js";

const AXES = { step: "step", tokens: "tokens", time: "seconds of training", fraction: "fraction of the run" };
const CURVES = ["grad_norm", "noise_scale", "learning_rate", "step_seconds"];
/** Statistics whose sign says which way: a ratio of two says nothing. */
const SIGNED = ["grad_dot_weight", "update_dot_grad"];

/** One legend is enough: that of the loss. @param {any} figure */
export const unnamed = (figure) => ({ ...figure, layout: { ...figure.layout, showlegend: false } });

/** @typedef {{members: any, failure: any, available: string[]}} Known what is known of a run; a failure where it is not there */

/** @param {{address: import("../address.js").Address}} props */
export function Compare({ address }) {
  const { view } = address;
  const runs = runsOf(view.runs);
  const [known, setKnown] = useState(/** @type {Record<string, Known>} */ ({}));
  const [looks, setLooks] = useState(/** @type {any[]} */ ([]));
  const tell = useCallback((/** @type {string} */ run, /** @type {Known} */ found) => setKnown((old) => ({ ...old, [run]: found })), []);
  const there = runs.filter((run) => known[run]?.failure?.status !== 404);
  useEffect(() => void (document.title = `Compare ${runs.length} runs · gradspectra`), [runs.length]);
  const asked = runs.every((run) => known[run]) ? there : []; // a figure with a run that is gone would be refused
  const without = (/** @type {string} */ run) => setView({ runs: runs.filter((one) => one !== run).join(",") });
  if (!runs.length) return html`<div class="page"><div class="panel pad note"><h1>Compare runs</h1><p>Choose two runs or more in the <a href="/">list of runs</a>, by the boxes at their left, then press Compare.</p></div></div>`;
  return html`
    <div class="page">
      <div class="page-head"><h1>Compare ${runs.length === 1 ? "1 run" : `${runs.length} runs`}</h1></div>
      <section class="panel scroll" data-panel="compared" aria-label="Runs compared"><table class="data">
        <thead><tr><th>Run</th><th>Health</th><th>State</th><th class="right">Steps</th><th class="right">Last loss</th><th class="right">Overhead</th><th><span class="unseen">Remove</span></th></tr></thead>
        <tbody>${runs.map((run) => html`<${Row} key=${run} run=${run} look=${looks.find((one) => one.run === run)} least=${leastLoss(runs, known)} onKnown=${tell} onRemove=${() => without(run)} />`)}</tbody>
      </table></section>
      ${asked.length > 0 && html`<h2 class="unseen">Curves</h2><${Curves} runs=${asked} known=${known} view=${view} onLooks=${setLooks} />`}
      ${asked.length > 1 && html`<${Difference} runs=${asked} known=${known} view=${view} />`}
      ${asked.length > 1 && html`<${Settings} runs=${asked} known=${known} looks=${looks} every=${view.settings === "all"} />`}
    </div>`;
}

/** The last loss of a run, NaN where it has none. @param {any} members */
const lastLoss = (members) => asNumber(members?.sparkline?.at(-1)) ?? NaN;

/** @param {string[]} runs @param {Record<string, Known>} known */
function leastLoss(runs, known) {
  const losses = runs.map((run) => lastLoss(known[run]?.members)).filter(Number.isFinite);
  return losses.length > 1 ? Math.min(...losses) : null;
}

/** Colour and dash of a run's lines. @param {{look: any}} props */
const Swatch = ({ look }) => html`<svg class="swatch" width="26" height="10" aria-hidden="true">
  ${look && html`<line x1="1" x2="25" y1="5" y2="5" style=${{ stroke: look.colour, strokeWidth: 3, strokeDasharray: { dash: "7 4", dot: "2 3" }[/** @type {"dash" | "dot"} */ (look.dash)] ?? "none" }} />`}</svg>`;

/** @param {{run: string, look: any, least: number | null, onKnown: (run: string, found: Known) => void, onRemove: () => void}} props */
function Row({ run, look, least, onKnown, onRemove }) {
  const path = `/runs/${encodeURIComponent(run)}`;
  const answer = useGet(path, {}, { run, pause: 1000 });
  const series = useGet(`${path}/series`, { names: "loss", columns: 1 });
  const { data, failure } = answer;
  const available = series.data?.available ?? [];
  useEffect(() => void ((data || failure) && onKnown(run, { members: data, failure, available })), [data, failure, available.length]);
  const remove = html`<button type="button" class="quiet" aria-label=${`Compare without ${data?.name ?? run}`} title="Compare without it" onClick=${onRemove}>✕</button>`;
  if (!data) return html`<tr data-compared=${run}><td colspan="6">${failure?.status === 404 ? `There is no run “${run}” here: it was deleted, or the link belongs to another server.` : failure ? failure.message : "Loading …"}</td><td class="right">${remove}</td></tr>`;
  const loss = lastLoss(data);
  return html`<tr data-compared=${run}>
    <td class="compared-name"><${Swatch} look=${look} /> <a href=${runPath(run)}>${data.name}</a> <span class="muted small">${data.project}</span></td>
    <td><${Health} health=${data.health} count=${data.open_alerts} /></td>
    <td><${RunState} state=${data.state} /></td>
    <td class="right num">${whole(data.last_step)}</td>
    <td class=${`right num ${loss === least ? "best" : ""}`}>${loss === least && html`<span class="muted small">least </span>`}${number(data.sparkline?.at(-1) ?? null)}</td>
    <td class="right num">${data.overhead === null ? "–" : `${(100 * data.overhead).toFixed(2)}%`}</td>
    <td class="right">${remove}</td></tr>`;
}

/** @param {{runs: string[], known: Record<string, Known>, view: Record<string, string>, onLooks: (looks: any[]) => void}} props */
function Curves({ runs, known, view, onLooks }) {
  const { axis = "step", scale } = view;
  const smooth = view.smooth === "off" ? 0 : undefined;
  const names = [...new Set(runs.flatMap((run) => known[run]?.available ?? []))].filter((name) => name !== "loss" && !CURVES.includes(name));
  const series = chosenOf(names, view.series);
  const zoom = (/** @type {[number, number] | null} */ next) => setView({ start: next?.[0], stop: next?.[1] });
  const range = axis === "step" ? rangeOf(view) : null;
  const shared = { run: runs, name: "curves", range, onRange: zoom };
  const of = (/** @type {string} */ series, /** @type {number | undefined} */ smoothed = 0) => ({ series, axis: axis === "step" ? undefined : axis, scale, smooth: smoothed });
  return html`
    <div class="controls compare-controls">
      <label>along <select data-control="axis" value=${axis} onChange=${(/** @type {any} */ e) => setView({ axis: e.target.value === "step" ? null : e.target.value, start: null, stop: null })}>
        ${Object.entries(AXES).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select></label>
      <label class="check"><input type="checkbox" checked=${view.smooth !== "off"} onChange=${(/** @type {any} */ e) => setView({ smooth: e.target.checked ? null : "off" })} /> smoothing over the loss</label>
      <label>scale <select value=${scale ?? "auto"} onChange=${(/** @type {any} */ e) => setView({ scale: e.target.value === "auto" ? null : e.target.value })}>
        <option value="auto">automatic</option><option value="log">logarithmic</option><option value="linear">linear</option></select></label>
      ${range && html`<button type="button" data-action="whole-run" onClick=${() => zoom(null)}>All steps</button>`}
    </div>
    <div class="figures">
      <${Figure} wide tall params=${of("loss", smooth)} onFigure=${(/** @type {any} */ figure) => onLooks(figure.layout.meta.runs)} ...${shared} />
      ${CURVES.map((one) => html`<${Figure} key=${one} params=${of(one)} change=${unnamed} ...${shared} />`)}
      ${series && html`<${ChosenCurve} names=${names} series=${series}><${Figure} key=${series} params=${of(series)} change=${unnamed} ...${shared} /></${ChosenCurve}>`}
      ${runs.length > 1 && html`<${Figure} run=${runs} name="sweep" />`}
    </div>`;
}

/** @param {{runs: string[], known: Record<string, Known>, view: Record<string, string>}} props */
function Difference({ runs, known, view }) {
  const { statistic = "grad_norm", filter = "", order = "depth" } = view;
  const first = runs.includes(view.first) ? view.first : runs[0];
  const other = runs.includes(view.other) && view.other !== first ? view.other : /** @type {string} */ (runs.find((run) => run !== first));
  const narrowed = useCallback((/** @type {any} */ figure) => filterRows(figure, filter), [filter]);
  const zoom = (/** @type {[number, number] | null} */ next) => setView({ start: next?.[0], stop: next?.[1] });
  const choice = (/** @type {string} */ name, /** @type {string} */ value, /** @type {string} */ not) => html`<select data-control=${name} class="run-select" value=${value} onChange=${(/** @type {any} */ e) => setView({ [name]: e.target.value })}>
    ${runs.filter((run) => run !== not).map((run) => html`<option value=${run}>${known[run]?.members?.name ?? run}</option>`)}</select>`;
  return html`
    <h2 class="section-head">Layer by layer</h2>
    <div class="controls">
      <label>statistic <select data-control="statistic" value=${statistic} onChange=${(/** @type {any} */ e) => setView({ statistic: e.target.value })}>
        ${Object.entries(STATISTICS).map(([group, some]) => html`<optgroup label=${group}>${Object.entries(some).filter(([value]) => !SIGNED.includes(value)).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</optgroup>`)}</select></label>
      <label>of ${choice("first", first, "")}</label>
      <label>against ${choice("other", other, first)}</label>
      <button type="button" class="quiet" data-action="swap" onClick=${() => setView({ first: other, other: first })}>Swap</button>
      <input type="search" data-search placeholder="Filter by name or role  /" aria-label="Filter layers by name or role" value=${filter} onInput=${(/** @type {any} */ e) => setView({ filter: e.target.value })} />
    </div>
    <div class="figures"><${Figure} run=${[first, other]} name="difference" wide params=${{ statistic, order }} range=${rangeOf(view)} onRange=${zoom} change=${narrowed} note="by step, where both have steps" /></div>`;
}

/** Settings and environment of the runs side by side, those alone that differ unless all are asked for.
 * @param {{runs: string[], known: Record<string, Known>, looks: any[], every: boolean}} props */
function Settings({ runs, known, looks, every }) {
  const members = runs.map((run) => known[run]?.members);
  if (members.some((one) => !one)) return null;
  const tables = members.map((one) => new Map([...flattened(one.config), ...flattened(one.environment, "environment")].filter(([key]) => key !== "environment.process")));
  const keys = [...new Set(tables.flatMap((table) => [...table.keys()]))];
  const differing = keys.filter((key) => new Set(tables.map((table) => table.get(key))).size > 1);
  const shown = every ? keys : differing;
  return html`
    <h2 class="section-head">Settings</h2>
    <div class="controls"><label class="check"><input type="checkbox" data-control="settings" checked=${every} onChange=${(/** @type {any} */ e) => setView({ settings: e.target.checked ? "all" : null })} /> also those that are alike</label></div>
    <section class="panel scroll" data-panel="settings">
      ${shown.length === 0 ? html`<p class="note">${keys.length ? "All settings are alike." : "These runs were started without a config."}</p>` : html`<table class="data side-by-side">
        <thead><tr><th>Setting</th>${members.map((one) => html`<th><${Swatch} look=${looks.find((look) => look.run === one.id)} /> ${one.name.length > 40 ? `${one.name.slice(0, 39)}…` : one.name}</th>`)}</tr></thead>
        <tbody>${shown.map((key) => html`<tr data-setting=${key}><th scope="row" class="mono">${key}</th>${tables.map((table) => html`<td class="mono">${table.get(key) ?? html`<span class="muted" title="not set">–</span>`}</td>`)}</tr>`)}</tbody>
      </table>`}
    </section>`;
}
