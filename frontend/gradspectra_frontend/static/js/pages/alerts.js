// Alerts of a run: a list, and for the chosen one what it saw, what that means and what people do about it.

import { runPath } from "../address.js";
import { evidenceCurve, evidenceRows } from "../evidence.js";
import { date, number, whole, words } from "../format.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../html.js";
import { Loaded, Severity, Sparkline, useSend } from "../parts.js";
import { setView } from "../router.js";

/** @param {{run: any, view: Record<string, string>, alerts: any}} props */
export function RunAlerts({ run, view, alerts }) {
  const chosen = useChosen(alerts.data?.items ?? [], view.alert);
  return html`<${Loaded} answer=${alerts}>${(/** @type {any} */ data) => {
    if (!data.items.length) return html`<p class="panel pad note">No alert so far. The rules follow every step: not finite numbers, a loss that diverges, spikes of loss, gradient and update, dead layers.</p>`;
    return html`
      <${Timeline} run=${run} items=${data.items} chosen=${chosen} />
      <div class="split">
        <div class="panel alert-list" role="group" aria-label="Alerts">${data.items.map((/** @type {any} */ one) => html`<${Line} key=${one.id} alert=${one} chosen=${one.id === chosen.id} onClick=${() => setView({ alert: one.id })} />`)}</div>
        <${Alert} key=${chosen.id} alert=${chosen} run=${run.id} onChanged=${alerts.again} />
      </div>`;
  }}</${Loaded}>`;
}

/** The alert that is shown: the one that the address names, else the newest. Its name goes into the address, so that
 * one that opens meanwhile does not take its place under the reader's hands.
 * @param {any[]} items @param {string | undefined} named */
export function useChosen(items, named) {
  const chosen = items.find((one) => one.id === named) ?? items[0];
  const id = chosen?.id;
  useLayoutEffect(() => void (id && id !== named && setView({ alert: id })), [id, named]);
  return chosen;
}

/** Episodes over the steps of the run, one bar each. @param {{run: any, items: any[], chosen: any}} props */
function Timeline({ run, items, chosen }) {
  const last = Math.max(run.last_step ?? 1, 1);
  const rules = [...new Set(items.map((one) => one.rule))];
  return html`
    <div class="panel pad timeline" role="group" aria-label="Alerts over the steps of the run">
      ${rules.map((rule) => html`<div class="lane"><span class="muted small">${words(rule)}</span><span class="track">${items.filter((one) => one.rule === rule).map((one) => {
        const stop = one.closed_step ?? (one.state === "open" ? last : one.last_step);
        const left = (100 * one.opened_step) / last;
        return html`<button type="button" class=${`episode ${one.severity} ${one.id === chosen.id ? "chosen" : ""}`} style=${`left:${Math.min(left, 99.4).toFixed(2)}%;width:${Math.max(0, (100 * (stop - one.opened_step)) / last).toFixed(2)}%`} title=${`step ${one.opened_step}: ${one.message}`} aria-label=${`${words(rule)}, step ${one.opened_step}`} onClick=${() => setView({ alert: one.id })}></button>`;
      })}</span></div>`)}
    </div>`;
}

/** @param {{alert: any, chosen: boolean, onClick: () => void, where?: any}} props */
export function Line({ alert, chosen, onClick, where }) {
  const line = useRef(/** @type {any} */ (null));
  useEffect(() => void (chosen && line.current?.scrollIntoView({ block: "nearest" })), [chosen]);
  return html`
    <button type="button" ref=${line} class=${`alert-line ${chosen ? "chosen" : ""} ${alert.state}`} data-alert=${alert.id} aria-current=${chosen} onClick=${onClick}>
      <${Severity} severity=${alert.severity} /><strong>${words(alert.rule)}</strong><span class="muted small">${alert.state}${alert.muted ? ", muted" : ""}</span>
      <span class="small message">${alert.message}</span>
      <span class="muted small">${where ?? ""}step ${whole(alert.opened_step)}${alert.closed_step ? ` – ${whole(alert.closed_step)}` : ""}${alert.first_layer ? ` · ${alert.first_layer}` : ""}</span>
    </button>`;
}

