// Alerts of all runs, newest first.

import { runPath } from "../address.js";
import { useGet } from "../data.js";
import { html, useEffect } from "../html.js";
import { useKeys } from "../keys.js";
import { Loaded } from "../parts.js";
import { setView } from "../router.js";
import { Alert, Line, useChosen } from "./alerts.js";

/** @param {{address: import("../address.js").Address}} props */
export function AlertsInbox({ address }) {
  const { state = "open", alert = "" } = address.view;
  const answer = useGet("/alerts", { state: state === "all" ? "" : state, limit: 200 }, { run: "*", pause: 1500 });
  const runs = useGet("/runs", { limit: 500 });
  const names = new Map((runs.data?.items ?? []).map((/** @type {any} */ run) => [run.id, run.name]));
  const items = answer.data?.items ?? [];
  const unknown = runs.data ? [...new Set(items.map((/** @type {any} */ one) => one.run))].filter((run) => !names.has(run)).join() : "";
  useEffect(() => void (unknown && runs.again()), [unknown]);
  const chosen = useChosen(items, alert);
  const step = (/** @type {number} */ by) => () => {
    const next = items[Math.min(items.length - 1, Math.max(0, items.indexOf(chosen) + by))];
    if (next) setView({ alert: next.id });
  };
  useKeys({ "]": step(1), "[": step(-1), j: step(1), k: step(-1) });
  useEffect(() => void (document.title = "Alerts · gradspectra"), []);
  return html`
    <div class="page">
      <div class="page-head"><h1>Alerts</h1>
        <div class="choices" role="group" aria-label="State">${["open", "acknowledged", "closed", "all"].map((one) => html`
          <button type="button" aria-pressed=${one === state} onClick=${() => setView({ state: one === "open" ? null : one, alert: null })}>${one}</button>`)}</div></div>
      <${Loaded} answer=${answer}>${() => items.length === 0
        ? html`<p class="panel pad note">${state === "open" ? "Nothing is open: all runs are healthy, or somebody has looked after it." : "There is no such alert."}</p>`
        : html`<div class="split">
            <div class="panel alert-list" role="group" aria-label="Alerts">${items.map((/** @type {any} */ one) => html`
              <${Line} key=${one.id} alert=${one} chosen=${one.id === chosen.id} onClick=${() => setView({ alert: one.id })} where=${html`<b>${names.get(one.run) ?? one.run}</b> · `} />`)}</div>
            <div><p class="small"><a href=${runPath(chosen.run, "alerts", { alert: chosen.id })}>Run ${names.get(chosen.run) ?? chosen.run}</a></p>
              <${Alert} key=${chosen.id} alert=${chosen} run=${chosen.run} onChanged=${answer.again} /></div>
          </div>`}</${Loaded}>
    </div>`;
}
