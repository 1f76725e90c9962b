// Settings: tokens (shown once when made), the channels that alerts are delivered to, what is kept for how long, and the rules.

import { runPath } from "../address.js";
import { useGet } from "../data.js";
import { bytes, date, number, words } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { Copied, Loaded, Problem, Severity, Sure, useSend } from "../parts.js";

const MAY = { ingest: "send records", read: "read everything", admin: "change, delete, make tokens" };

export function Settings() {
  useEffect(() => void (document.title = "Settings · gradspectra"), []);
  return html`<div class="page"><div class="page-head"><h1>Settings</h1></div><div class="columns"><${Tokens} /><${Channels} /><${Retention} /></div><${Rules} /></div>`;
}

function Tokens() {
  const answer = useGet("/tokens");
  const me = useGet("/me");
  const [send, problem] = useSend();
  const [made, setMade] = useState(/** @type {any} */ (null));
  const make = async (/** @type {any} */ event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const token = await send("POST", "/tokens", { name: form.get("name"), scopes: form.getAll("scope") });
    if (token) {
      setMade(token);
      event.target.reset?.();
      answer.again();
    }
  };
  const revoke = (/** @type {string} */ id) => async () => (await send("DELETE", `/tokens/${encodeURIComponent(id)}`)) && answer.again();
  return html`
    <section class="panel pad edit"><h2>Tokens</h2>
      ${me.data && !me.data.tokens_required && html`<p class="muted">This server listens on its own machine only and asks nobody for a token.</p>`}
      ${me.data?.how === "cookie" && html`<${SignOut} scopes=${me.data.scopes} />`}
      <form onSubmit=${make}><label>What it is for <input name="name" required maxlength="200" placeholder="training cluster" /></label>
        <fieldset><legend>It may</legend>${Object.entries(MAY).map(([scope, what]) => html`
          <label class="check"><input type="checkbox" name="scope" value=${scope} defaultChecked=${scope !== "admin"} /> ${what}</label>`)}</fieldset>
        <button class="primary">Make a token</button></form>
      ${made && html`<div class="problem good" role="status"><strong>Copy it now, it is shown only once:</strong><div class="code"><${Copied} text=${made.token} /><pre>${made.token}</pre></div></div>`}
      ${problem}
      <${Loaded} answer=${answer}>${(/** @type {any} */ data) => data.items.length ? html`<div class="scroll"><table class="data"><thead><tr><th>For</th><th>May</th><th>Made</th><th><span class="unseen">Revoke</span></th></tr></thead>
        <tbody>${data.items.map((/** @type {any} */ one) => html`<tr class=${one.revoked_at ? "unsure" : ""}><td>${one.name}</td><td>${[...one.scopes].join(", ")}</td><td>${date(one.created_at)}</td>
          <td>${one.revoked_at ? "revoked" : html`<${Sure} label="Revoke" of=${one.name} sure="Revoke it?" onSure=${revoke(one.id)} />`}</td></tr>`)}</tbody></table></div>` : html`<p class="note">No token yet.</p>`}</${Loaded}>
    </section>`;
}

/** @param {{scopes: string[]}} props */
function SignOut({ scopes }) {
  const [failure, setFailure] = useState(/** @type {any} */ (null));
  const leave = async () => {
    const response = await fetch("/logout", { method: "POST" }).catch(() => null);
    if (response?.ok || response?.status === 401) location.assign("/login"); // loaded anew: nothing of what was read stays
    else setFailure({ title: response ? response.statusText : "The server does not answer" });
  };
  const may = scopes.map((one) => MAY[/** @type {keyof typeof MAY} */ (one)] ?? one).join("; ");
  return html`<p>You are signed in. Your token may ${may}.</p>
    ${failure && html`<${Problem} failure=${failure} />`}
    <div><button type="button" data-action="sign-out" onClick=${leave}>Sign out</button></div>`;
}