/** One alert in full. @param {{alert: any, run: string, onChanged: () => void}} props */
export function Alert({ alert, run, onChanged }) {
  const [send, problem] = useSend();
  const [note, setNote] = useState(alert.note ?? "");
  const change = async (/** @type {any} */ body) => (await send("PATCH", `/alerts/${encodeURIComponent(alert.id)}`, body)) && onChanged();
  const mute = async () => (await send(alert.muted ? "DELETE" : "PUT", `/mutes/${encodeURIComponent(run)}/${encodeURIComponent(alert.rule)}`)) && onChanged();
  const near = Math.max(50, 2 * ((alert.closed_step ?? alert.last_step) - alert.opened_step));
  const around = { start: Math.max(0, alert.opened_step - near), stop: (alert.closed_step ?? alert.last_step) + near };
  const curve = evidenceCurve(alert.evidence);
  return html`
    <article class="panel pad alert-detail" data-alert-detail=${alert.id}>
      <header><${Severity} severity=${alert.severity} /><h2>${words(alert.rule)}</h2><span class="tag">${alert.state}</span>${alert.muted && html`<span class="tag">muted</span>`}</header>
      <p class="lead">${alert.message}</p>
      <div class="actions">
        ${alert.state === "open" && html`<button type="button" class="primary" data-action="acknowledge" onClick=${() => change({ state: "acknowledged" })}>Acknowledge</button>`}
        ${alert.state !== "closed" && html`<button type="button" data-action="close" onClick=${() => change({ state: "closed" })}>Close</button>`}
        <button type="button" data-action="mute" title=${alert.muted ? "Hear of it again: what opens from now on is delivered" : "Its alerts are kept and marked, delivered to nobody, and the run's health leaves them out"} onClick=${mute}>${alert.muted ? "Unmute this rule" : "Mute this rule for this run"}</button>
        <a class="button" href=${runPath(run, "overview", around)}>Show these steps</a>
        ${alert.first_layer && html`<a class="button" href=${runPath(run, "layers", { ...around, layer: alert.first_layer })}>Show the layer</a>`}
      </div>
      ${problem}
      <h3>What it means</h3><p>${alert.meaning}</p>
      <h3>What to do</h3><p>${alert.remedy}</p>
      <h3>What was seen</h3>
      ${curve && html`<div class="evidence-curve"><${Sparkline} values=${curve.values} width=${520} height=${90} mark=${curve.mark} label=${`${curve.name} in the steps around`} />
        <span class="muted small">${curve.name}, steps ${whole(curve.first)} to ${whole(curve.last)}</span></div>`}
      <dl class="facts"><div><dt>first step</dt><dd class="num">${whole(alert.opened_step)}</dd></div>
        <div><dt>last step</dt><dd class="num">${whole(alert.closed_step ?? alert.last_step)}</dd></div>
        ${alert.value !== null && html`<div><dt>value</dt><dd class="num">${number(alert.value)}</dd></div>`}
        ${alert.threshold !== null && html`<div><dt>limit</dt><dd class="num">${number(alert.threshold)}</dd></div>`}
        ${evidenceRows(alert.evidence).map(([name, value]) => html`<div><dt>${name}</dt><dd class="num">${value}</dd></div>`)}
        <div><dt>opened</dt><dd>${date(alert.opened_at)}</dd></div></dl>
      ${alert.layers.length > 0 && html`<h3>Layers</h3><ul class="layer-list">${alert.layers.slice(0, 30).map((/** @type {string} */ name) => html`<li><a class="mono" href=${runPath(run, "layers", { ...around, layer: name })}>${name}</a></li>`)}${alert.layers.length > 30 && html`<li class="muted">and ${alert.layers.length - 30} more</li>`}</ul>`}
      <h3><label for="note">Note</label></h3>
      <textarea id="note" rows="2" maxlength="10000" value=${note} onInput=${(/** @type {any} */ e) => setNote(e.target.value)}></textarea>
      <div class="actions"><button type="button" data-action="note" disabled=${note === (alert.note ?? "")} onClick=${() => change({ note })}>Save the note</button></div>
    </article>`;
}
