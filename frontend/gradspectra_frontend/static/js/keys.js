// The keyboard: one table of keys, and the help that shows it.

import { html, useLayoutEffect, useRef } from "./html.js";

export const KEYS = [
  ["/", "search or filter"],
  ["j k", "next and previous run"],
  ["Enter", "open the chosen run"],
  ["x", "choose the run for comparing"],
  ["c", "compare the chosen runs"],
  ["1 – 6", "tabs of a run"],
  ["[ ]", "previous and next alert"],
  ["p", "pause or go on drawing"],
  ["t", "light or dark"],
  ["?", "this help"],
  ["Esc", "close, leave a field"],
];

const STORED = "gradspectra.keys";
let off = readOff();

/** Whether this reader has no use for single keys, as many who speak to their machine. */
function readOff() {
  try {
    return localStorage.getItem(STORED) === "off";
  } catch {
    return false;
  }
}

/** @param {boolean} on */
function switchKeys(on) {
  off = !on;
  try {
    localStorage.setItem(STORED, on ? "on" : "off");
  } catch {
    // without storage the choice holds until the page is loaded again
  }
}

/** Whether a key press belongs to a field. @param {EventTarget | null} target */
const typing = (target) => target instanceof HTMLElement && Boolean(target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]"));

/** React to keys from the moment the component is shown. @param {Record<string, (event: KeyboardEvent) => void>} actions */
export function useKeys(actions) {
  const latest = useRef(actions);
  latest.current = actions;
  useLayoutEffect(() => {
    const press = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Escape" && typing(event.target)) return void (/** @type {HTMLElement} */ (event.target).blur());
      if (off || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return undefined;
      if (document.querySelector("dialog[open]")) return undefined; // nothing moves behind it
      const action = latest.current[event.key];
      if (!action) return undefined;
      event.preventDefault();
      return action(event);
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

/**
 * Move through a list at once, or as soon as it is there: a key pressed while it is still asked for is not lost.
 * @param {boolean} there whether the list is there, or will not come
 * @param {(by: number) => void} move
 * @returns {(by: number) => () => void}
 */
export function useMoves(there, move) {
  const waiting = useRef(0);
  useLayoutEffect(() => {
    const by = waiting.current;
    waiting.current = 0;
    if (by) move(by);
  }, [there]);
  return (by) => () => (there ? move(by) : void (waiting.current += by));
}

/** Put the cursor into the page's search field. */
export function focusSearch() {
  const field = document.querySelector("[data-search]");
  if (field instanceof HTMLInputElement) {
    field.focus();
    field.select();
  }
}

/** @param {{onClose: () => void}} props */
export function Help({ onClose }) {
  const dialog = useRef(/** @type {any} */ (null));
  useLayoutEffect(() => dialog.current?.showModal(), []);
  return html`<dialog ref=${dialog} class="help" onClose=${onClose} onClick=${(/** @type {any} */ e) => e.target === dialog.current && dialog.current.close()}>
    <h2>Keyboard</h2>
    <dl>${KEYS.map(([key, what]) => html`<div><dt>${key.split(" ").map((one) => (one === "–" ? " – " : html`<kbd>${one}</kbd> `))}</dt><dd>${what}</dd></div>`)}</dl>
    <p><label class="check"><input type="checkbox" data-control="keys" defaultChecked=${!off} onChange=${(/** @type {any} */ e) => switchKeys(e.target.checked)} /> Obey these keys</label></p>
    <form method="dialog"><button>Close</button></form>
  </dialog>`;
}