function Channels() {
  const answer = useGet("/channels");
  const [send, problem] = useSend();
  const [said, say] = useState("");
  const add = async (/** @type {any} */ event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const body = { kind: "webhook", name: form.get("name"), url: form.get("url"), min_severity: form.get("min_severity"), ...(form.get("secret") ? { secret: form.get("secret") } : {}) };
    if (!(await send("POST", "/channels", body))) return;
    event.target.reset();
    answer.again();
  };
  const test = (/** @type {string} */ id) => async () => {
    const done = await send("POST", `/channels/${encodeURIComponent(id)}/test`);
    say(done ? "A test alert is on its way." : "");
  };
  const remove = (/** @type {string} */ id) => async () => (await send("DELETE", `/channels/${encodeURIComponent(id)}`)) && answer.again();
  return html`
    <section class="panel pad edit"><h2>Delivery of alerts</h2>
      <p class="muted">A webhook gets each alert as JSON when it opens or gets worse, signed with the secret (header X-Gradspectra-Signature).</p>
      <form onSubmit=${add}><label>Name <input name="name" required maxlength="200" /></label><label>Address <input name="url" type="url" required placeholder="https://…" /></label>
        <label>Secret for the signature <input name="secret" type="password" autocomplete="off" /></label>
        <label>From severity <select name="min_severity"><option value="info">info</option><option value="warning" selected>warning</option><option value="critical">critical</option></select></label>
        <button class="primary">Add the webhook</button></form>
      ${problem}<p role="status">${said}</p>
      <${Loaded} answer=${answer}>${(/** @type {any} */ data) => data.items.length ? html`<div class="scroll"><table class="data"><thead><tr><th>Name</th><th>Address</th><th><span class="unseen">Test or remove</span></th></tr></thead>
        <tbody>${data.items.map((/** @type {any} */ one) => html`<tr><td>${one.name ?? one.kind}</td><td class="mono">${one.url}</td><td class="actions">
          <button type="button" aria-label=${`Send a test to ${one.name ?? one.kind}`} onClick=${test(one.id)}>Send a test</button><${Sure} label="Remove" of=${one.name ?? one.kind} sure="Remove it?" onSure=${remove(one.id)} /></td></tr>`)}</tbody></table></div>` : html`<p class="note">Alerts are shown here only, and delivered to nobody.</p>`}</${Loaded}>
    </section>`;
}

function Retention() {
  const answer = useGet("/retention", { limit: 20 });
  return html`
    <section class="panel pad" data-panel="retention"><h2>Retention</h2>
      <${Loaded} answer=${answer}>${(/** @type {any} */ { retention, items, next }) => retention.on ? html`
        <p>${retention.days} days after a run ended, its layer values are kept in buckets of ${retention.width} steps, and ${retention.spectra} spectra of each layer and matrix. Everything else is kept in full, and a pinned run is left alone.</p>
        <p class="muted">In force since ${date(retention.since)}; nothing goes before it was so for ${retention.notice_days} days. Set by GRADSPECTRA_RETENTION_DAYS, _LEVEL and _SPECTRA where the server starts; 0 days switch it off.</p>
        ${items.length ? html`<div class="scroll"><table class="data"><thead><tr><th>When</th><th>Run</th><th class="right">Now</th><th class="right">After</th></tr></thead>
          <tbody>${items.map((/** @type {any} */ one) => html`<tr><td>${date(one.retires_at)}</td><td><a href=${runPath(one.run, "details")}>${one.name}</a> <span class="muted small">${one.project}</span></td>
            <td class="right num">${bytes(one.bytes)}</td><td class="right num">${bytes(one.bytes_after)}</td></tr>`)}</tbody></table></div>
          ${next && html`<p class="note">And later ones: <code>gradspectra retention</code> lists them all.</p>`}` : html`<p class="note">There is no run that it comes to.</p>`}`
        : html`<p>Retention is off: every number is kept for ever.</p>`}</${Loaded}></section>`;
}

function Rules() {
  const answer = useGet("/rules");
  return html`
    <section class="panel pad rules" data-panel="rules"><h2>Alert rules</h2>
      <p class="muted">They and their thresholds are the same for every run. One that is no news in a run is muted there, under its alerts. Those marked “in the job” are looked at by the training job too, for on_alert and stop_on.</p>
      <${Loaded} answer=${answer}>${(/** @type {any} */ data) => html`<div class="scroll"><table class="data rules-table"><thead><tr><th>Rule</th><th>Opens as</th><th>Reads</th><th>Thresholds</th><th>What it means</th></tr></thead>
        <tbody>${data.items.map((/** @type {any} */ one) => html`<${Rule} one=${one} />`)}</tbody></table></div>`}</${Loaded}></section>`;
}

/** @param {{one: any}} props */
function Rule({ one }) {
  return html`<tr data-rule=${one.name}>
    <td><strong>${words(one.name)}</strong>${one.in_job && html`<br /><span class="muted small">in the job</span>`}</td>
    <td><${Severity} severity=${one.severity} /></td>
    <td class="mono small">${one.needs.join(", ")}${one.uses.length > 0 && html` <span class="muted">(${one.uses.join(", ")})</span>`}</td>
    <td class="mono small thresholds">${Object.entries(one.thresholds).map(([name, value]) => html`<span>${name} ${number(value)}</span>`)}</td>
    <td class="small">${one.meaning} <span class="muted">${one.source}</span></td></tr>`;
}
