// A panel with one figure: title, menu, the plot, and in words what is loading, missing or wrong.

import { address } from "./api.js";
import { useTheme } from "./data.js";
import { Drawing } from "./drawing.js";
import { figureCall } from "./figure_calls.js";
import { dataCall } from "./figure_view.js";
import { words } from "./format.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Problem } from "./parts.js";

const same = (/** @type {any} */ figure) => figure;

const NOTHING = {
  loss: "No loss yet. It comes with watch.log(loss=…).",
  grad_norm: "No gradient norm yet. It comes with the first optimizer step.",
  learning_rate: "No learning rate yet. It comes with the first optimizer step.",
  noise_scale: "No noise scale yet. It needs some hundred steps, and more than one part (backward pass) in each.",
  step_time: "No step times yet.",
  layers: "Nothing of this statistic was measured in these steps.",
  layer_curves: "Nothing of this statistic was measured for this layer.",
  effective_rank: "No spectra yet. Each layer's comes within some hundred steps.",
  spectrum: "No spectrum of this layer yet. Each layer's comes within some hundred steps.",
  ranks: "No spectrum of this layer yet.",
  suggestions: "No suggestion yet. It needs some hundred steps, and more than one part (backward pass) in each.",
};

/**
 * @param {{run: string, name: string, title?: string, params?: Record<string, any>, range?: [number, number] | null,
 *   onRange?: (range: [number, number] | null) => void, onPoint?: (point: any) => void, onFigure?: (figure: any) => void,
 *   onSettled?: () => void, change?: (figure: any) => any, wide?: boolean, note?: any, tall?: boolean}} props
 */
export function Figure({ run, name, title, params = {}, range = null, onRange, onPoint, onFigure, onSettled, change = same, wide, note, tall }) {
  const frame = useRef(/** @type {any} */ (null));
  const place = useRef(/** @type {any} */ (null));
  const drawing = useRef(/** @type {Drawing | null} */ (null));
  const [status, setStatus] = useState(/** @type {{state: string, failure?: any}} */ ({ state: "loading" }));
  const [heading, setHeading] = useState(title ?? "");
  const [said, setSaid] = useState("");
  const theme = useTheme();
  const [path, asked] = figureCall(run, name, params, { wide, range, theme, width: innerWidth });
  const shown = (/** @type {any} */ figure) => {
    setHeading(title ?? figure.layout.meta.title ?? "");
    setSaid(figure.layout.meta.note ?? "");
    onFigure?.(figure);
  };
  const stepless = name === "spectrum" || name === "suggestions";
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
  }, [run, name]);
  const text = JSON.stringify(asked);
  useEffect(() => drawing.current?.wants(wish), [text, change]);

  return html`
    <figure ref=${frame} class=${`panel figure ${wide ? "wide" : ""} ${tall ? "tall" : ""}`} data-figure=${name} data-state=${status.state} aria-label=${heading || words(name)}>
      <figcaption>
        <h3>${heading || " "}</h3>
        ${note && html`<span class="muted small hint">${note}</span>`}
        ${said && html`<span class="muted small hint" data-note>${said}</span>`}
        <${Menu} drawing=${drawing} run=${run} name=${name} params=${asked} />
      </figcaption>
      <div class="plot" ref=${place}></div>
      ${status.state === "loading" && html`<p class="overlay">Loading …</p>`}
      ${status.state === "empty" && html`<p class="overlay">${NOTHING[/** @type {keyof typeof NOTHING} */ (name)]}</p>`}
      ${status.state === "failed" && html`<div class="overlay"><${Problem} failure=${status.failure} /></div>`}
    </figure>`;
}

/** @param {{drawing: {current: Drawing | null}, run: string, name: string, params: Record<string, any>}} props */
function Menu({ drawing, run, name, params }) {
  const [said, say] = useState("");
  const menu = useRef(/** @type {any} */ (null));
  const [panning, setPanning] = useState(false);
  const call = location.origin + address(...dataCall(run, name, params));
  const act = (/** @type {() => unknown} */ what, done = "") => () => {
    what();
    say(done);
    setTimeout(() => say(""), 1600);
    menu.current.open = false;
  };
  const leave = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape" || !menu.current.open) return;
    menu.current.open = false;
    menu.current.querySelector("summary").focus();
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
      <summary aria-label="What can be done with this figure" title="Zoom, save, copy">⋯</summary>
      <div class="menu-list">
        <button type="button" onClick=${act(() => drawing.current?.reset())}>Show all</button>
        <button type="button" onClick=${act(pan)}>${panning ? "Drag to zoom" : "Drag to pan"}</button>
        <button type="button" onClick=${act(() => drawing.current?.save("png", name))}>Save as PNG</button>
        <button type="button" onClick=${act(() => drawing.current?.save("svg", name))}>Save as SVG</button>
        <button type="button" onClick=${act(() => navigator.clipboard?.writeText(`curl '${call}'`), "copied")}>Copy the call for its data</button>
        <a href=${call} target="_blank" rel="noreferrer">Open its data</a>
      </div>
    </details>`;
}
