// Small pieces that several pages show.

import { send } from "./api.js";
import { copied } from "./clipboard.js";
import { asNumber, number, percent, whole, words } from "./format.js";
import { html, useEffect, useRef, useState } from "./html.js";

const HEALTH_MARKS = { ok: "●", warning: "▲", critical: "◆" };
const STATE_WORDS = { running: "running", finished: "finished", failed: "failed", lost: "lost" };

/** @param {{health: string, count?: number}} props */
export function Health({ health, count = 0 }) {
  const mark = HEALTH_MARKS[/** @type {keyof typeof HEALTH_MARKS} */ (health)] ?? "●";
  const words = count ? `${count} open alert${count === 1 ? "" : "s"}` : "no open alert";
  return html`<span class=${`health ${health}`} title=${`${health}: ${words}`}>
    <span aria-hidden="true">${mark}</span> ${health}${count > 0 && html` <b>${count}</b>`}</span>`;
}

/** @param {{state: string}} props */
export function RunState({ state }) {
  return html`<span class=${`state ${state}`}>
    ${state === "running" && html`<span class="pulse" aria-hidden="true"></span>`}${STATE_WORDS[/** @type {keyof typeof STATE_WORDS} */ (state)] ?? state}</span>`;
}

/** @param {{severity: string}} props */
export function Severity({ severity }) {
  const mark = { info: "i", warning: "▲", critical: "◆" }[severity] ?? "i";
  return html`<span class=${`severity ${severity}`}><span aria-hidden="true">${mark}</span> ${severity}</span>`;
}

/** What went wrong and what to do, where it happened. @param {{failure: any}} props */
export function Problem({ failure }) {
  return html`<div class="problem" role="alert"><strong>${failure.title}</strong>
    ${failure.detail && html`<p>${failure.detail}</p>`}${failure.remedy && html`<p class="muted">${failure.remedy}</p>`}</div>`;
}

/** Content, or in its place what is loading or wrong. @param {{answer: {data: any, failure: any}, children?: any}} props */
export function Loaded({ answer, children }) {
  if (answer.data === null && answer.failure) return html`<${Problem} failure=${answer.failure} />`;
  if (answer.data === null) return html`<p class="note">Loading …</p>`;
  return children(answer.data);
}

/** @param {{done: number | null, total: number | null}} props */
export function Progress({ done, total }) {
  if (!total) return html`<span class="num">${whole(done)}</span>`;
  const share = Math.min(1, (done ?? 0) / total);
  return html`<span class="progress" role="progressbar" aria-valuemin="0" aria-valuemax=${total} aria-valuenow=${done ?? 0} aria-label=${`step ${whole(done)} of ${whole(total)}`}>
    <span class="num">${whole(done)} <span class="muted">/ ${whole(total)}</span></span>
    <span class="bar"><span style=${`width:${(100 * share).toFixed(1)}%`}></span></span></span>`;
}

/** Small curve without axes; what is not finite is a cross. @param {{values: unknown[], label: string, width?: number, height?: number, mark?: number}} props */
export function Sparkline({ values, label, width = 110, height = 28, mark }) {
  const all = values.map(asNumber);
  const finite = all.filter((y) => y !== null && Number.isFinite(y)).map(Number);
  if (!finite.length) return html`<span class="muted small">${all.length ? "not finite" : ""}</span>`;
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const x = (/** @type {number} */ i) => 2 + ((width - 4) * i) / Math.max(all.length - 1, 1);
  const y = (/** @type {number} */ value) => height - 3 - ((height - 6) * (value - low)) / (high - low || 1);
  let path = "";
  let pen = false;
  const lost = /** @type {number[]} */ ([]);
  all.forEach((value, i) => {
    if (value === null || !Number.isFinite(value)) {
      pen = false;
      if (value !== null) lost.push(i);
      return;
    }
    path += `${pen ? "L" : "M"}${x(i).toFixed(1)},${y(value).toFixed(1)}`;
    pen = true;
  });
  const last = all[all.length - 1];
  return html`<svg class="spark" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${label}>
    ${mark !== undefined && html`<line class="spark-mark" x1=${x(mark)} x2=${x(mark)} y1="0" y2=${height} />`}
    <path d=${path} />
    ${last !== null && Number.isFinite(last) && html`<circle cx=${x(all.length - 1)} cy=${y(Number(last))} r="2" />`}
    ${lost.map((i) => html`<path class="spark-lost" d=${`M${x(i) - 2} 3l4 4m0 -4l-4 4`} />`)}
  </svg>`;
}

/** A button that asks once more before it does something that cannot be undone. The focus goes to No, and back again.
 * @param {{label: string, sure: string, onSure: () => void, kind?: string, of?: string}} props of: what the button is about, for those who do not see where it stands */
export function Sure({ label, sure, onSure, kind = "danger", of }) {
  const [asked, ask] = useState(/** @type {boolean | null} */ (null));
  const focused = useRef(/** @type {any} */ (null));
  useEffect(() => void (asked !== null && focused.current?.focus()), [asked]);
  const leave = (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && ask(false);
  if (!asked) return html`<button type="button" key="ask" ref=${focused} class=${kind} aria-label=${of && `${label} ${of}`} onClick=${() => ask(true)}>${label}</button>`;
  return html`<span class="sure" key="sure" role="group" aria-label=${sure} onKeyDown=${leave}>${sure}
    <button type="button" class=${kind} onClick=${() => (ask(false), onSure())}>Yes</button>
    <button type="button" ref=${focused} onClick=${() => ask(false)}>No</button></span>`;
}

/** Text that can be copied. @param {{text: string, label?: string}} props */
export function Copied({ text, label = "Copy" }) {
  const [said, say] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => say(""), 1500);
    return () => clearTimeout(timer);
  }, [said]);
  const copy = async () => say((await copied(text)) ? "Copied" : "Not copied");
  return html`<button type="button" class="copy" onClick=${copy}>${said || label}</button>`;
}

/** Change something on the server; failures are said beside the button. @returns {[(method: any, path: string, body?: unknown) => Promise<any>, any]} */
export function useSend() {
  const [failure, setFailure] = useState(/** @type {any} */ (null));
  /** @param {any} method @param {string} path @param {unknown} [body] */
  const change = async (method, path, body) => {
    try {
      const answer = await send(method, path, body);
      setFailure(null);
      return answer ?? true;
    } catch (error) {
      setFailure(error);
      return null;
    }
  };
  return [change, failure && html`<${Problem} failure=${failure} />`];
}

/** One number with its name. @param {{name: string, value: any, hint?: string}} props */
export function Tile({ name, value, hint = "" }) {
  return html`<div class="tile" title=${hint}><span class="muted small">${name}</span><strong class="num">${value}</strong></div>`;
}

export { number, percent, whole, words };
