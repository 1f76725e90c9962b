// Numbers, times and names as text. Pure functions.

/** Numbers come as numbers, null (missing) or the strings "NaN", "Infinity", "-Infinity".
 * @param {unknown} value @returns {number | null} */
export function asNumber(value) {
  if (value === null || value === undefined || value === "") return null;
  return Number(value);
}

/** A number with `digits` significant digits; missing is a dash. @param {unknown} value @param {number} [digits] */
export function number(value, digits = 4) {
  const x = asNumber(value);
  if (x === null) return "–";
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "+inf" : "−inf";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, power] = x.toExponential(Math.max(digits - 2, 0)).split("e");
    return minus(`${trimmed(mantissa)}e${Number(power)}`);
  }
  const text = x.toPrecision(digits);
  return minus(text.includes("e") ? String(Math.round(x)) : trimmed(text));
}

/** @param {string} text */
const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
/** @param {string} text */
const minus = (text) => text.replace("-", "−").replace("e−", "e-");

/** A whole number in groups of three; without toLocaleString, whose first call takes tens of milliseconds.
 * @param {unknown} value */
export function whole(value) {
  const x = asNumber(value);
  if (x === null || !(Math.abs(x) < 1e21)) return number(x);
  return String(Math.round(x)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** "every step", "every 2nd", "every 8th": how often something is measured. @param {unknown} cadence */
export function every(cadence) {
  const x = asNumber(cadence);
  if (x === null) return "–";
  if (x === 1) return "every step";
  const teen = x % 100 > 10 && x % 100 < 14;
  return `every ${whole(x)}${(!teen && { 1: "st", 2: "nd", 3: "rd" }[x % 10]) || "th"}`;
}

/** A share as a percentage. @param {unknown} share */
export function percent(share) {
  const x = asNumber(share);
  if (x === null || !Number.isFinite(x)) return "–";
  return `${x < 0.1 ? (100 * x).toFixed(2) : (100 * x).toFixed(0)}%`;
}

/** Bytes with a fitting unit. @param {unknown} count */
export function bytes(count) {
  const x = asNumber(count);
  if (x === null || !Number.isFinite(x)) return "–";
  const unit = Math.min(3, Math.max(0, Math.floor(Math.log2(Math.max(x, 1)) / 10)));
  return `${number(x / 1024 ** unit, 3)} ${["B", "KiB", "MiB", "GiB"][unit]}`;
}

/** Seconds in the two largest units. @param {number | null} seconds */
export function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 3600) return `${Math.round(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Seconds of one step, with a fitting unit. @param {unknown} seconds */
export function stepTime(seconds) {
  const x = asNumber(seconds);
  if (x === null || !Number.isFinite(x)) return number(seconds);
  return x < 1 ? `${number(1000 * x, 3)} ms` : `${number(x, 3)} s`;
}

/** Time as seconds since 1970, from a number or an ISO text. @param {unknown} time @returns {number | null} */
export function instant(time) {
  if (time === null || time === undefined) return null;
  if (typeof time === "number") return time;
  const parsed = Date.parse(String(time));
  return Number.isNaN(parsed) ? null : parsed / 1000;
}

/** How long ago, in the largest unit. @param {unknown} time @param {number} now seconds since 1970 */
export function ago(time, now) {
  const then = instant(time);
  if (then === null) return "–";
  const s = Math.max(0, now - then);
  if (s < 5) return "now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} d ago`;
}

/** Date and time of day, as the reader's machine writes it. @param {unknown} time */
export function date(time) {
  const then = instant(time);
  return then === null ? "–" : new Date(1000 * then).toLocaleString();
}

/** Rule names and the like: underscores are spaces. @param {unknown} name */
export function words(name) {
  return String(name ?? "").replaceAll("_", " ");
}

/** Seconds a run still needs, from the mean speed of its present attempt; null where unknown.
 * @param {{last_step: number | null, total_steps: number | null, attempt_first_step: number, attempt_created_at: unknown, updated_at: unknown}} run */
export function timeLeft(run) {
  const begun = instant(run.attempt_created_at);
  const seen = instant(run.updated_at);
  const done = (run.last_step ?? 0) - run.attempt_first_step + 1;
  if (!run.total_steps || !(done > 0) || begun === null || seen === null || seen <= begun) return null;
  return Math.max(0, ((run.total_steps - Number(run.last_step)) * (seen - begun)) / done);
}

/** Nested settings as rows ["optimizer.lr", "0.003"]. @param {unknown} value @param {string} [prefix] @returns {[string, string][]} */
export function flattened(value, prefix = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
    return Object.entries(value).flatMap(([key, inner]) => flattened(inner, prefix ? `${prefix}.${key}` : key));
  }
  return prefix ? [[prefix, typeof value === "string" ? value : JSON.stringify(value)]] : [];
}
