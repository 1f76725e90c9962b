// The list of runs: which are alive, which are healthy.

import { comparePath, runPath, runsOf } from "../address.js";
import { useGet, useNow } from "../data.js";
import { ago, asNumber, date, duration, number, percent, stepTime, timeLeft } from "../format.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../html.js";
import { useKeys } from "../keys.js";
import { Copied, Health, Loaded, Progress, RunState, Sparkline, useSend } from "../parts.js";
import { navigate, setView } from "../router.js";

const FILTERS = { health: ["ok", "warning", "critical"], state: ["running", "finished", "failed", "lost"] };
/** So many runs a comparison takes. */
const MOST_COMPARED = 20;
const ORDERS = {
  "-created_at": "newest first", created_at: "oldest first", "-updated_at": "last active first", name: "by name", "-name": "by name, from the end",
  "-last_step": "most steps first", last_step: "fewest steps first", "-open_alerts": "most open alerts first", open_alerts: "fewest open alerts first",
};
/** Headings, with the two orders of those that the list can be sorted by; the first is what a click begins with. */
const HEADINGS = /** @type {{text: string, title?: string, orders?: string[], right?: boolean}[]} */ ([
  { text: "Health", orders: ["-open_alerts", "open_alerts"] }, { text: "Run", orders: ["name", "-name"] }, { text: "State" }, { text: "Loss" },
  { text: "Progress", orders: ["-last_step", "last_step"] }, { text: "Rate", title: "Learning rate", right: true }, { text: "Step time", right: true },
  { text: "Overhead", right: true }, { text: "Age", orders: ["-created_at", "created_at"], right: true },
]);

/** @param {{address: import("../address.js").Address}} props */
export function Runs({ address }) {
  const { search = "", health = "", state = "", project = "", tag = "", order = "-created_at" } = address.view;
  const asked = { search, health, state, project, tag, order, limit: 100 };
  const answer = useGet("/runs", asked, { run: "*", pause: 700, hold: true });
  const projects = useGet("/projects", {}, { run: "*", pause: 10000 });
  const picked = runsOf(address.view.compare);
  const filtered = Boolean(search || health || state || project || tag);
  useEffect(() => void (document.title = "Runs · gradspectra"), []);
  return html`
    <div class="page">
      <div class="page-head"><h1>Runs</h1><${Filters} view=${{ search, health, state, project, tag, order }} projects=${projects.data?.items ?? []} /></div>
      <${Picked} runs=${picked} />
      <${Loaded} answer=${answer}>${(/** @type {any} */ data) =>
        data.items.length ? html`<${List} data=${data} behind=${answer.behind} asked=${asked} picked=${picked} />` : answer.behind ? html`<p class="note">Loading …</p>` : filtered ? html`<p class="panel pad note">No run fits these filters. <button type="button" onClick=${clear}>Show all runs</button></p>` : html`<${Empty} />`}</${Loaded}>
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

/** @param {{data: any, behind: boolean, asked: Record<string, any>, picked: string[]}} props */
function List({ data, behind, asked, picked }) {
  const now = useNow(5);
  const [chosen, choose] = useState("");
  const key = JSON.stringify(asked);
  const [wished, wish] = useState({ key, pages: 0 });
  const pages = wished.key === key ? wished.pages : 0;
  const table = useRef(/** @type {any} */ (null));
  const beside = (/** @type {string} */ old, /** @type {number} */ by) => {
    const runs = [...table.current.querySelectorAll("tr.row")].map((row) => row.dataset.run);
    return runs[Math.min(runs.length - 1, Math.max(0, runs.indexOf(old) + by))];
  };
  const move = (/** @type {number} */ by) => () => choose((old) => beside(old, by));
  useKeys({ j: move(1), k: move(-1), x: () => chosen && pick(turned(picked, chosen)) });
  useLayoutEffect(() => { // at once: an Enter may follow
    const row = table.current?.querySelector(".row.chosen");
    row?.scrollIntoView({ block: "nearest" });
    row?.querySelector("a").focus({ preventScroll: true }); // Enter opens what has the focus
  }, [chosen]);
  return html`
    <div class="panel runs" ref=${table}>
      <table>
        <thead><tr><th class="pick"><span class="unseen">Compare</span></th>${HEADINGS.map((one) => html`<${Heading} ...${one} order=${asked.order} />`)}</tr></thead>
        <tbody><${Rows} runs=${data.items} next=${behind ? null : data.next} pages=${pages} onMore=${() => wish({ key, pages: pages + 1 })} shown=${{ asked, now, chosen, picked }} /></tbody>
      </table>
    </div>`;
}

/** @param {{text: string, title?: string, orders?: string[], right?: boolean, order: string}} props */
function Heading({ text, title, orders = [], right = false, order }) {
  const side = right ? "right" : "";
  if (!orders.length) return html`<th class=${side} title=${title}>${text}</th>`;
  const sorted = orders.includes(order) ? (order.startsWith("-") ? "descending" : "ascending") : undefined;
  const turn = () => setView({ order: orders[order === orders[0] ? 1 : 0] });
  return html`<th class=${side} aria-sort=${sorted}><button type="button" class="sort" onClick=${turn}>${text}<span aria-hidden="true">${sorted && (sorted === "ascending" ? " ↑" : " ↓")}</span></button></th>`;
}

/** Runs, and below them the further pages that were asked for. Each page begins where the one above it now ends.
 * @param {{runs: any[], next: string | null, pages: number, onMore: () => void, shown: any}} props */
function Rows({ runs, next, pages, onMore, shown }) {
  const { asked, now, chosen, picked } = shown;
  return html`${runs.map((run) => html`<${Row} key=${run.id} run=${run} now=${now} chosen=${run.id === chosen} picked=${picked} />`)}
    ${next && (pages > 0
      ? html`<${More} key="more" asked=${{ ...asked, cursor: next }} pages=${pages - 1} onMore=${onMore} shown=${shown} />`
      : html`<tr key="more"><td class="whole-row" colspan="10"><button type="button" class="more" onClick=${onMore}>Show more runs</button></td></tr>`)}`;
}

/** A further page of runs. @param {{asked: Record<string, unknown>, pages: number, onMore: () => void, shown: any}} props */
function More({ asked, pages, onMore, shown }) {
  const answer = useGet("/runs", asked, { run: "*", pause: 3000, hold: true });
  if (!answer.data) return html`<tr><td class="whole-row" colspan="10"><${Loaded} answer=${answer}>${() => ""}</${Loaded}></td></tr>`;
  return html`<${Rows} runs=${answer.data.items} next=${answer.data.next} pages=${pages} onMore=${onMore} shown=${shown} />`;
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
      <td data-label="Loss" class="loss"><span class=${`num ${losses.length && !Number.isFinite(asNumber(losses.at(-1)) ?? 0) ? "lost" : ""}`}>${number(losses.at(-1) ?? null)}</span> <${Sparkline} values=${losses} label="loss over the run" width=${84} /></td>
      <td data-label="Progress"><${Progress} done=${run.last_step} total=${run.total_steps} />${left !== null && left > 0 && html`<span class="muted small left">${duration(left)} left</span>`}</td>
      <td data-label="Learning rate" class="right num">${number(run.learning_rate, 3)}</td>
      <td data-label="Step time" class="right num">${stepTime(run.step_seconds)}</td>
      <td data-label="Overhead" class="right num">${percent(run.overhead)}</td>
      <td data-label="Age" class="right num age" title=${date(run.created_at)}>${ago(run.created_at, now)}</td>
    </tr>`;
}

