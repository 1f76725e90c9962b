// One plain sentence on how a run is doing. Pure functions.

import { ago, asNumber, number, whole, words } from "./format.js";

const RANK = { info: 0, warning: 1, critical: 2 };

/** Open and acknowledged alerts that are not muted, the most severe and oldest first. @param {any[]} alerts @returns {any[]} */
export function standing(alerts) {
  const rank = (/** @type {any} */ alert) => RANK[/** @type {keyof typeof RANK} */ (alert.severity)] ?? 0;
  return alerts.filter((alert) => alert.state !== "closed" && !alert.muted).sort((a, b) => rank(b) - rank(a) || a.opened_step - b.opened_step);
}

/** @param {any} run @param {any[] | null} known its alerts; null: what the run says of itself @param {number} now seconds since 1970
 * @returns {{health: string, text: string}} */
export function verdict(run, known, now) {
  const alerts = known ?? [];
  const open = standing(alerts);
  const losses = run.sparkline ?? [];
  const loss = losses.length ? asNumber(losses[losses.length - 1]) : null;
  const at = run.last_step ? `at step ${whole(run.last_step)}` : "before its first step";
  const more = open.length > 1 ? ` ${open.length - 1} more alert${open.length > 2 ? "s" : ""}.` : "";
  if (known === null && (run.health !== "ok" || run.open_alerts)) {
    const count = run.open_alerts === 1 ? "1 open alert" : `${run.open_alerts || "no"} open alerts`;
    return { health: run.health, text: `${run.health === "ok" ? "Healthy" : named(run.health)} ${at}: ${count}.` };
  }
  if (open.length) {
    const worst = open[0];
    const what = worst.message || words(worst.rule);
    const where = worst.first_layer && !what.includes(worst.first_layer) ? `, first in ${worst.first_layer}` : "";
    return { health: worst.severity === "info" ? "ok" : worst.severity, text: `${named(worst.severity)}: ${what}${where}; since step ${whole(worst.opened_step)}.${more}` };
  }
  const over = alerts.filter((alert) => alert.state === "closed");
  const last = Math.max(...over.map((alert) => alert.closed_step ?? alert.last_step));
  const none = over.length ? `no open alert (${over.length} closed, the last at step ${whole(last)})` : "no open alert";
  const said = loss === null ? "" : ` Loss ${number(loss)}.`;
  if (run.state === "lost") return { health: "warning", text: `Lost: last heard ${ago(run.updated_at, now)}, ${at}.${said}` };
  if (run.state === "failed") return { health: "critical", text: `Failed ${at}; the training job ended with an error.${said}` };
  if (run.state === "finished") return { health: "ok", text: `Finished ${at} with ${none}.${said}` };
  return { health: "ok", text: `Healthy ${at}: ${none}.${said}` };
}

/** @param {string} severity */
const named = (severity) => severity.charAt(0).toUpperCase() + severity.slice(1);
