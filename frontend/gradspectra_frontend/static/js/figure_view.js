// What the page changes in a figure before it is drawn: rows filtered, zoom set, fit to the width. Pure functions.

/** @typedef {{data: any[], layout: any}} Figure */
/** @typedef {{l: number, r: number, t: number, b: number}} Margins in pixels */

const NARROW = 620;
/** Width of a letter of a row's name, and the share of a wide figure that names may take. */
const LETTER = 6.33;
const NAMES_SHARE = 0.35;
/** Pixels between a narrow heatmap and its colours, without their padding. */
const BAR_BELOW = 26;
/** Pixels that a legend's entry takes beside its name, and least letters of a name. */
const BESIDE_NAME = 70;
const LEAST_NAME = 24;

/** Rows of a matrix, whether it is nested lists or Plotly's packed form. @param {any} z @returns {ArrayLike<number>[]} */
export function rowsOf(z) {
  if (Array.isArray(z)) return z;
  const [rows, columns] = z.shape.split(",").map(Number);
  const letters = atob(z.bdata);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  const values = new Float32Array(bytes.buffer);
  return Array.from({ length: rows }, (_, i) => values.subarray(i * columns, (i + 1) * columns));
}

/** A heatmap that was asked for without its z, with it: log10 of the numbers in its customdata, as its meta says.
 * @param {Figure} figure @returns {Figure} */
export function whole(figure) {
  const data = figure.data.map((trace) => {
    if (trace.type !== "heatmap" || trace.z || !trace.customdata) return trace;
    const rows = rowsOf(trace.customdata);
    const size = trace.meta === "log10 of the size" ? Math.abs : (/** @type {number} */ value) => value;
    const log = (/** @type {number} */ value) => (Number.isFinite(value) && size(value) > 0 ? Math.log10(size(value)) : NaN);
    return { ...trace, customdata: rows, z: rows.map((row) => Float32Array.from(row, log)) };
  });
  return { ...figure, data };
}

/** Keep the heatmap rows whose layer name or role holds the text (case does not matter); all where it is empty.
 * @param {Figure} figure @param {string} text @returns {Figure} */
export function filterRows(figure, text) {
  const wanted = text.trim().toLowerCase();
  const { layers, roles = [] } = figure.layout.meta;
  if (!wanted || !layers) return figure;
  const keep = layers
    .map((/** @type {string} */ _, /** @type {number} */ i) => i)
    .filter((/** @type {number} */ i) => layers[i].toLowerCase().includes(wanted) || roles[i] === wanted);
  const names = new Set(keep.map((/** @type {number} */ i) => figure.data[0]?.y[i]));
  const data = figure.data.map((trace) => {
    if (trace.type !== "heatmap") {
      const inside = trace.yaxis === "y2" ? trace.y.map(() => true) : trace.y.map((/** @type {string} */ y) => names.has(y));
      if (inside.every(Boolean)) return trace;
      if (trace.x[0] === null) return { ...trace, y: [figure.data[0].y[keep[0]]] };
      const pick = (/** @type {any[]} */ list) => list.filter((_, i) => inside[i]);
      return { ...trace, x: pick(trace.x), y: pick(trace.y) };
    }
    const pick = (/** @type {any} */ list) => {
      const rows = rowsOf(list);
      return keep.map((/** @type {number} */ i) => rows[i]);
    };
    const more = trace.customdata ? { customdata: pick(trace.customdata) } : {};
    return { ...trace, y: keep.map((/** @type {number} */ i) => trace.y[i]), z: pick(trace.z), ...more };
  });
  const axis = figure.layout.yaxis;
  const every = Math.max(1, Math.ceil(axis.tickvals.length ? layers.length / axis.tickvals.length : 1));
  const shown = every === 1 ? { tickvals: keep.map((/** @type {any} */ _, /** @type {number} */ i) => i), ticktext: keep.map((/** @type {number} */ i) => axis.ticktext[i]) } : plainTicks(keep, figure);
  const range = [keep.length - 0.5, -0.5];
  const height = figure.layout.height ? Math.min(figure.layout.height, Math.max(220, 18 * keep.length + 110)) : undefined;
  const meta = { ...figure.layout.meta, layers: keep.map((/** @type {number} */ i) => layers[i]) };
  return { data: keep.length ? data : [], layout: { ...figure.layout, height, meta, yaxis: { ...axis, ...shown, range } } };
}

