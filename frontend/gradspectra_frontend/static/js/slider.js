// A slider over the steps of a figure that shows one of them.

import { whole } from "./format.js";
import { html, useEffect, useState } from "./html.js";
import { setView } from "./router.js";

/** A play of all steps has about so many frames, each at least so long. */
const FRAMES = 60;
const FRAME_MS = 120;

/** Chooses one of the steps that have something to show; at its right end it follows the run. With `plays` it can go
 * through them by itself, from the beginning if it stands at the end, as fast as `drawn` tells that they were drawn.
 * @param {{facts: any, step: number | null, plays?: boolean, drawn?: number | null}} props drawn: the step that is drawn */
export function Slider({ facts, step, plays = false, drawn = null }) {
  const steps = facts?.steps ?? [];
  const last = steps.length - 1;
  const [playing, play] = useState(false);
  let at = last;
  if (step !== null) for (at = last; at > 0 && steps[at] > step; at -= 1);
  const set = (/** @type {number} */ i) => setView({ step: i >= last ? null : steps[Math.max(0, i)] });
  useEffect(() => {
    if (!playing || drawn !== steps[at]) return undefined; // the next one when this one is drawn
    if (at >= last) return play(false);
    const timer = setTimeout(() => set(at + Math.max(1, Math.round(last / FRAMES))), FRAME_MS);
    return () => clearTimeout(timer);
  }, [playing, drawn, at]);
  if (last < 1) return null;
  const begin = () => {
    if (!playing && at >= last) set(0);
    play(!playing);
  };
  return html`
    <div class="slider" data-steps=${steps.length}>
      <button type="button" class="quiet" aria-label="earlier" onClick=${() => set(at - 1)} disabled=${at === 0}>◂</button>
      ${plays && html`<button type="button" class="quiet" data-action="play" aria-pressed=${playing} aria-label=${playing ? "Stop playing" : "Play the steps"} onClick=${begin}>${playing ? "❚❚" : "▶"}</button>`}
      <label>step <input type="range" data-control="step" min="0" max=${last} value=${at} onInput=${(/** @type {any} */ e) => set(Number(e.target.value))} aria-valuetext=${`step ${steps[at]}`} /></label>
      <button type="button" class="quiet" aria-label="later" onClick=${() => set(at + 1)} disabled=${at === last}>▸</button>
      <output class="num">${whole(steps[at])}${step === null && html` <span class="muted">· newest</span>`}</output>
    </div>`;
}
