// Light and dark: the system's preference until the reader chooses.

import { useEffect, useState } from "./html.js";

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

/** The theme, as state of a component. */
export function useTheme() {
  const [theme, setTheme] = useState(themeNow);
  useEffect(() => {
    const listener = () => setTheme(themeNow());
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return theme;
}
