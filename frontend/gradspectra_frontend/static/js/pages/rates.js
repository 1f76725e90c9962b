// Learning rate: what is suggested for each layer, by which rule, on what evidence; nothing is ever applied.

import { useGet } from "../data.js";
import { Figure } from "../figure.js";
import { number, whole, words } from "../format.js";
import { evidenceWords, groupsCode, multipliers, sharedEvidence } from "../groups.js";
import { html } from "../html.js";
import { Copied, Loaded } from "../parts.js";
import { setView } from "../router.js";

/** @param {{run: any, view: Record<string, string>}} props */
export function Rates({ run, view }) {
  const path = `/runs/${encodeURIComponent(run.id)}`;
  const answer = useGet(`${path}/suggestions`, {}, { run: run.id, pause: 2000 });
  const start = Math.max(0, (run.last_step ?? 0) - 20);
  const rates = useGet(run.last_step ? `${path}/series` : null, { names: "learning_rate", start, columns: 5 }, { run: run.id, pause: 2000, keep: true });
  const now = rates.data?.series.learning_rate?.last.at(-1) ?? null;
  return html`<${Loaded} answer=${answer}>${(/** @type {any} */ data) => html`<${Suggested} run=${run} items=${data.items} now=${now} filter=${view.filter ?? ""} />`}</${Loaded}>`;
}

/** @param {{run: any, items: any[], now: unknown, filter: string}} props */
function Suggested({ run, items, now, filter }) {
  const general = items.filter((one) => one.scope !== "layer");
  const layers = items.filter((one) => one.scope === "layer");
  const wanted = filter.toLowerCase();
  const shown = layers.filter((one) => !wanted || one.layer.toLowerCase().includes(wanted) || one.confidence === wanted);
  const sure = multipliers(items).length;
  const { common, rest } = sharedEvidence(layers);
  if (!items.length) return html`
    <div class="panel pad note"><h2>No suggestion yet</h2>
      <p>Suggestions rest on the gradient noise of each layer. That takes some hundred recorded steps, and more than one part (backward pass) in each step: split the batch into two or more micro-batches, or wait for the estimate from Adam's moments.</p></div>`;
  return html`
    ${general.length > 0 && html`<div class="cards">${general.map((one) => html`<${Advice} one=${one} />`)}</div>`}
    ${layers.length > 0 && html`<div class="figures">
      <${Figure} run=${run.id} name="suggestions" wide title="Suggested learning-rate multiplier by layer" />
      <section class="panel wide">
        <div class="controls in-panel">
          <h3>Layers <span class="muted small">${sure} of ${layers.length} with enough evidence · learning rate now ${number(now, 3)}${Object.keys(common).length > 0 && ` · ${evidenceWords(common, number)}`}</span></h3><span class="spread"></span>
          <input type="search" data-search placeholder="Filter layers  /" aria-label="Filter layers" value=${filter} onInput=${(/** @type {any} */ e) => setView({ filter: e.target.value })} />
          ${sure > 0 && html`<${Copied} text=${groupsCode(items)} label="Copy as parameter groups" />`}
        </div>
        <div class="scroll"><table class="data" data-table="suggestions">
          <thead><tr><th>Layer</th><th class="right">Now</th><th class="right">Multiplier</th><th class="right">Then</th><th>Confidence</th><th>Rule</th><th>Evidence</th></tr></thead>
          <tbody>${shown.map((one) => html`<${Row} key=${one.layer + one.rule} one=${one} now=${now} seen=${evidenceWords(rest(one.evidence), number)} />`)}</tbody>
        </table></div>
      </section>
    </div>`}`;
}

/** @param {{one: any, now: unknown, seen: string}} props */
function Row({ one, now, seen }) {
  const base = one.evidence?.learning_rate ?? now;
  if (!one.enough_evidence) return html`
    <tr class="unsure"><td class="mono layer">${one.layer}</td><td class="right num">${number(base, 3)}</td><td colspan="3" class="muted">not enough evidence: leave it as it is</td><td>${words(one.rule)}</td><td class="muted small">${seen}</td></tr>`;
  return html`
    <tr><td class="mono layer">${one.layer}${one.experimental && html` <span class="tag">experimental</span>`}</td>
      <td class="right num">${number(base, 3)}</td>
      <td class="right num"><strong>${number(one.value, 3)}×</strong> <span class="muted small">${number(one.low, 3)} – ${number(one.high, 3)}</span></td>
      <td class="right num">${base === null ? "–" : number(Number(base) * Number(one.value), 3)}</td>
      <td><span class=${`confidence ${one.confidence}`}>${one.confidence}</span></td>
      <td title=${one.source}>${words(one.rule)}</td><td class="muted small">${seen}</td></tr>`;
}

/** Advice for the whole run. @param {{one: any}} props */
function Advice({ one }) {
  return html`
    <section class=${`panel pad advice ${one.enough_evidence ? "" : "unsure"}`}>
      <h3>${words(one.quantity)} ${one.experimental && html`<span class="tag">experimental</span>`}</h3>
      ${one.enough_evidence
        ? html`<p class="big num">${number(one.value)} <span class="muted small">${number(one.low, 3)} – ${number(one.high, 3)}</span> <span class=${`confidence ${one.confidence}`}>${one.confidence}</span></p>`
        : html`<p class="muted">${one.text || "Not enough evidence."}</p>`}
      ${one.enough_evidence && html`<p>${one.text}</p>`}
      <p class="muted small">${words(one.rule)} · since step ${whole(one.since_step)}${one.source && html` · ${one.source}`}</p>
    </section>`;
}
