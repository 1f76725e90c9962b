// Tests of the page's pure modules; run by node, called from test_page_files.py.
import assert from "node:assert/strict";
import { test } from "node:test";
import { comparePath, kept, parse, query, rangeOf, runPath, runsOf } from "./static/js/address.js";
import { chosenOf, ordered } from "./static/js/chosen_curve.js";
import { evidenceCurve, evidenceRows } from "./static/js/evidence.js";
import { comparisonCall, figureCall, firstCalls, layersParams, lossParams } from "./static/js/figure_calls.js";
import { dataCall, filterRows, fitted, isEmpty, rangeFrom, rowsOf, shortened, tail, whole, zoomed } from "./static/js/figure_view.js";
import * as format from "./static/js/format.js";
import { evidenceWords, groupsCode, multipliers, sharedEvidence } from "./static/js/groups.js";
import { Live } from "./static/js/live.js";
import { gathered, turn } from "./static/js/throttle.js";
import { standing, verdict } from "./static/js/verdict.js";

test("numbers are short, and what is not a number says so", () => {
  assert.equal(format.number(1.23456), "1.235");
  assert.equal(format.number(0.0000012), "1.2e-6");
  assert.equal(format.number(-2.5), "−2.5");
  assert.equal(format.number(123456), "123456");
  assert.equal(format.number(1e7), "1e7");
  assert.equal(format.number(null), "–");
  assert.equal(format.number("NaN"), "NaN");
  assert.equal(format.number("-Infinity"), "−inf");
  assert.equal(format.number("Infinity"), "+inf");
  assert.equal(format.number(0), "0");
});

test("of other series what was logged by a name of its own comes first, and how often is measured last", () => {
  const names = ["cadence_layers", "epoch", "accuracy", "update_norm", "eval_loss"];
  assert.deepEqual(ordered(names), ["eval_loss", "accuracy", "update_norm", "epoch", "cadence_layers"]);
  assert.equal(chosenOf(["cadence_layers", "tokens"], undefined), "tokens");
  assert.equal(chosenOf(names, "accuracy"), "accuracy");
  assert.equal(chosenOf([], undefined), undefined);
});

test("shares, times and cadences read as people write them", () => {
  assert.equal(format.percent(0.0084), "0.84%");
  assert.equal(format.percent(0.25), "25%");
  assert.equal(format.percent(null), "–");
  assert.equal(format.duration(75), "1 min 15 s");
  assert.equal(format.duration(7300), "2 h 1 min");
  assert.equal(format.duration(null), "–");
  assert.equal(format.ago(100, 103), "now");
  assert.equal(format.ago(100, 100 + 7200), "2 h ago");
  assert.equal(format.ago(200, 100), "now");
  assert.equal(format.ago("1970-01-01T00:00:00Z", 86400 * 3), "3 d ago");
  assert.equal(format.stepTime(0.0532), "53.2 ms");
  assert.equal(format.every(1), "every step");
  assert.equal(format.every(2), "every 2nd");
  assert.equal(format.every(12), "every 12th");
  assert.equal(format.whole(1234567), "1,234,567");
  assert.deepEqual([0, 999, -1000, 12345.6, "Infinity", "NaN", null].map(format.whole), ["0", "999", "-1,000", "12,346", "+inf", "NaN", "–"]);
});

test("time left follows the mean speed of the present attempt", () => {
  const run = { last_step: 100, total_steps: 400, attempt_first_step: 1, attempt_created_at: 0, created_at: 0, updated_at: 50 };
  assert.equal(format.timeLeft(run), 150);
  assert.equal(format.timeLeft({ ...run, last_step: 0 }), null);
  assert.equal(format.timeLeft({ ...run, total_steps: null }), null);
  const resumed = { ...run, attempt: 2, attempt_first_step: 51, attempt_created_at: 100_000, updated_at: 100_100 };
  assert.equal(format.timeLeft(resumed), 600, "50 steps took 100 s, whatever went before");
  assert.equal(format.timeLeft({ ...resumed, last_step: 50 }), null);
});

