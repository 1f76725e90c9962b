// Details of a run: what it was started with, on what, its attempts and gaps; tags and notes; files; ending, deleting it.

import { address } from "../api.js";
import { useGet } from "../data.js";
import { date, flattened, percent, whole, words } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { Loaded, Sure, useSend } from "../parts.js";
import { navigate } from "../router.js";

/** @param {{run: any, onChanged: () => void}} props */
export function Details({ run, onChanged }) {
  const path = `/runs/${encodeURIComponent(run.id)}`;
  const attempts = useGet(`${path}/attempts`, {}, { run: run.id, pause: 15000 });
  const gaps = useGet(`${path}/gaps`, {}, { run: run.id, pause: 15000 });
  const facts = [
    ["id", run.id], ["project", run.project], ["state", run.state], ["created", date(run.created_at)], ["last heard", date(run.updated_at)],
    ["steps", `${whole(run.last_step)}${run.total_steps ? ` of ${whole(run.total_steps)}` : ""}`], ["derived up to step", whole(run.derived_step)], ["agent overhead", percent(run.overhead)],
  ];
  return html`
    <div class="columns">
      <${Edit} run=${run} path=${path} onChanged=${onChanged} />
      <section class="panel"><h3 class="pad-head">Run</h3><${Pairs} pairs=${facts} /></section>
      <section class="panel"><h3 class="pad-head">Configuration</h3><${Pairs} pairs=${flattened(run.config)} none="The run was started without a configuration." /></section>
      <section class="panel"><h3 class="pad-head">Environment</h3><${Pairs} pairs=${flattened(run.environment)} none="Nothing was recorded." /></section>
      <section class="panel"><h3 class="pad-head">Attempts</h3><${Loaded} answer=${attempts}>${(/** @type {any} */ data) => html`<${Table} rows=${data.items} none="One attempt." />`}</${Loaded}></section>
      <section class="panel" data-panel="unmeasured"><h3 class="pad-head">Not measured</h3><${Loaded} answer=${attempts}>${(/** @type {any} */ data) => html`<${Unmeasured} attempt=${data.items.at(-1)} />`}</${Loaded}></section>
      <section class="panel"><h3 class="pad-head">Gaps</h3><${Loaded} answer=${gaps}>${(/** @type {any} */ data) => html`<${Table} rows=${data.items} none="No step was lost." />`}</${Loaded}></section>
      <${Export} path=${path} />
      ${["running", "lost"].includes(run.state) && html`<${End} run=${run} path=${path} onChanged=${onChanged} />`}
      <${Retention} run=${run} path=${path} onChanged=${onChanged} />
      <${Delete} run=${run} path=${path} />
    </div>`;
}

/** @param {{pairs: string[][], none?: string}} props */
function Pairs({ pairs, none = "" }) {
  if (!pairs.length) return html`<p class="note">${none}</p>`;
  return html`<div class="scroll" tabindex="0"><table class="data pairs"><tbody>${pairs.map(([name, value]) => html`<tr><th scope="row">${name}</th><td class="mono">${value}</td></tr>`)}</tbody></table></div>`;
}

/** @param {{rows: any[], none: string}} props */
function Table({ rows, none }) {
  if (!rows.length) return html`<p class="note">${none}</p>`;
  const names = Object.keys(rows[0]).filter((name) => typeof rows[0][name] !== "object" || rows[0][name] === null);
  const shown = (/** @type {string} */ name, /** @type {any} */ value) => (value === null ? "–" : name.endsWith("_at") ? date(value) : typeof value === "number" ? whole(value) : String(value));
  return html`<div class="scroll" tabindex="0"><table class="data"><thead><tr>${names.map((name) => html`<th>${words(name)}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${names.map((name) => html`<td class="num">${shown(name, row[name])}</td>`)}</tr>`)}</tbody></table></div>`;
}

