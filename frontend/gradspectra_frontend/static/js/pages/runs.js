// The list of runs: which are alive, which are healthy.

import { comparePath, runPath, runsOf } from "../address.js";
import { useGet, useNow } from "../data.js";
import { ago, asNumber, date, duration, number, percent, timeLeft } from "../format.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../html.js";
import { useKeys } from "../keys.js";
import { Copied, Health, Loaded, Progress, RunState, Sparkline } from "../parts.js";
import { navigate, setView } from "../router.js";

const FILTERS = { health: ["ok", "warning", "critical"], state: ["running", "finished", "failed", "lost"] };
/** So many runs a comparison takes. */
const MOST_COMPARED = 20;
const ORDERS = { "-created_at": "newest first", "-updated_at": "last active first", name: "by name", "-last_step": "most steps first" };

/** @param {{address: import("../address.js").Address}} props */
export function Runs({ address }) {
  const { search = "", health = "", state = "", project = "", tag = "", order = "-created_at" } = address.view;
  const asked = { search, health, state, project, tag, order, limit: 100 };
  const answer = useGet("/runs", asked, { run: "*", pause: 700 });
  const projects = useGet("/projects", {}, { run: "*", pause: 10000 });
  const picked = runsOf(address.view.compare);
  const filtered = Boolean(search || health || state || project || tag);
  useEffect(() => void (document.title = "Runs · gradspectra"), []);
  return html`
    <div class="page">
      <div class="page-head"><h1>Runs</h1><${Filters} view=${{ search, health, state, project, tag, order }} projects=${projects.data?.items ?? []} /></div>
      <${Picked} runs=${picked} />
      <${Loaded} answer=${answer}>${(/** @type {any} */ data) =>
        data.items.length ? html`<${List} data=${data} asked=${asked} picked=${picked} />` : filtered ? html`<p class="panel pad note">No run fits these filters. <button type="button" onClick=${clear}>Show all runs</button></p>` : html`<${Empty} />`}</${Loaded}>
    </div>`;
}

const clear = () => setView({ search: null, health: null, state: null, project: null, tag: null });

/** @param {{view: Record<string, string>, projects: any[]}} props */
function Filters({ view, projects }) {
  const choose = (/** @type {string} */ name) => (/** @type {any} */ event) => setView({ [name]: event.target.value });
  const names = projects.map((one) => one.name ?? one.project);
  return html`
    <form class="filters" role="search" onSubmit=${(/** @type {Event} */ e) => e.preventDefault()}>
      <input type="search" data-search placeholder="Search  /" aria-label="Search runs by name, project or notes" value=${view.search} onInput=${choose("search")} />
      ${names.length > 1 && html`<${Choice} name="project" values=${names} value=${view.project} onChange=${choose("project")} />`}
      ${Object.entries(FILTERS).map(([name, values]) => html`<${Choice} name=${name} values=${values} value=${view[name]} onChange=${choose(name)} />`)}
      ${view.tag && html`<button type="button" class="tag" onClick=${() => setView({ tag: null })} title="Do not filter by this tag">${view.tag} ✕</button>`}
      <select aria-label="Order" value=${view.order} onChange=${choose("order")}>${Object.entries(ORDERS).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select>
    </form>`;
}

/** @param {{name: string, values: string[], value: string, onChange: (event: any) => void}} props */
const Choice = ({ name, values, value, onChange }) => html`
  <select aria-label=${`Filter by ${name}`} value=${value} onChange=${onChange} class=${value ? "chosen" : ""}>
    <option value="">any ${name}</option>${values.map((one) => html`<option value=${one}>${one}</option>`)}
  </select>`;

/** @param {string[]} runs */
const pick = (runs) => setView({ compare: runs.join(",") });

/** Put a run among those to compare, or take it from them. @param {string[]} picked @param {string} run */
const turned = (picked, run) => (picked.includes(run) ? picked.filter((one) => one !== run) : [...picked, run].slice(0, MOST_COMPARED));

/** What can be done with the runs that were chosen. @param {{runs: string[]}} props */
function Picked({ runs }) {
  useKeys({ c: () => runs.length > 1 && navigate(comparePath(runs)) });
  if (!runs.length) return null;
  return html`<div class="panel pad picked" data-panel="picked" role="status">
    <span>${runs.length === 1 ? "1 run is chosen: choose another to compare it with." : `${runs.length} runs are chosen${runs.length === MOST_COMPARED ? ", as many as can be compared" : ""}.`}</span>
    ${runs.length > 1 && html`<a class="button" data-action="compare" href=${comparePath(runs)}>Compare</a>`}
    <button type="button" class="quiet" onClick=${() => pick([])}>Choose none</button></div>`;
}

