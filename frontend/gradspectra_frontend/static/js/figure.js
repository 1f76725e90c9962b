// A panel with one figure: title, menu, the plot, and in words what is loading, missing or wrong.

import { address, get } from "./api.js";
import { copied } from "./clipboard.js";
import { useTheme } from "./data.js";
import { Drawing } from "./drawing.js";
import { comparisonCall, figureCall } from "./figure_calls.js";
import { dataCall, unmarked } from "./figure_view.js";
import { words } from "./format.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Problem } from "./parts.js";

const same = (/** @type {any} */ figure) => figure;

/** Figures that have no axis of steps. */
const STEPLESS = ["spectrum", "suggestions", "sweep", "profile"];

const NOTHING = {
  loss: "No loss yet. It comes with watch.log(loss=…).",
  grad_norm: "No gradient norm yet. It comes with the first optimizer step.",
  learning_rate: "No learning rate yet. It comes with the first optimizer step.",
  noise_scale: "No noise scale yet. It needs some hundred steps, and more than one part (backward pass) in each.",
  step_time: "No step times yet.",
  layers: "Nothing of this statistic was measured in these steps.",
  layer_curves: "Nothing of this statistic was measured for this layer.",
  profile: "Nothing of this statistic was measured in these steps.",
  effective_rank: "No spectra yet. Each layer's comes within some hundred steps.",
  spectrum: "No spectrum of this layer yet. Each layer's comes within some hundred steps.",
  ranks: "No spectrum of this layer yet.",
  curves: "None of these runs has this.",
  difference: "No layer of this name was measured in both runs.",
  sweep: "No run has both a loss and a learning rate yet.",
  suggestions: "No suggestion yet. It needs some hundred steps, and more than one part (backward pass) in each.",
};

/**
 * A figure of one run, or of several that are laid over each other: `run` is then a list.
 * @param {{run: string | string[], name: string, title?: string, params?: Record<string, any>, range?: [number, number] | null,
 *   onRange?: (range: [number, number] | null) => void, onPoint?: (point: any, meta: any) => void, onFigure?: (figure: any) => void,
 *   onSettled?: () => void, change?: (figure: any) => any, wide?: boolean, note?: any, tall?: boolean, ended?: boolean}} props ended: nothing comes any more
 */