test("nested settings become rows", () => {
  assert.deepEqual(format.flattened({ a: 1, b: { c: "x", d: [1, 2] }, e: {} }), [["a", "1"], ["b.c", "x"], ["b.d", "[1,2]"], ["e", "{}"]]);
  assert.deepEqual(format.flattened({}), []);
});

test("an address holds the view, both ways", () => {
  const path = runPath("a/b", "layers", { layer: "h.0 [q]", step: 0, start: null, filter: "" });
  assert.equal(path, "/runs/a%2Fb/layers?layer=h.0+%5Bq%5D&step=0");
  const [where, text] = path.split("?");
  assert.deepEqual(parse(where, text), { page: "run", run: "a/b", tab: "layers", view: { layer: "h.0 [q]", step: "0" } });
  assert.equal(parse("/runs/x/nonsense", "").tab, "overview");
  assert.equal(parse("/", "").page, "runs");
  assert.equal(parse("/elsewhere", "").page, "unknown");
  assert.deepEqual(rangeOf({ start: "5", stop: "9" }), [5, 9]);
  assert.equal(rangeOf({ start: "9", stop: "5" }), null);
  assert.equal(rangeOf({}), null);
  assert.deepEqual(rangeOf({ start: "-10", stop: "5.5" }), [0, 6]);
  assert.deepEqual(rangeOf({ start: "5.5", stop: "1e300" }), [5, Number.MAX_SAFE_INTEGER]);
  assert.equal(rangeOf({ start: "1e300", stop: "1e301" }), null);
  assert.equal(rangeOf({ start: "a", stop: "b" }), null);
  assert.deepEqual(kept({ start: "1", stop: "2", layer: "l", alert: "x" }), { start: "1", stop: "2", layer: "l" });
  assert.equal(query({}), "");
});

test("the address of a comparison holds its runs, each once", () => {
  assert.equal(comparePath(["a", "b"]), "/compare?runs=a%2Cb");
  assert.deepEqual(parse("/compare", "runs=a%2Cb"), { page: "compare", run: null, tab: "", view: { runs: "a,b" } });
  assert.deepEqual([runsOf("a,b,,a"), runsOf(""), runsOf(undefined)], [["a", "b"], [], []]);
});

test("a figure of several runs is asked for with all of them", () => {
  const shown = { wide: true, range: [5, 9], theme: "dark", width: 1280 };
  const asked = { runs: "a,b", series: "loss", columns: 1000, start: 5, stop: 9, theme: "dark" };
  assert.deepEqual(comparisonCall(["a", "b"], "curves", { series: "loss" }, shown), ["/comparisons/curves", asked]);
  assert.deepEqual(comparisonCall(["a", "b"], "sweep", {}, shown), ["/comparisons/sweep", { runs: "a,b", theme: "dark" }]);
});

test("a part of an address that is not well formed stays as it is", () => {
  assert.equal(parse("/runs/%E0%A4%A/layers", "").run, "%E0%A4%A");
});

test("what is asked ahead is what the figures ask for", () => {
  const ahead = (path, query) => firstCalls(parse(path, query), "dark", 1280);
  const shown = { wide: true, range: null, theme: "dark", width: 1280 };
  assert.deepEqual(ahead("/runs/r", ""), [figureCall("r", "loss", lossParams({}), shown)]);
  assert.deepEqual(figureCall("r/s", "loss", {}, { ...shown, range: [5, 9] })[0], "/runs/r%2Fs/figures/loss");
  assert.deepEqual(ahead("/runs/r/layers", "statistic=drift_norm&start=5&stop=9")[0][1], { columns: 1000, statistic: "drift_norm", order: "depth", compact: true, theme: "dark", start: 5, stop: 9 });
  assert.deepEqual(layersParams({ order: "role" }), { statistic: "grad_norm", order: "role" });
  assert.equal(lossParams({ smooth: "off" }).smooth, 0);
  assert.deepEqual([ahead("/", ""), ahead("/runs/r/details", ""), ahead("/settings", "")], [[], [], []]);
  const columns = (width, wide) => figureCall("r", "loss", {}, { ...shown, width, wide })[1].columns;
  assert.deepEqual([columns(320, true), columns(1280, false), columns(5000, true)], [250, 550, 1000]);
});