/** A comma separates names in the interface; one inside a name, a space at its end and what looks so are escaped. @param {string} name */
export const escaped = (name) => name.replace(/\\(?=[\\, ]|$)|,|^ | $/g, "\\$&");

/** @param {number[]} keep @param {Figure} figure */
function plainTicks(keep, figure) {
  const every = Math.max(1, Math.ceil(keep.length / 60));
  const chosen = keep.map((_, i) => i).filter((i) => i % every === 0);
  return { tickvals: chosen, ticktext: chosen.map((i) => marked(figure.layout.meta.layers[keep[i]].replace(/\.weight$/, ""))) };
}

/** Set the steps shown: the zoom of the address, all for null, what the figure says for undefined.
 * @param {Figure} figure @param {[number, number] | null | undefined} range @returns {Figure} */
export function zoomed(figure, range) {
  if (range === undefined) return figure;
  const xaxis = { ...figure.layout.xaxis };
  if (range) {
    Object.assign(xaxis, { range: [...range], autorange: false });
    if (xaxis.tickvals && range[1] - range[0] > xaxis.tickvals.length) { // they name the figure's few steps only
      delete xaxis.tickmode;
      delete xaxis.tickvals;
    }
  } else {
    delete xaxis.range;
    xaxis.autorange = true;
  }
  return { data: figure.data, layout: { ...figure.layout, xaxis } };
}

/** Fit a figure into the page: the panel says its title; a narrow one gets short row names and the colours below.
 * Plotly widens margins that are too small, and then draws all once more: they begin at what is needed most often, or
 * at what the last drawing came to.
 * @param {Figure} figure @param {number} width in CSS pixels @param {boolean} coarse whether fingers point
 * @param {Margins | null} [last] @returns {Figure} */
export function fitted(figure, width, coarse, last = null) {
  const { title, ...layout } = figure.layout;
  const narrow = width < NARROW;
  layout.margin = last ?? { l: narrow ? 44 : 60, r: narrow ? 10 : 28, t: layout.showlegend ? 41 : 12, b: narrow ? 48 : 50 };
  layout.autosize = true;
  if (coarse) layout.dragmode = false;
  let data = figure.data;
  if (layout.yaxis?.ticktext) {
    const most = narrow ? 17 : Math.floor((NAMES_SHARE * width - 32) / LETTER);
    layout.yaxis = { ...layout.yaxis, ticktext: shortened(layout.yaxis.ticktext, most) };
  }
  if (narrow) {
    if (layout.yaxis?.ticktext) layout.xaxis = { ...layout.xaxis, nticks: 5 };
    else layout.yaxis = { ...layout.yaxis, title: undefined };
    data = data.map((trace) => (trace.colorbar ? { ...trace, colorbar: below(trace.colorbar) } : trace));
    if (layout.legend) layout.legend = { ...layout.legend, font: { ...layout.legend.font, size: 10 }, x: 0, xanchor: "left", itemwidth: 30, entrywidth: 0 };
  }
  if (!last && layout.yaxis?.ticktext) layout.margin = besideRows(layout, narrow, data.some((trace) => trace.colorbar));
  const longest = Math.max(LEAST_NAME, Math.floor((width - layout.margin.l - BESIDE_NAME) / LETTER));
  return { data: data.map((trace) => placed(named(trace, longest), layout)), layout };
}

/** A trace with at most so many letters in its name: a legend neither breaks nor shortens a long one. @param {any} trace @param {number} longest */
function named(trace, longest) {
  const name = unmarked(trace.name ?? "");
  return name.length > longest ? { ...trace, name: marked(tail(name, longest)) } : trace;
}

/** Margins of a heatmap: room for its rows' names, and for the colours' bar. @param {any} layout @param {boolean} narrow @param {boolean} bar @returns {Margins} */
function besideRows(layout, narrow, bar) {
  const longest = Math.max(0, ...layout.yaxis.ticktext.map((/** @type {string} */ name) => unmarked(name).length));
  const { r, t, b } = layout.margin;
  return { l: Math.max(layout.margin.l, Math.ceil(LETTER * longest + 32)), r: bar && !narrow ? 76 : r, t, b: bar && narrow ? 104 : b };
}