const LINES = `import gradspectra
watch = gradspectra.watch(model, optimizer, project="my-project", run="first")
watch.log(loss=loss)  # in the training loop, at each step`;

/** Another server may have the usual port: this one. */
const DEMO = "gradspectra demo --port 0";

function Empty() {
  const me = useGet("/me");
  return html`
    <div class="panel pad empty">
      <h2>No run yet</h2>
      <p>Paste three lines into a training script:</p>
      <div class="code"><${Copied} text=${LINES} /><pre>${LINES}</pre></div>
      <p>and tell it, in the shell that starts it, where this server is:</p>
      <${Loaded} answer=${me}>${(/** @type {any} */ data) => html`<${Where} me=${data} />`}</${Loaded}>
      <p>Its run shows here with the first step, by itself. Or watch a small real training job now, on a server of its own:</p>
      <div class="code"><${Copied} text=${DEMO} /><pre>${DEMO}</pre></div>
    </div>`;
}

/** What a training job is told of this server: its address, and a token where it asks for one. @param {{me: any}} props */
function Where({ me }) {
  const [send, problem] = useSend();
  const [token, setToken] = useState("");
  const asks = me.tokens_required;
  const makes = asks && me.scopes.includes("admin");
  const make = async () => {
    const made = await send("POST", "/tokens", { name: "training", scopes: ["ingest", "read"] });
    if (made) setToken(made.token);
  };
  const settings = `export GRADSPECTRA_SERVER=${location.origin}${asks ? `\nexport GRADSPECTRA_TOKEN=${token || "gs_…"}` : ""}`;
  return html`
    <div class="code"><${Copied} text=${settings} /><pre>${settings}</pre></div>
    ${token && html`<p role="status"><strong>Copy it now, the token is shown only here and only once.</strong> It may send records and read; the settings revoke it.</p>`}
    ${makes && !token && html`<p><button type="button" class="primary" onClick=${make}>Put a new token in</button></p>`}
    ${asks && !makes && html`<p>In place of gs_… goes a token: who looks after this server makes one in its settings, or there by <code>gradspectra token create training</code>.</p>`}
    ${problem}`;
}
