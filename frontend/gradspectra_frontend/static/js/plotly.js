// Plotly's script: loaded when the first figure needs it, from the address in the page's head.

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
      reject(new Error("Plotly's script could not be loaded from this server."));
    };
    document.head.append(script);
  });
  return loading;
}

/** Load the script while the page is idle, so that the first figure need not wait. */
export function warmUp() {
  const idle = window.requestIdleCallback ?? ((/** @type {() => void} */ f) => setTimeout(f, 300));
  idle(() => void plotly().catch(() => {}));
}

export const CONFIG = {
  displayModeBar: false,
  displaylogo: false,
  responsive: false,
  doubleClick: false,
  showTips: false,
  scrollZoom: false,
};