const packed = (rows) => ({ dtype: "f4", shape: `${rows.length},${rows[0].length}`, bdata: Buffer.from(new Float32Array(rows.flat()).buffer).toString("base64") });
const heatmap = () => ({
  data: [
    { type: "heatmap", x: [1, 2], y: ["a.q", "b.k"], z: packed([[1, 2], [3, 4]]), customdata: packed([[10, 20], [30, 40]]), colorbar: {} },
    { type: "scatter", x: [1, 2], y: ["a.q", "b.k"] },
    { type: "scatter", x: [null], y: ["a.q"] },
    { type: "scatter", x: [7], y: [1], yaxis: "y2" },
  ],
  layout: { height: 900, showlegend: true, title: { text: "T" }, xaxis: {}, legend: { font: {} }, yaxis: { range: [1.5, -0.5], tickvals: [0, 1], ticktext: ["a", "b"] }, meta: { layers: ["a.q", "b.k"], roles: ["q", "k"] } },
});

test("filtering keeps the rows of the layers that fit", () => {
  const { data, layout } = filterRows(heatmap(), " B.K ");
  assert.deepEqual([...data[0].z[0]], [3, 4]);
  assert.deepEqual([...data[0].customdata[0]], [30, 40]);
  assert.deepEqual(data[0].y, ["b.k"]);
  assert.deepEqual([data[1].x, data[1].y], [[2], ["b.k"]]);
  assert.deepEqual(data[2].y, ["b.k"]);
  assert.deepEqual(data[3].x, [7]);
  assert.deepEqual(layout.yaxis.range, [0.5, -0.5]);
  assert.deepEqual(layout.yaxis.ticktext, ["b"]);
  assert.deepEqual(layout.meta.layers, ["b.k"]);
  assert.deepEqual(filterRows(heatmap(), "q").data[0].y, ["a.q"]);
  assert.deepEqual(filterRows(heatmap(), "nothing").data, []);
  assert.deepEqual(filterRows(heatmap(), ""), heatmap());
  assert.deepEqual([...rowsOf(packed([[1, 2], [3, 4]]))[1]], [3, 4]);
});

test("a heatmap that came without its colours gets them from its numbers", () => {
  const numbers = [[100, 0, -10], [NaN, Infinity, 0.001]];
  const logs = (/** @type {string} */ meta) => {
    const { data, layout } = whole({ data: [{ type: "heatmap", x: [1, 2, 3], y: ["a", "b"], customdata: packed(numbers), meta }], layout: { height: 5 } });
    assert.deepEqual([...data[0].customdata[1]].slice(0, 2), [NaN, Infinity]);
    assert.deepEqual(layout, { height: 5 });
    return data[0].z.map((row) => [...row]);
  };
  const last = Math.fround(Math.log10(Math.fround(0.001)));
  assert.deepEqual(logs("log10"), [[2, NaN, NaN], [NaN, NaN, last]]);
  assert.deepEqual(logs("log10 of the size"), [[2, NaN, 1], [NaN, NaN, last]]);
  assert.deepEqual(whole(heatmap()), heatmap());
});

test("a heatmap is decoded once for all rows that are kept", () => {
  const own = globalThis.atob;
  let decoded = 0;
  globalThis.atob = (text) => ((decoded += 1), own(text));
  try {
    assert.equal(filterRows(heatmap(), ".").data[0].z.length, 2);
  } finally {
    globalThis.atob = own;
  }
  assert.equal(decoded, 2, "values and what is told of them");
});

test("a long name in a legend keeps its end, and no escape of a letter is cut", () => {
  const name = (/** @type {string} */ text, /** @type {number} */ width) => {
    const trace = { type: "scatter", name: text, x: [1], y: [1] };
    return fitted({ data: [trace], layout: { xaxis: {}, yaxis: {}, meta: {} } }, width, false).data[0].name;
  };
  assert.equal(name("loss, smoothed", 390), "loss, smoothed");
  const long = name(`${"a_long_name_".repeat(25)}&lt;b&gt;, MAD 0.1`, 390);
  assert.match(long, /^….*&lt;b&gt;, MAD 0\.1$/);
  assert.equal(long.replace(/&..;/g, "<").length, 43);
  assert.equal(name("x".repeat(150), 1200), "x".repeat(150));
});