/** @param {{data: any, asked: Record<string, unknown>, picked: string[]}} props */
function List({ data, asked, picked }) {
  const now = useNow(1);
  const [chosen, choose] = useState("");
  const [cursors, setCursors] = useState(/** @type {string[]} */ ([]));
  const runs = data.items;
  const table = useRef(/** @type {any} */ (null));
  const beside = (/** @type {string} */ old, /** @type {number} */ by) => {
    const at = runs.findIndex((/** @type {any} */ one) => one.id === old);
    return runs[Math.min(runs.length - 1, Math.max(0, at + by))].id;
  };
  const move = (/** @type {number} */ by) => () => choose((old) => beside(old, by));
  useKeys({ j: move(1), k: move(-1), x: () => chosen && pick(turned(picked, chosen)) });
  useLayoutEffect(() => { // at once: an Enter may follow
    const row = table.current?.querySelector(".row.chosen");
    row?.scrollIntoView({ block: "nearest" });
    row?.querySelector("a").focus({ preventScroll: true }); // Enter opens what has the focus
  }, [chosen]);
  const next = cursors.length ? null : data.next;
  return html`
    <div class="panel runs" ref=${table}>
      <table>
        <thead><tr><th class="pick"><span class="unseen">Compare</span></th><th>Health</th><th>Run</th><th>State</th><th>Loss</th><th>Progress</th><th class="right">Overhead</th><th class="right">Age</th></tr></thead>
        <tbody>${runs.map((/** @type {any} */ run) => html`<${Row} key=${run.id} run=${run} now=${now} chosen=${run.id === chosen} picked=${picked} />`)}
          ${cursors.map((cursor, i) => html`<${More} key=${cursor} asked=${{ ...asked, cursor }} now=${now} picked=${picked} last=${i === cursors.length - 1} onMore=${(/** @type {string} */ next) => setCursors([...cursors, next])} />`)}</tbody>
      </table>
      ${next && html`<button type="button" class="more" onClick=${() => setCursors([next])}>Show more runs</button>`}
    </div>`;
}

/** A further page of runs. @param {{asked: Record<string, unknown>, now: number, picked: string[], last: boolean, onMore: (cursor: string) => void}} props */
function More({ asked, now, picked, last, onMore }) {
  const answer = useGet("/runs", asked);
  if (!answer.data) return html`<tr><td colspan="8"><${Loaded} answer=${answer}>${() => ""}</${Loaded}></td></tr>`;
  const { items, next } = answer.data;
  return html`${items.map((/** @type {any} */ run) => html`<${Row} key=${run.id} run=${run} now=${now} chosen=${false} picked=${picked} />`)}
    ${last && next && html`<tr><td colspan="8"><button type="button" class="more" onClick=${() => onMore(next)}>Show more runs</button></td></tr>`}`;
}

/** @param {{run: any, now: number, chosen: boolean, picked: string[]}} props */
function Row({ run, now, chosen, picked }) {
  const losses = run.sparkline ?? [];
  const left = run.state === "running" ? timeLeft(run) : null;
  const open = (/** @type {MouseEvent} */ event) => {
    if (!(event.target instanceof Element) || !event.target.closest("a, button, input, .pick")) navigate(runPath(run.id));
  };
  return html`
    <tr class=${`row ${chosen ? "chosen" : ""}`} data-run=${run.id} onClick=${open}>
      <td class="pick"><input type="checkbox" aria-label=${`Compare ${run.name}`} checked=${picked.includes(run.id)}
        disabled=${picked.length >= MOST_COMPARED && !picked.includes(run.id)} onChange=${() => pick(turned(picked, run.id))} /></td>
      <td data-label="Health"><${Health} health=${run.health} count=${run.open_alerts} /></td>
      <td class="name"><a href=${runPath(run.id)}>${run.name}</a><span class="muted small">${run.project}${run.attempt > 1 && ` · attempt ${run.attempt}`}${run.pinned && " · pinned"}
        ${run.tags.map((/** @type {string} */ tag) => html` <button type="button" class="tag" onClick=${() => setView({ tag })} title="Only runs with this tag">${tag}</button>`)}</span></td>
      <td data-label="State"><${RunState} state=${run.state} /></td>
      <td data-label="Loss" class="loss"><span class=${`num ${losses.length && !Number.isFinite(asNumber(losses.at(-1)) ?? 0) ? "lost" : ""}`}>${number(losses.at(-1) ?? null)}</span> <${Sparkline} values=${losses} label="loss over the run" /></td>
      <td data-label="Progress"><${Progress} done=${run.last_step} total=${run.total_steps} />${left !== null && left > 0 && html`<span class="muted small">${duration(left)} left</span>`}</td>
      <td data-label="Overhead" class="right num">${percent(run.overhead)}</td>
      <td data-label="Age" class="right num age" title=${date(run.created_at)}>${ago(run.created_at, now)}</td>
    </tr>`;
}

function Empty() {
  const me = useGet("/me");
  const server = location.origin;
  const lines = `import gradspectra
watch = gradspectra.watch(model, optimizer, project="my-project", run="first")
watch.log(loss=loss)  # in the training loop, at each step`;
  const settings = `export GRADSPECTRA_SERVER=${server}${me.data?.tokens_required ? "\nexport GRADSPECTRA_TOKEN=gs_…   # made under Settings, or by: gradspectra token create" : ""}`;
  return html`
    <div class="panel pad empty">
      <h2>No run yet</h2>
      <p>Paste three lines into a training script:</p>
      <div class="code"><${Copied} text=${lines} /><pre>${lines}</pre></div>
      <p>and tell it where this server is:</p>
      <div class="code"><${Copied} text=${settings} /><pre>${settings}</pre></div>
      <p>Its run shows here with the first step, by itself. Or watch a small real training job now:</p>
      <div class="code"><${Copied} text="gradspectra demo" /><pre>gradspectra demo</pre></div>
    </div>`;
}
