// Starts the page: address, live stream, keys, and the frame around every view.

import { forgetAhead, get } from "./api.js";
import { useConnection, useGet, useTheme } from "./data.js";
import { html, render, useEffect, useState } from "./html.js";
import { focusSearch, Help, useKeys } from "./keys.js";
import { live, startLive } from "./live.js";
import { Compare } from "./pages/compare.js";
import { AlertsInbox } from "./pages/inbox.js";
import { Login } from "./pages/login.js";
import { Run } from "./pages/run.js";
import { Runs } from "./pages/runs.js";
import { Settings } from "./pages/settings.js";
import { warmUp } from "./plotly.js";
import { here, startRouter, useAddress } from "./router.js";
import { toggleTheme } from "./theme.js";
import { useUpdated } from "./updated.js";

const PAGES = { runs: Runs, run: Run, compare: Compare, alerts: AlertsInbox, settings: Settings, login: Login, unknown: Unknown };
const CONNECTIONS = {
  live: ["live", "New steps show as they come."],
  connecting: ["connecting", "Connecting to the server …"],
  offline: ["offline", "The server does not answer; the page tries again by itself."],
  hidden: ["resting", "A hidden tab rests and catches up when it is shown."],
};

function App() {
  const address = useAddress();
  const [help, setHelp] = useState(false);
  const updated = useUpdated();
  useKeys({
    "/": focusSearch,
    "?": () => setHelp(true),
    t: toggleTheme,
    p: () => live.pause(!live.paused),
  });
  const place = address.run ?? address.page;
  useEffect(() => { // what had the focus may have gone with the page it was on
    if (document.activeElement === document.body) document.getElementById("content")?.focus({ preventScroll: true });
  }, [place]);
  const Page = PAGES[/** @type {keyof typeof PAGES} */ (address.page)];
  return html`
    <a class="skip" href="#content" onClick=${skip}>Skip to the content</a>
    <${Top} address=${address} onHelp=${() => setHelp(true)} />
    ${updated && html`<p class="updated" role="status" data-updated>The server was updated. <button type="button" onClick=${() => location.reload()}>Load the page again</button></p>`}
    <main id="content" tabindex="-1"><${Page} address=${address} key=${place} /></main>
    ${help && html`<${Help} onClose=${() => setHelp(false)} />`}`;
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

/** @param {{address: import("./address.js").Address, onHelp: () => void}} props */
function Top({ address, onHelp }) {
  const theme = useTheme();
  const signedOut = address.page === "login";
  const open = useGet(signedOut ? null : "/alerts", { state: "open", limit: 100 }, { run: "*", pause: 3000 });
  const count = (open.data?.items ?? []).filter((/** @type {any} */ one) => !one.muted).length;
  const current = (/** @type {string[]} */ ...pages) => (pages.includes(address.page) ? "page" : undefined);
  return html`
    <header class="top">
      <a class="brand" href="/" aria-label="gradspectra"><img src="/static/icon.svg" alt="" width="24" height="24" /> <span>gradspectra</span></a>
      ${!signedOut && html`<nav aria-label="Main">
        <a href="/" aria-current=${current("runs", "run", "compare")}>Runs</a>
        <a href="/alerts" aria-current=${current("alerts")}>Alerts${count > 0 && html` <span class="count">${count > 99 ? "99+" : count}</span>`}</a>
        <a href="/settings" aria-current=${current("settings")}>Settings</a>
      </nav>`}
      <span class="spread"></span>
      ${!signedOut && html`<${Connection} />`}
      <button type="button" class="icon" onClick=${toggleTheme} aria-label=${theme === "dark" ? "Light theme" : "Dark theme"} title=${`${theme === "dark" ? "Light" : "Dark"} theme (t)`}>${theme === "dark" ? "☀" : "☾"}</button>
      <button type="button" class="icon" onClick=${onHelp} aria-label="Keyboard help" title="Keyboard (?)">?</button>
    </header>`;
}

function Connection() {
  const { state, paused } = useConnection();
  const [word, hint] = CONNECTIONS[/** @type {keyof typeof CONNECTIONS} */ (state)];
  return html`
    <span class=${`connection ${paused ? "paused" : state}`} role="status" title=${hint}><span class="dot" aria-hidden="true"></span><span class="word">${paused ? "paused" : word}</span></span>
    <button type="button" class="icon" data-action="pause" aria-pressed=${paused} onClick=${() => live.pause(!paused)} aria-label=${paused ? "Go on drawing" : "Pause drawing"} title=${`${paused ? "Go on" : "Pause"} (p)`}>${paused ? "▶" : "❚❚"}</button>`;
}

function Unknown() {
  useEffect(() => void (document.title = "Not found · gradspectra"), []);
  return html`<div class="page"><div class="panel pad"><h1>There is no such page</h1><p>The <a href="/">list of runs</a> has everything.</p></div></div>`;
}

startRouter();
live.onRun(here().run, forgetAhead); // the stream may be open before the first figure listens
startLive();
live.onState(() => live.state === "offline" && void get("/me").catch(() => {})); // a session that has ended leads to the sign-in
warmUp();
const place = /** @type {HTMLElement} */ (document.getElementById("app"));
place.replaceChildren();
render(html`<${App} />`, place);
