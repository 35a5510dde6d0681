// The reference card under a reply: what it leans on. Its shape is told in docs/knowledge.md; whatever is not, is not shown.

import { el, icon } from "./dom.js";
import { say } from "./i18n.js";

const EXCERPT_CHARS = 160;

/** The card as an element, or null when there is none. */
export function cardView(card) {
  if (!card || typeof card !== "object" || typeof card.title !== "string") return null;
  const sources = Array.isArray(card.sources) ? card.sources.filter((source) => source && typeof source.title === "string") : [];
  const name = say(el("span", "leaning-name"), "leansOn");
  const title = link(card.url, card.title);
  const root = el("details", "leaning", el("summary", "", icon("right"), name, title));
  const list = el("ol", "leaning-sources");
  for (const source of sources) {
    const excerpt = typeof source.excerpt === "string" ? source.excerpt.slice(0, EXCERPT_CHARS) : "";
    list.append(el("li", "", el("strong", "", source.title), ...(excerpt ? [" ", el("span", "", excerpt)] : [])));
  }
  if (sources.length) root.append(list);
  else if (card.summary) root.append(el("p", "leaning-summary", String(card.summary)));
  return root;
}

/** A title, as a link when its address is the web's or this site's. */
function link(url, title) {
  const isSafe = typeof url === "string" && (/^https?:\/\//i.test(url) || /^\/(?![/\\])/.test(url));
  if (!isSafe) return el("span", "leaning-title", title);
  const anchor = el("a", "leaning-title", title);
  anchor.href = url;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  return anchor;
}
