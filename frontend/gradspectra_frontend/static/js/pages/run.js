// One run: is it alive and healthy, in one sentence; then its tabs.

import { kept, runPath, TAB_NAMES, TABS } from "../address.js";
import { useGet, useNow } from "../data.js";
import { ago, duration, timeLeft } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { useKeys, useMoves } from "../keys.js";
import { Problem, Progress, RunState } from "../parts.js";
import { navigate } from "../router.js";
import { verdict } from "../verdict.js";
import { RunAlerts } from "./alerts.js";
import { Details } from "./details.js";
import { Layers } from "./layers.js";
import { Overview } from "./overview.js";
import { Rates } from "./rates.js";
import { Spectra } from "./spectra.js";

const VIEWS = { overview: Overview, layers: Layers, spectra: Spectra, "learning-rate": Rates, alerts: RunAlerts, details: Details };
/** Tabs whose figures need no more of the run than its name in the address: they do not wait for the rest. */
const AT_ONCE = ["overview", "layers"];
const MARKS = { ok: "●", warning: "▲", critical: "◆" };

/** Whether an answer is there, or failed. @param {{data: any, failure: any}} answer */
const known = (answer) => Boolean(answer.data || answer.failure);

/** The nearest index that the list has. @param {unknown[]} list @param {number} index */
const within = (list, index) => Math.min(list.length - 1, Math.max(0, index));

/** @param {{address: import("../address.js").Address}} props */
export function Run({ address }) {
  const run = /** @type {string} */ (address.run);
  const path = `/runs/${encodeURIComponent(run)}`;
  const answer = useGet(path, {}, { run, pause: 400 });
  const alerts = useGet(`${path}/alerts`, { limit: 500 }, { run, pause: 1000 });
  const [moving, setMoving] = useState(false); // the other runs are asked for when the first key wants to go to one
  const runs = useGet(moving ? "/runs" : null, { limit: 100 });
  const go = (/** @type {string} */ tab) => navigate(runPath(run, tab, kept(address.view)));
  const move = useMoves(known(runs), (by) => {
    const ids = (runs.data?.items ?? []).map((/** @type {any} */ one) => one.id);
    const next = ids[within(ids, ids.indexOf(run) + by)];
    if (next && next !== run) navigate(runPath(next, address.tab));
  });
  const beside = (/** @type {number} */ by) => () => (setMoving(true), move(by)());
  const step = useMoves(known(alerts), (by) => {
    const ids = (alerts.data?.items ?? []).map((/** @type {any} */ one) => one.id);
    if (!ids.length) return;
    const named = ids.indexOf(address.view.alert);
    const at = named < 0 && address.tab === "alerts" ? 0 : named;
    const to = at >= 0 ? at + by : by > 0 ? by - 1 : ids.length + by;
    navigate(runPath(run, "alerts", { ...kept(address.view), alert: ids[within(ids, to)] }));
  });
  const tabKeys = Object.fromEntries(TABS.map((tab, i) => [String(i + 1), () => go(tab)]));
  useKeys({ ...tabKeys, j: beside(1), k: beside(-1), "]": step(1), "[": step(-1) });
  useEffect(() => void (document.title = `${answer.data?.name ?? (answer.failure?.status === 404 ? "No such run" : "Run")} · gradspectra`), [answer.data?.name, answer.failure]);
  useEffect(() => void document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }), [address.tab, answer.data === null]);
  const Tab = VIEWS[/** @type {keyof typeof VIEWS} */ (address.tab)];
  const data = answer.data ?? { id: run, last_step: null, overhead: null, open_alerts: 0 };
  if (answer.failure && (answer.data === null || answer.failure.status === 404)) return html`<${Unread} run=${run} name=${answer.data?.name} failure=${answer.failure} />`;
  return html`<div class="page">
    ${answer.data === null ? html`<p class="note run-head">Loading …</p>` : html`<${Header} run=${data} alerts=${alerts.data?.items ?? null} />`}
    ${answer.failure && html`<${Problem} failure=${answer.failure} />`}
    <nav class="tabs" aria-label="Views of this run">${TABS.map((tab, i) => html`
      <a href=${runPath(run, tab, kept(address.view))} aria-current=${tab === address.tab ? "page" : undefined} title=${`key ${i + 1}`} data-tab=${tab}>
        ${TAB_NAMES[/** @type {keyof typeof TAB_NAMES} */ (tab)]}${tab === "alerts" && data.open_alerts > 0 && html` <span class="count">${data.open_alerts}</span>`}</a>`)}</nav>
    <h2 class="unseen">${TAB_NAMES[/** @type {keyof typeof TAB_NAMES} */ (address.tab)]}</h2>
    ${(answer.data !== null || AT_ONCE.includes(address.tab)) && html`<${Tab} run=${data} view=${address.view} alerts=${alerts} onChanged=${answer.again} />`}</div>`;
}

/** In place of a run that cannot be read: why, and where to go on. @param {{run: string, name?: string, failure: any}} props name: of a run that was shown before */
function Unread({ run, name, failure }) {
  const deleted = { title: "This run was deleted", detail: `“${name}” and everything it had recorded is gone.`, remedy: "If nobody deleted it, the server was put back to a backup that does not have it." };
  const missing = name !== undefined ? deleted : { title: "There is no such run here", detail: `This server knows of no run “${run}”.`, remedy: "It was deleted, or the link belongs to another server." };
  return html`<div class="page narrow"><h1 class="unseen">Run</h1><${Problem} failure=${failure.status === 404 ? missing : failure} /><p><a class="button" href="/">All runs</a></p></div>`;
}

/** @param {{run: any, alerts: any[] | null}} props alerts: null while they are not known */
function Header({ run, alerts }) {
  const now = useNow(1);
  const said = verdict(run, alerts, now);
  const left = run.state === "running" ? timeLeft(run) : null;
  return html`
    <div class="run-head">
      <p class="crumbs small"><a href="/">Runs</a> / <a href=${`/?project=${encodeURIComponent(run.project)}`}>${run.project}</a></p>
      <div class="run-title">
        <h1>${run.name}</h1><${RunState} state=${run.state} />
        ${run.attempt > 1 && html`<span class="muted small">attempt ${run.attempt}</span>`}
        <span class="spread"></span>
        <span class="run-progress"><${Progress} done=${run.last_step} total=${run.total_steps} />
          <span class="muted small">${left ? `${duration(left)} left · ` : ""}${run.state === "running" ? "" : "last heard "}${ago(run.updated_at, now)}</span></span>
      </div>
      <p class=${`verdict ${said.health}`} data-verdict=${said.health}><span class="mark" aria-hidden="true">${MARKS[/** @type {keyof typeof MARKS} */ (said.health)]}</span> ${said.text}</p>
    </div>`;
}
