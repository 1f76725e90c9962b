// Plotly's script: loaded when the first figure needs it, from the address in the page's head.

import { Failure } from "./api.js";

const QUIET_MS = 1500;

/** @type {Promise<any> | null} */
let loading = null;

/** @returns {Promise<any>} the Plotly object */
export function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = document.querySelector('meta[name="plotly"]')?.getAttribute("content") ?? "";
    script.onload = () => resolve(/** @type {any} */ (window).Plotly);
    script.onerror = () => {
      loading = null;
      script.remove();
      reject(new Failure({
        title: "This figure cannot be drawn",
        detail: "The script that draws could not be loaded from this server.",
        remedy: "The page tries again by itself; if the server was updated, load the page again.",
      }));
    };
    document.head.append(script);
  });
  return loading;
}

/** Load the script once the page is quiet; a figure that is asked for before loads it by itself. */
export function warmUp() {
  const idle = window.requestIdleCallback ?? ((/** @type {() => void} */ f) => f());
  setTimeout(() => idle(() => void plotly().catch(() => {})), QUIET_MS);
}

export const CONFIG = {
  displayModeBar: false,
  displaylogo: false,
  responsive: false,
  doubleClick: false,
  showTips: false,
  scrollZoom: false,
};
