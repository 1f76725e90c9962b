// Plotly's script: loaded when the first figure needs it, from the address in the page's head.

const QUIET_MS = 1500;

const source = () => document.querySelector('meta[name="plotly"]')?.getAttribute("content") ?? "";
const found = () => /** @type {any} */ (window).Plotly;

/** @type {Promise<any> | null} */
let loading = null;

/** @returns {Promise<any>} the Plotly object */
export function plotly() {
  loading ??= fromHead().then(() => found() ?? fetched()).catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

/** The head of a run's page has the script already: wait until it has run or failed, which the page's load tells. */
async function fromHead() {
  const script = document.querySelector(`head > script[src="${source()}"]`);
  if (!script || found() || document.readyState === "complete") return;
  await new Promise((resolve) => {
    script.addEventListener("load", resolve);
    addEventListener("load", resolve);
  });
}

/** @returns {Promise<any>} */
function fetched() {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = source();
    script.onload = () => resolve(found());
    script.onerror = () => {
      script.remove();
      reject(new Error("Plotly's script could not be loaded from this server."));
    };
    document.head.append(script);
  });
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
