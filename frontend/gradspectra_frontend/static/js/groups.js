// Learning-rate suggestions as optimizer parameter groups, to paste. Pure functions.

/** Multipliers that have enough evidence, by layer. @param {any[]} suggestions @returns {[string, number][]} */
export function multipliers(suggestions) {
  return suggestions
    .filter((one) => one.quantity === "learning_rate_multiplier" && one.layer && one.enough_evidence && one.value !== null)
    .map((one) => [one.layer, Number(one.value)]);
}

/** Python text that makes parameter groups: layers of a like multiplier together, all others as they are.
 * @param {any[]} suggestions */
export function groupsCode(suggestions) {
  /** @type {Map<string, string[]>} */
  const groups = new Map();
  for (const [layer, value] of multipliers(suggestions)) {
    const key = value.toPrecision(2);
    groups.set(key, [...(groups.get(key) ?? []), layer.replace(/\[[^\]]*\]$/, "")]);
  }
  const rows = [...groups].sort(([a], [b]) => Number(a) - Number(b));
  const table = rows.map(([value, layers]) => `    ${Number(value)}: [\n${layers.map((name) => `        ${JSON.stringify(name)},`).join("\n")}\n    ],`);
  return `base_lr = ...  # the rate you train with now
multipliers = {
${table.join("\n")}
}
by_name = dict(model.named_parameters())
grouped = {name for names in multipliers.values() for name in names}
groups = [{"params": [by_name[name] for name in names], "lr": base_lr * factor} for factor, names in multipliers.items()]
groups.append({"params": [p for name, p in by_name.items() if name not in grouped], "lr": base_lr})
`;
}

/** What the evidence of all suggestions has in common, and each one's rest. @param {any[]} suggestions
 * @returns {{common: Record<string, any>, rest: (evidence: any) => Record<string, any>}} */
export function sharedEvidence(suggestions) {
  const all = suggestions.map((one) => one.evidence ?? {});
  const shared = Object.entries(all[0] ?? {}).filter(([name, value]) => all.length > 1 && all.every((one) => one[name] === value));
  const common = Object.fromEntries(shared);
  return { common, rest: (evidence) => Object.fromEntries(Object.entries(evidence ?? {}).filter(([name]) => !(name in common))) };
}

/** The evidence of a suggestion in a few words. @param {any} evidence @param {(x: unknown) => string} number */
export function evidenceWords(evidence, number) {
  return Object.entries(evidence ?? {})
    .filter(([, value]) => value === null || typeof value !== "object")
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "string" && Number.isNaN(Number(value)) ? value : number(value)}`)
    .join(" · ");
}