test("the colours below a narrow heatmap leave room for its axis, however few its rows", () => {
  for (const height of [260, 1100]) {
    const { data, layout } = fitted({ ...heatmap(), layout: { ...heatmap().layout, height } }, 360, false);
    const plot = layout.height - layout.margin.t - layout.margin.b;
    assert.ok(Math.abs(-data[0].colorbar.y * plot - 26) < 1e-9, String(height));
  }
});

test("the zoom of the address is the one that is drawn", () => {
  assert.deepEqual(zoomed(heatmap(), [5, 9]).layout.xaxis, { range: [5, 9], autorange: false });
  assert.deepEqual(zoomed({ data: [], layout: { xaxis: { range: [1, 2] } } }, null).layout.xaxis, { autorange: true });
  assert.deepEqual(zoomed(heatmap(), undefined).layout.xaxis, {});
  const few = { data: [], layout: { xaxis: { tickmode: "array", tickvals: [1, 2, 3] } } };
  assert.deepEqual(zoomed(few, [1, 3]).layout.xaxis, { tickmode: "array", tickvals: [1, 2, 3], range: [1, 3], autorange: false });
  assert.deepEqual(zoomed(few, [5000, 6000]).layout.xaxis, { range: [5000, 6000], autorange: false });
  assert.deepEqual(rangeFrom({ "xaxis.range[0]": 3.7, "xaxis.range[1]": 9.2 }), [3, 10]);
  assert.deepEqual(rangeFrom({ "xaxis.range": [-4, 9] }), [0, 9]);
  assert.deepEqual(rangeFrom({ "xaxis.range": [-400, -200.5] }), [0, 1], "dragged away from all steps");
  assert.equal(rangeFrom({ "xaxis.autorange": true }), null);
  assert.equal(rangeFrom({ "yaxis.range[0]": 1 }), undefined);
});

test("a narrow figure gets short names, and fingers scroll instead of zooming", () => {
  const { layout, data } = fitted(heatmap(), 390, true);
  assert.equal(layout.title, undefined);
  assert.equal(layout.dragmode, false);
  assert.equal(data[0].colorbar.orientation, "h");
  const wide = fitted(heatmap(), 1200, false).layout.margin;
  assert.ok(wide.l >= 60 && wide.r === 76);
  assert.deepEqual(fitted(heatmap(), 1200, false, { l: 1, r: 2, t: 3, b: 4 }).layout.margin, { l: 1, r: 2, t: 3, b: 4 });
  assert.equal(fitted(heatmap(), 1200, false).data[0].colorbar.orientation, undefined);
  const long = heatmap();
  long.layout.yaxis.ticktext = ["x".repeat(300), "short"];
  const { yaxis, margin } = fitted(long, 1200, false).layout;
  assert.deepEqual([yaxis.ticktext[0].length <= 62, yaxis.ticktext[1], margin.l <= 421], [true, "short", true]);
  assert.equal(tail("transformer.h.0.attn", 8), "….0.attn");
  assert.equal(tail("short", 8), "short");
  const deep = [0, 11].map((at) => `base.model.layers.${at}.self_attn.q_proj.lora_A`);
  assert.deepEqual(shortened([...deep, "head"], 12), ["…0…oj.lora_A", "…11…j.lora_A", "head"]);
  assert.deepEqual(shortened(deep, 60), deep);
  assert.deepEqual(shortened(["a very long &lt;b&gt; &amp; c&lt;/b&gt;"], 8), ["…&amp; c&lt;/b&gt;"], "no mark is cut in two");
  assert.equal(isEmpty({ data: [{ x: [null] }], layout: {} }), true);
  assert.equal(isEmpty(heatmap()), false);
});