/** The margins that Plotly came to. @param {any} plot @returns {Margins} */
export function marginsOf(plot) {
  const { l, r, t, b } = plot._fullLayout._size;
  return { l, r, t, b };
}

/** @param {any} bar */
const below = (bar) => ({ ...bar, orientation: "h", y: -0.06, yanchor: "top", x: 0.5, xanchor: "center", len: 1, xpad: 0, ypad: 26 });

/** The colours below put a fixed distance under the plot, whatever its height: between them is the axis with its title.
 * @param {any} trace @param {any} layout */
function placed(trace, layout) {
  if (trace.colorbar?.orientation !== "h" || !layout.height) return trace;
  const height = Math.max(BAR_BELOW, layout.height - layout.margin.t - layout.margin.b);
  return { ...trace, colorbar: { ...trace.colorbar, y: -BAR_BELOW / height } };
}

const MARKS = /** @type {const} */ ([["&", "&amp;"], ["<", "&lt;"], [">", "&gt;"]]);
/** A label's letters: Plotly takes it as markup, and what would be some is escaped. @param {string} label */
export const unmarked = (label) => MARKS.reduceRight((text, [letter, mark]) => text.replaceAll(mark, letter), label);
/** @param {string} text */
const marked = (text) => MARKS.reduce((label, [letter, mark]) => label.replaceAll(letter, mark), text);

/** Labels of at most `length` letters each. Where the ends of long names are alike, the word that tells them apart (a
 * layer's number, mostly) is kept before them.
 * @param {string[]} labels @param {number} length @returns {string[]} */
export function shortened(labels, length) {
  const names = labels.map(unmarked);
  const ends = names.map((name) => tail(name, length));
  /** @type {Map<string, string[]>} */
  const alike = new Map();
  names.forEach((name, i) => alike.set(ends[i], [...(alike.get(ends[i]) ?? []), name]));
  return names.map((name, i) => {
    const others = (alike.get(ends[i]) ?? []).map((one) => one.split("."));
    const word = others.length < 2 ? "" : name.split(".").find((part, at) => others.some((one) => one[at] !== part)) ?? "";
    return marked(word && word.length < length / 2 ? `…${word}${tail(name, length - word.length - 1)}` : ends[i]);
  });
}

/** The end of a long name, which tells more than its beginning. @param {string} name @param {number} length */
export function tail(name, length) {
  return name.length <= length ? name : `…${name.slice(name.length - length + 1)}`;
}

/** Whether anything is drawn that has a position. @param {Figure} figure */
export function isEmpty(figure) {
  return !figure.data.some((trace) => (trace.x?.length ?? trace.x?.bdata?.length ?? 0) > 0 && trace.x[0] !== null);
}

/** The zoom that a relayout event of Plotly means: a range, null for all, undefined for neither.
 * @param {Record<string, any>} event @returns {[number, number] | null | undefined} */
export function rangeFrom(event) {
  if (event["xaxis.autorange"]) return null;
  const low = event["xaxis.range[0]"] ?? event["xaxis.range"]?.[0];
  const high = event["xaxis.range[1]"] ?? event["xaxis.range"]?.[1];
  if (low === undefined || high === undefined) return undefined;
  return [Math.max(0, Math.floor(Number(low))), Math.max(1, Math.ceil(Number(high)))];
}

/** The call that gives the numbers of a figure. series: the scalars that it is drawn from, if it is.
 * @param {string} run @param {string} name @param {Record<string, any>} params @param {string[]} [series]
 * @returns {[string, Record<string, any>]} */
export function dataCall(run, name, params, series) {
  const path = `/runs/${encodeURIComponent(run)}`;
  const { start, stop, columns, layer, of, statistic } = params;
  if (series) return [`${path}/series`, { names: series.map(escaped).join(","), start, stop, columns }];
  if (name === "spectrum" || name === "ranks") return [`${path}/spectra`, { layer, of, start, stop }];
  if (name === "suggestions") return [`${path}/suggestions`, {}];
  const metric = name === "effective_rank" ? name : statistic || "grad_norm";
  return [`${path}/layers/${metric}`, { start, stop, columns, layers: layer }];
}
