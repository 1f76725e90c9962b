// Sign in with a token; the server answers with a cookie that scripts cannot read.

import { html, useEffect, useState } from "../html.js";
import { live } from "../live.js";
import { Problem } from "../parts.js";
import { navigate } from "../router.js";

/** @param {{address: import("../address.js").Address}} props */
export function Login({ address }) {
  const [failure, setFailure] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  useEffect(() => void (document.title = "Sign in · gradspectra"), []);
  const submit = async (/** @type {any} */ event) => {
    event.preventDefault();
    setBusy(true);
    const token = new FormData(event.currentTarget).get("token");
    const response = await fetch("/login", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token }) }).catch(() => null);
    setBusy(false);
    const scopes = response?.ok ? (await response.json()).scopes : [];
    if (response?.ok && !scopes.some((/** @type {string} */ one) => one !== "ingest")) {
      setFailure({ title: "This token may only send records", detail: "Sign in with one that may read." });
    } else if (response?.ok) {
      navigate(safe(address.view.next), { replace: true });
      live.connect();
    } else if (response) {
      const { title, detail } = await response.json().catch(() => ({ title: response.statusText }));
      setFailure({ title, detail });
    } else setFailure({ title: "The server does not answer" });
  };
  return html`
    <div class="page narrow"><form class="panel pad edit" onSubmit=${submit}>
      <h1>Sign in</h1>
      <p>This server asks for a token. Who runs it can make one: <code>gradspectra token create</code>.</p>
      <label>Token <input name="token" type="password" autocomplete="current-password" required placeholder="gs_…" /></label>
      ${failure && html`<${Problem} failure=${failure} />`}
      <button class="primary" disabled=${busy}>Sign in</button>
    </form></div>`;
}

/** Where to go on: only a path of this page. @param {string | undefined} next */
export function safe(next) {
  return next && /^\/(?![/\\])/.test(next) && !next.startsWith("/login") ? next : "/";
}
