// Small ways to build elements: text is always text, never markup, and no handler is ever inline.

import { label, say } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";

/** A new element with a class and children; strings become text nodes. */
export function el(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** An icon of the sprite in the page, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon and is named by a key of the word list. */
export function iconButton(name, key, onClick, values) {
  const button = el("button", "icon-button", icon(name));
  button.type = "button";
  label(button, key, values);
  button.addEventListener("click", onClick);
  return button;
}

/** A button that shows words. */
export function textButton(key, className, onClick) {
  const button = say(el("button", className), key);
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

/** The element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Show or hide an element. */
export function show(element, visible = true) {
  element.hidden = !visible;
}

/** Put text on the clipboard; true when it got there. Plain http pages have no clipboard API. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", "visually-hidden");
    area.value = text;
    document.body.append(area);
    const focused = document.activeElement;
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus?.();
    return copied;
  }
}

let toastTimer = 0;

/** Say something in passing at the bottom of the page, also to screen readers. */
export function toast(key, values) {
  const box = byId("toast");
  if (/^\w+$/.test(key)) {
    say(box, key, values);
  } else {
    delete box.dataset.i18n; // a sentence of the server, in the language it was asked for
    box.textContent = key;
  }
  box.classList.add("is-shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => {
    box.classList.remove("is-shown");
  }, 3200);
}

/** Wait this long; resolves early when the signal is aborted. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