test("each figure names the call for its numbers", () => {
  assert.deepEqual(dataCall("r", "learning_rate", { start: 1, stop: 2, columns: 10 }, ["learning_rate", "learning_rate/a,b"]), ["/runs/r/series", { names: "learning_rate,learning_rate/a\\,b", start: 1, stop: 2, columns: 10 }]);
  assert.equal(dataCall("r", "layers", { statistic: "update_ratio" })[0], "/runs/r/layers/update_ratio");
  assert.equal(dataCall("r", "effective_rank", {})[0], "/runs/r/layers/effective_rank");
  assert.deepEqual(dataCall("r", "ranks", { layer: "l", of: "weight" }), ["/runs/r/spectra", { layer: "l", of: "weight", start: undefined, stop: undefined }]);
});

test("the verdict names the worst open alert, else how the run stands", () => {
  const run = { state: "running", last_step: 1200, sparkline: [3, 1.5], updated_at: 0 };
  const alert = (severity, opened_step, state = "open") => ({ severity, state, opened_step, rule: "dead_layer", message: "m", first_layer: "h.0" });
  assert.deepEqual(verdict(run, [], 10), { health: "ok", text: "Healthy at step 1,200: no open alert. Loss 1.5." });
  const bad = verdict(run, [alert("warning", 5), alert("critical", 90), alert("critical", 1, "closed")], 10);
  assert.equal(bad.health, "critical");
  assert.equal(bad.text, "Critical: m, first in h.0; since step 90. 1 more alert.");
  assert.equal(verdict(run, [alert("warning", 5, "closed")].map((one) => ({ ...one, closed_step: 40 })), 10).text, "Healthy at step 1,200: no open alert (1 closed, the last at step 40). Loss 1.5.");
  assert.equal(verdict({ ...run, state: "lost" }, [], 7300).text, "Lost: last heard 2 h ago, at step 1,200. Loss 1.5.");
  assert.equal(verdict({ ...run, last_step: 0, sparkline: undefined }, [], 1).text, "Healthy before its first step: no open alert.");
  assert.equal(verdict(run, [{ ...alert("critical", 5), muted: true }], 10).health, "ok");
  assert.deepEqual(verdict({ ...run, health: "critical", open_alerts: 2 }, null, 10), { health: "critical", text: "Critical at step 1,200: 2 open alerts." });
  assert.equal(verdict({ ...run, health: "warning", open_alerts: 0 }, null, 10).text, "Warning at step 1,200: no open alerts.");
  assert.equal(verdict({ ...run, health: "ok", open_alerts: 0 }, null, 10).text, "Healthy at step 1,200: no open alert. Loss 1.5.");
  assert.deepEqual(standing([alert("info", 1), alert("warning", 9), alert("warning", 2)]).map((one) => one.opened_step), [2, 9, 1]);
});

test("suggestions become parameter groups", () => {
  const one = (layer, value, enough_evidence = true) => ({ quantity: "learning_rate_multiplier", layer, value, enough_evidence });
  const all = [one("a.weight", 0.5), one("b.weight[q]", 0.501), one("c", null, false), { quantity: "batch_size", layer: null, value: 9 }];
  assert.deepEqual(multipliers(all), [["a.weight", 0.5], ["b.weight[q]", 0.501]]);
  assert.match(groupsCode(all), /0\.5: \[\n {8}"a\.weight",\n {8}"b\.weight",\n {4}\],/);
  assert.equal(evidenceWords({ noise_scale: 12.3456, rows: [1], unit: "examples" }, format.number), "noise scale 12.35 · unit examples");
});

test("what all evidence has in common is said once", () => {
  const { common, rest } = sharedEvidence([{ evidence: { batch: 16, noise: 1 } }, { evidence: { batch: 16, noise: 2 } }]);
  assert.deepEqual(common, { batch: 16 });
  assert.deepEqual(rest({ batch: 16, noise: 2 }), { noise: 2 });
  assert.deepEqual(sharedEvidence([]).common, {});
});

test("the evidence of an alert has its curve and its numbers", () => {
  const evidence = { series: "grad_norm", median: 0.5, peak_step: 4, window: { steps: [3, 4], values: [1, "NaN"] }, kinds: ["loss"], values: { loss: "NaN" } };
  assert.deepEqual(evidenceCurve(evidence), { name: "grad norm", values: [1, "NaN"], first: 3, last: 4, mark: 1 });
  assert.equal(evidenceCurve({}), null);
  assert.deepEqual(evidenceRows(evidence), [["median", "0.5"], ["peak step", "4"], ["kinds", "loss"], ["values: loss", "NaN"]]);
});

