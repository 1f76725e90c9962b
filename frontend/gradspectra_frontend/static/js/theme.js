// Light and dark: the system's preference until the reader chooses.

const KEY = "gradspectra.theme";
const DARK = matchMedia("(prefers-color-scheme: dark)");
/** @type {Set<() => void>} */
const listeners = new Set();
const changed = () => listeners.forEach((listener) => listener());
DARK.addEventListener("change", changed);

/** @returns {"light" | "dark"} */
export function themeNow() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen === "light" || chosen === "dark") return chosen;
  return DARK.matches ? "dark" : "light";
}

/** Change to the other theme and remember it. */
export function toggleTheme() {
  const next = themeNow() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // without storage the choice holds until the page is loaded again
  }
  changed();
}

/** Hear of a change. Returns how to stop. @param {() => void} listener */
export function onTheme(listener) {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}
