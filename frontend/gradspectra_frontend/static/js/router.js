// Follows the address bar: links inside the page change the view without loading it anew.

import { useEffect, useState } from "./html.js";
import { parse, query } from "./address.js";

/** @type {Set<() => void>} */
const listeners = new Set();
const changed = () => listeners.forEach((listener) => listener());

/** The address now. */
export const here = () => parse(location.pathname, location.search);

/** Go to another view. @param {string} path @param {{replace?: boolean}} [how] */
export function navigate(path, { replace = false } = {}) {
  const samePlace = path.split("?")[0] === location.pathname;
  history[replace ? "replaceState" : "pushState"](null, "", path);
  if (!samePlace) scrollTo(0, 0);
  changed();
}

/** Change some values of the view in the address; null takes one out. @param {Record<string, unknown>} values */
export function setView(values) {
  navigate(location.pathname + query({ ...here().view, ...values }), { replace: true });
}

/** The address, as state of a component. */
export function useAddress() {
  const [address, setAddress] = useState(here);
  useEffect(() => {
    const listener = () => setAddress(here());
    listeners.add(listener);
    listener();
    return () => void listeners.delete(listener);
  }, []);
  return address;
}

/** Take over back, forward and clicks on own links. */
export function startRouter() {
  addEventListener("popstate", changed);
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
    if (!(link instanceof HTMLAnchorElement) || link.origin !== location.origin || link.target || link.hasAttribute("download")) return;
    if (parse(link.pathname, link.search).page === "unknown" || link.pathname.startsWith("/docs")) return;
    event.preventDefault();
    navigate(link.pathname + link.search);
  });
}
