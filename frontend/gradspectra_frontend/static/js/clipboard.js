// Text to the clipboard, also where the page came over plain HTTP from another machine.

/** Whether it worked. Browsers have `navigator.clipboard` only on pages that came over HTTPS or from their own machine.
 * @param {string} text */
export async function copied(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  const before = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  field.style.position = "fixed"; // does not scroll the page when it is chosen
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (before instanceof HTMLElement) before.focus();
  return done;
}
