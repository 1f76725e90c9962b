// What an alert saw: its small window of the curve, and its numbers. Pure functions.

import { number, words } from "./format.js";

/** The curve of an alert's evidence, from {"window": {"steps", "values"}} or the like; null where there is none.
 * @param {any} evidence @returns {{name: string, values: unknown[], first: number, last: number, mark: number | undefined} | null} */
export function evidenceCurve(evidence) {
  for (const [name, part] of Object.entries(evidence ?? {})) {
    const values = part?.values ?? part?.y;
    const steps = part?.steps ?? part?.x;
    if (!Array.isArray(values) || !Array.isArray(steps) || values.length < 2) continue;
    const at = steps.indexOf(evidence.peak_step);
    const label = typeof evidence.series === "string" ? words(evidence.series) : words(name);
    return { name: label, values, first: Number(steps[0]), last: Number(steps[steps.length - 1]), mark: at < 0 ? undefined : at };
  }
  return null;
}

/** Name and text of each plain number or word of the evidence. @param {any} evidence @returns {[string, string][]} */
export function evidenceRows(evidence) {
  return Object.entries(evidence ?? {}).flatMap(([name, value]) => {
    if (name === "series" || value === null || value === "") return [];
    if (Array.isArray(value)) {
      const plain = value.every((one) => typeof one !== "object");
      return plain && value.length && value.length <= 12 ? [/** @type {[string, string]} */ ([words(name), value.map(shown).join(", ")])] : [];
    }
    if (typeof value === "object") {
      const inner = Object.entries(value).filter(([, one]) => typeof one !== "object");
      return inner.length === Object.keys(value).length ? inner.map(([key, one]) => /** @type {[string, string]} */ ([`${words(name)}: ${words(key)}`, shown(one)])) : [];
    }
    return [/** @type {[string, string]} */ ([words(name), shown(value)])];
  });
}

/** @param {unknown} value */
const shown = (value) => (typeof value === "number" || ["NaN", "Infinity", "-Infinity"].includes(String(value)) ? number(value) : String(value));