export function Figure({ run, name, title, params = {}, range = null, onRange, onPoint, onFigure, onSettled, change = same, wide, note, tall, ended }) {
  const frame = useRef(/** @type {any} */ (null));
  const place = useRef(/** @type {any} */ (null));
  const drawing = useRef(/** @type {Drawing | null} */ (null));
  const [status, setStatus] = useState(/** @type {{state: string, failure?: any}} */ ({ state: "loading" }));
  const [meta, setMeta] = useState(/** @type {any} */ (null));
  const theme = useTheme();
  const said = (/** @type {"title" | "note" | "damaged"} */ what) => unmarked(meta?.[what] ?? ""); // Plotly's markup, or names escaped for it
  const shows = { wide, range, theme, width: innerWidth };
  const call = Array.isArray(run) ? comparisonCall(run, name, params, shows) : figureCall(run, name, params, shows);
  const [path, asked] = call;
  const about = String(run);
  const heading = title ?? said("title");
  const shown = (/** @type {any} */ figure) => {
    setMeta(figure.layout.meta);
    onFigure?.(figure);
  };
  const stepless = STEPLESS.includes(name) || (params.axis ?? "step") !== "step";
  const wish = {
    path,
    params: asked,
    range: stepless ? undefined : range,
    run,
    change,
    onRange: stepless ? undefined : onRange,
    onPoint,
    onFigure: shown,
    onStatus: (/** @type {any} */ next) => {
      setStatus((old) => (old.state === next.state && !next.failure ? old : next));
      onSettled?.();
    },
  };

  useEffect(() => {
    const made = new Drawing(frame.current, place.current, wish);
    drawing.current = made;
    return () => made.stop();
  }, [about, name]);
  const text = JSON.stringify(asked);
  useEffect(() => drawing.current?.wants(wish), [text, change]);

  return html`
    <figure ref=${frame} class=${`panel figure ${wide ? "wide" : ""} ${tall ? "tall" : ""}`} data-figure=${name} data-series=${params.series} data-state=${status.state} aria-label=${heading || words(name)}>
      <figcaption>
        <h3>${heading || html`<span class="unseen">${words(params.series ?? name)}</span>`}</h3>
        ${note && html`<span class="muted small hint">${note}</span>`}
        ${meta?.note && html`<span class="muted small hint" data-note>${said("note")}</span>`}
        ${meta && html`<${Menu} drawing=${drawing} name=${name} heading=${heading} call=${Array.isArray(run) ? call : dataCall(run, name, asked, meta.series)} />`}
      </figcaption>
      ${meta?.damaged && html`<p class="damaged small" data-damaged><span aria-hidden="true">▲</span> ${said("damaged")}</p>`}
      <div class="plot" ref=${place}></div>
      ${status.state === "loading" && html`<p class="overlay">Loading …</p>`}
      ${status.state === "empty" && html`<p class="overlay">${meta?.damaged ? "Nothing else of this was recorded in these steps." : asked.start === undefined || stepless ? (ended ? "The run ended without any of this." : NOTHING[/** @type {keyof typeof NOTHING} */ (name)]) : "Nothing of this was recorded in these steps."}</p>`}
      ${status.state === "filtered" && html`<p class="overlay">No layer's name or role fits the filter.</p>`}
      ${status.state === "failed" && html`<div class="overlay"><${Problem} failure=${status.failure} /></div>`}
    </figure>`;
}

/** What can be done with a figure that is drawn. @param {{drawing: {current: Drawing | null}, name: string, heading: string, call: import("./figure_calls.js").Call}} props */
function Menu({ drawing, name, heading, call }) {
  const [said, say] = useState("");
  const menu = useRef(/** @type {any} */ (null));
  const [panning, setPanning] = useState(false);
  const url = location.origin + address(...call);
  const shut = () => { // what was chosen is hidden with it, and had the focus
    menu.current.open = false;
    menu.current.querySelector("summary").focus({ preventScroll: true });
  };
  const act = (/** @type {() => unknown} */ what) => async () => {
    shut();
    const done = await what();
    say(typeof done === "string" ? done : "");
    setTimeout(() => say(""), 1600);
  };
  const copyCall = async () => {
    const me = await get("/me").catch(() => null);
    const token = me?.tokens_required ? ' -H "Authorization: Bearer $GRADSPECTRA_TOKEN"' : "";
    return (await copied(`curl${token} '${url}'`)) ? "copied" : "not copied";
  };
  const leave = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape" && menu.current.open) shut();
  };
  const pan = () => {
    void drawing.current?.drag(panning ? "zoom" : "pan");
    setPanning(!panning);
  };
  useEffect(() => {
    const close = (/** @type {Event} */ event) => {
      if (!menu.current?.contains(event.target)) menu.current.open = false;
    };
    addEventListener("pointerdown", close);
    return () => removeEventListener("pointerdown", close);
  }, []);
  return html`
    <span class="said small" role="status">${said}</span>
    <details class="menu" ref=${menu} onKeyDown=${leave}>
      <summary aria-label=${`What can be done with this figure: ${heading}`} title="Zoom, save, copy">⋯</summary>
      <div class="menu-list">
        <button type="button" onClick=${act(() => drawing.current?.reset())}>Show all</button>
        <button type="button" onClick=${act(pan)}>${panning ? "Drag to zoom" : "Drag to pan"}</button>
        <button type="button" onClick=${act(() => drawing.current?.save("png", name))}>Save as PNG</button>
        <button type="button" onClick=${act(() => drawing.current?.save("svg", name))}>Save as SVG</button>
        <button type="button" onClick=${act(copyCall)}>Copy the call for its data</button>
        <a href=${url} target="_blank" rel="noreferrer">Open its data</a>
      </div>
    </details>`;
}