/** What the job of the present attempt does not measure, and why. @param {{attempt: any}} props */
function Unmeasured({ attempt }) {
  const { not_measured: reasons, norms_that_disagreed: times } = attempt;
  if (!reasons.length && !times) return html`<p class="note">The job told of nothing that is left out.</p>`;
  return html`
    ${times > 0 && html`<p class="note"><strong>At ${whole(times)} ${times === 1 ? "step" : "steps"} the layers' norms did not give the total norm.</strong> Something changed the gradient unseen, after it was clipped or between: what depends on its size is left out there. Tell of a clip of your own by watch.log(grad_norm=…).</p>`}
    ${reasons.length > 0 && html`<ul class="note">${reasons.map((/** @type {string} */ reason) => html`<li>${reason}</li>`)}</ul>`}`;
}

/** Name, tags and notes. What is being typed stays while the run goes on. @param {{run: any, path: string, onChanged: () => void}} props */
function Edit({ run, path, onChanged }) {
  const [send, problem] = useSend();
  const [said, say] = useState("");
  const [draft, setDraft] = useState(/** @type {Record<string, string>} */ ({})); // what was typed, and nothing else, is sent
  const [saved, setSaved] = useState(/** @type {any} */ (null));
  useEffect(() => setSaved(null), [run]);
  const now = saved ?? run;
  const { name, tags, notes } = { name: now.name, tags: now.tags.join(", "), notes: now.notes, ...draft };
  const type = (/** @type {any} */ event) => {
    setDraft({ ...draft, [event.target.name]: event.target.value });
    say("");
  };
  const save = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const named = draft.tags === undefined ? {} : { tags: draft.tags.split(",").map((tag) => tag.trim()).filter(Boolean) };
    const done = await send("PATCH", path, { ...draft, ...named });
    say(done ? "Saved." : "");
    if (!done) return;
    setSaved(done);
    setDraft({});
    onChanged();
  };
  return html`
    <form class="panel pad edit" onSubmit=${save}>
      <h3>Name, tags and notes</h3>
      <label>Name <input name="name" required maxlength="200" value=${name} onInput=${type} /></label>
      <label>Tags, separated by commas <input name="tags" value=${tags} onInput=${type} /></label>
      <label>Notes <textarea name="notes" rows="5" value=${notes} onInput=${type}></textarea></label>
      ${problem}<div class="actions"><button class="primary">Save</button><span role="status" class="muted">${said}</span></div>
    </form>`;
}

const TABLES = { series: "Scalars and run metrics", layers: "Layer values", spectra: "Spectra" };
const FORMATS = { csv: "CSV", json: "JSON", parquet: "Parquet" };

/** Links to the run's files; without `download`, so that a refusal is shown and says why. @param {{path: string}} props */
function Export({ path }) {
  return html`
    <section class="panel"><h3 class="pad-head">Export</h3>
      <div class="scroll"><table class="data pairs"><tbody>${Object.entries(TABLES).map(([what, title]) => html`<tr><th scope="row">${title}</th>
        <td class="actions">${Object.entries(FORMATS).map(([format, name]) => html`<a href=${address(`${path}/export`, { format, what })} aria-label=${`${title} as ${name}`}>${name}</a>`)}</td></tr>`)}</tbody></table></div>
      <p class="note">Every recorded step, not only what the figures show.</p></section>`;
}

/** Until when every number is kept, and pinning. @param {{run: any, path: string, onChanged: () => void}} props */
function Retention({ run, path, onChanged }) {
  const [send, problem] = useSend();
  const pin = (/** @type {boolean} */ pinned) => async () => (await send("PATCH", path, { pinned })) && onChanged();
  return html`
    <section class="panel pad" data-panel="retention"><h3>Retention</h3>
      <p>${kept(run)}</p>
      ${problem}<button type="button" onClick=${pin(!run.pinned)}>${run.pinned ? "Unpin this run" : "Pin this run"}</button>
      ${!run.pinned && html`<p class="muted small">A pinned run is left alone for ever. <a href="/settings">What is kept for how long</a></p>`}</section>`;
}

/** @param {any} run */
function kept(run) {
  const before = run.retired_at ? `Since ${date(run.retired_at)} only coarse layer values and some of the spectra are left of what it had recorded by then. ` : "";
  if (run.pinned) return `${before}The run is pinned: ${before ? "nothing more goes." : "every number is kept."}`;
  if (run.retires_at) return `${before}Every number is kept until ${date(run.retires_at)}; after that layer values in coarser steps, and some of the spectra.`;
  return before || (run.state === "running" ? "Every number is kept while the run goes on, and long after." : "Every number is kept for ever.");
}

/** For a run whose job is gone and never said so. @param {{run: any, path: string, onChanged: () => void}} props */
function End({ run, path, onChanged }) {
  const [send, problem] = useSend();
  const end = (/** @type {string} */ state) => async () => (await send("PATCH", path, { state })) && onChanged();
  const what = run.state === "lost" ? "Nothing was heard of the job for a minute. If it is gone, say how it ended; if it is not, the run goes on with the next record." : "Only for a job that is gone and never said so. It stops no job: what one still sends is kept.";
  return html`
    <section class="panel pad" data-panel="end"><h3>End</h3><p>${what}</p>
      ${problem}<div class="actions">
        <${Sure} kind="" label="It has finished …" sure=${`End “${run.name}” as finished?`} onSure=${end("finished")} />
        <${Sure} kind="" label="It has failed …" sure=${`End “${run.name}” as failed?`} onSure=${end("failed")} /></div></section>`;
}

/** @param {{run: any, path: string}} props */
function Delete({ run, path }) {
  const [send, problem] = useSend();
  const remove = async () => (await send("DELETE", path)) && navigate("/");
  return html`
    <section class="panel pad" data-panel="delete"><h3>Delete</h3>
      <p>Deletes the run with everything it recorded and all that was derived from it. This cannot be undone.</p>
      ${run.state === "running" && html`<p class="muted">The run is still going: what it sends afterwards is refused.</p>`}
      ${problem}<${Sure} label="Delete this run …" sure=${`Delete “${run.name}” for good?`} onSure=${remove} /></section>`;
}