test("a job runs at once, gathers demands, and never runs twice at a time", async () => {
  let clock = 0;
  let runs = 0;
  const timers = [];
  const jobs = gathered(async () => void (runs += 1), { pause: () => 300, now: () => clock, later: (f, ms) => timers.push([ms, f]) });
  jobs.demand();
  jobs.demand();
  jobs.demand();
  await Promise.resolve();
  await Promise.resolve();
  assert.equal(runs, 1);
  assert.deepEqual(timers.map(([ms]) => ms), [300]);
  clock = 300;
  timers.pop()[1]();
  assert.equal(runs, 2);
  jobs.stop();
  jobs.demand();
  assert.equal(runs, 2);
});

class Source {
  constructor() {
    this.handlers = {};
    this.closed = false;
  }
  addEventListener(name, f) {
    this.handlers[name] = f;
  }
  close() {
    this.closed = true;
  }
}

test("the stream comes back by itself and asks anew for what it may have missed", () => {
  const sources = [];
  const timers = [];
  const live = new Live({ open: () => (sources.push(new Source()), sources.at(-1)), later: (f, ms) => timers.push([ms, f]) });
  const heard = [];
  live.onRun("r1", (event) => heard.push(event && event.step));
  live.connect();
  sources[0].onopen();
  assert.equal(live.state, "live");
  sources[0].handlers.opened({ data: '{"seconds":1e9,"runs":{}}' });
  sources[0].handlers.run({ data: '{"run":"r1","step":7}' });
  sources[0].handlers.run({ data: '{"run":"r2","step":8}' });
  sources[0].onerror();
  assert.equal(live.state, "offline");
  assert.equal(sources[0].closed, true);
  timers.pop()[1]();
  sources[1].onerror();
  assert.deepEqual(timers.map(([ms]) => ms), [1000]);
  timers.pop()[1]();
  sources[2].onopen();
  sources[2].handlers.opened({ data: '{"seconds":1e9,"runs":{}}' });
  assert.deepEqual(heard, [7, null]);
  live.pause(true);
  sources[2].handlers.run({ data: '{"run":"r1","step":9}' });
  assert.deepEqual(heard, [7, null]);
  live.pause(false);
  assert.deepEqual(heard, [7, null, null]);
  live.hide();
  assert.equal(live.state, "hidden");
  assert.equal(sources[2].closed, true);
});

test("what was announced between the page's first question and the open stream is told once", () => {
  let time = 5000;
  const sources = [];
  const opened = (runs, seconds) => {
    const live = new Live({ open: () => (sources.push(new Source()), sources.at(-1)), now: () => time, since: time });
    const heard = [];
    live.onRun(null, (event) => heard.push(event && event.run));
    time += 2000;
    live.connect();
    sources.at(-1).onopen();
    sources.at(-1).handlers.opened({ data: JSON.stringify({ runs, seconds }) });
    return heard;
  };
  assert.deepEqual(opened({ before: 2.5, within: 1.9, now: 0 }, 60), ["within", "now"]);
  assert.deepEqual(opened({}, 60), []);
  assert.deepEqual(opened({ within: 1 }, 1.5), [null], "the server knows less of the time before than has passed");
});

test("drawings take turns: each one has its frame, in the order in which they came", async () => {
  const frames = [];
  const done = [];
  for (const name of ["loss", "grad_norm", "noise_scale"]) void turn((f) => frames.push(f)).then(() => done.push(name));
  const settled = () => new Promise((resolve) => setTimeout(resolve, 5));
  await settled();
  assert.deepEqual([done, frames.length], [["loss"], 1]);
  frames.pop()();
  await settled();
  assert.deepEqual([done, frames.length], [["loss", "grad_norm"], 1]);
  frames.pop()();
  await settled();
  assert.deepEqual(done, ["loss", "grad_norm", "noise_scale"]);
  frames.pop()();
});
