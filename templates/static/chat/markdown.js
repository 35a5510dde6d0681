// A small Markdown for replies, built from DOM nodes only: text of a model never becomes markup.
//
// It grows with the reply. Blocks that later text cannot change are built once and left alone; only the last
// block is built again, so a long reply costs about the same per frame at its end as at its beginning.
// Left out on purpose: raw HTML, images (shown as links), reference links, indented code, underlined headings.

import { copyText, el, iconButton, toast } from "./dom.js";

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const LINK = /!?\[([^[\]\n]{1,500})\]\([ \t]*<?((?:[^\s()<>]|\([^\s()<>]*\)){1,2000})>?(?:[ \t]+"[^"\n]{0,300}")?[ \t]*\)/y;
const BARE_LINK = /https?:\/\/[^\s<>"'`\u3000-\u9fff\uff00-\uffef]+/y;
const SPECIAL = /[\\`*_~[!h\n]/g;

function isTableStart(lines, i) {
  return (
    i + 1 < lines.length &&
    lines[i].includes("|") &&
    lines[i + 1].includes("-") &&
    lines[i + 1].length < 2000 &&
    TABLE_RULE.test(lines[i + 1]) &&
    cells(lines[i]).length === cells(lines[i + 1]).length
  );
}

function startsBlock(lines, i) {
  const line = lines[i];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isTableStart(lines, i)) return true;
  const item = ITEM.exec(line);
  if (!item || item[0].length === line.length) return false;
  return !/\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1; // "2020. " in a paragraph is no list
}

/** The cells of a table row; an escaped bar stays in its cell. (No lookbehind: older phones refuse the module.) */
function cells(line) {
  let inner = line.trim();
  if (inner.startsWith("|")) inner = inner.slice(1);
  if (inner.endsWith("|") && !inner.endsWith("\\|")) inner = inner.slice(0, -1);
  const found = [""];
  for (const part of inner.split("|")) {
    const last = found.length - 1;
    if (found[last].endsWith("\\")) found[last] = `${found[last].slice(0, -1)}|${part}`;
    else found.push(part);
  }
  return found.slice(1).map((cell) => cell.trim());
}

const indentOf = (line) => line.length - line.trimStart().length;

/** The blocks of these lines; each says at which line it starts. */
function parse(lines, depth = 0) {
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    const start = i;
    const line = lines[i];
    if (!line.trim()) {
      i += 1;
      continue;
    }
    const fence = FENCE.exec(line);
    if (fence) {
      const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}[ \\t]*$`);
      const indent = indentOf(line);
      const code = [];
      i += 1;
      while (i < lines.length && !close.test(lines[i])) {
        code.push(lines[i].slice(Math.min(indent, indentOf(lines[i]))));
        i += 1;
      }
      i += 1;
      blocks.push({ type: "code", start, language: fence[2].trim().split(/\s/)[0], lines: code });
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      const text = (heading[2] ?? "").trim().replace(/(^|[ \t])#+$/, "").trim();
      blocks.push({ type: "heading", start, level: heading[1].length, text });
      i += 1;
      continue;
    }
    if (RULE.test(line)) {
      blocks.push({ type: "rule", start });
      i += 1;
      continue;
    }
    if (QUOTE.test(line)) {
      const inner = [];
      while (i < lines.length && QUOTE.test(lines[i])) {
        inner.push(lines[i].replace(QUOTE, ""));
        i += 1;
      }
      blocks.push({ type: "quote", start, blocks: inside(inner, depth) });
      continue;
    }
    if (ITEM.test(line)) {
      i = parseList(lines, i, depth, blocks);
      continue;
    }
    if (isTableStart(lines, i)) {
      const head = cells(line);
      const align = cells(lines[i + 1]).map((rule) => {
        if (rule.startsWith(":") && rule.endsWith(":")) return "center";
        return rule.endsWith(":") ? "right" : "";
      });
      const rows = [];
      i += 2;
      while (i < lines.length && lines[i].includes("|") && lines[i].trim()) {
        rows.push(cells(lines[i]));
        i += 1;
      }
      blocks.push({ type: "table", start, head, align, rows });
      continue;
    }
    const paragraph = [line.trimStart()];
    i += 1;
    while (i < lines.length && lines[i].trim() && !startsBlock(lines, i)) {
      paragraph.push(lines[i].trimStart());
      i += 1;
    }
    blocks.push({ type: "paragraph", start, text: paragraph.join("\n") });
  }
  return blocks;
}

function inside(lines, depth) {
  if (depth < MAX_DEPTH) return parse(lines, depth + 1);
  return [{ type: "paragraph", start: 0, text: lines.join("\n") }];
}

function parseList(lines, first, depth, blocks) {
  const opening = ITEM.exec(lines[first]);
  const ordered = /\d/.test(opening[2]);
  const mark = opening[2].slice(-1);
  const list = {
    type: "list", start: first, ordered, first: ordered ? Number.parseInt(opening[2], 10) : 1, items: [], loose: false,
  };
  const base = opening[1].length;
  let i = first;
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length > base + 1 || item[2].slice(-1) !== mark || RULE.test(lines[i])) break;
    const marker = item[1].length + item[2].length;
    const content = marker + Math.min(Math.max(item[3].length, 1), 4);
    const inner = [lines[i].slice(Math.min(content, lines[i].length))];
    let blank = false;
    i += 1;
    while (i < lines.length) {
      const line = lines[i];
      if (!line.trim()) {
        inner.push("");
        blank = true;
      } else if (indentOf(line) >= Math.min(content, item[1].length + 2)) {
        inner.push(line.slice(Math.min(content, indentOf(line))));
        if (blank) list.loose = true;
        blank = false;
      } else if (!blank && !ITEM.test(line) && !startsBlock(lines, i)) {
        inner.push(line.trimStart());
      } else {
        break;
      }
      i += 1;
    }
    if (blank && i < lines.length && ITEM.test(lines[i])) list.loose = true;
    const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
    if (task) inner[0] = inner[0].slice(task[0].length);
    list.items.push({ blocks: inside(inner, depth), task: task ? task[1] !== " " : null });
  }
  blocks.push(list);
  return i;
}

/** A safe address for a link, or null: http, https and mailto only. */
export function safeAddress(text) {
  try {
    const address = new URL(text);
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address.href : null;
  } catch {
    return null; // relative or broken: not a link
  }
}

function link(address, ...children) {
  const anchor = el("a", "", ...children);
  anchor.href = address;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  return anchor;
}

const isWord = (char) => char !== undefined && /[\p{L}\p{N}_]/u.test(char);
const isSpace = (char) => char === undefined || /\s/.test(char);

/** Where the mark that closes an emphasis stands, or -1. */
function findClose(text, from, mark) {
  let at = from;
  for (;;) {
    at = text.indexOf(mark, at);
    if (at < 0) return -1;
    const before = text[at - 1];
    const after = text[at + mark.length];
    let good = at > from && !isSpace(before) && before !== "\\";
    if (mark.length === 1 && (after === mark || before === mark)) good = false;
    if (mark.length === 2 && after === mark[0] && text[at + 3] !== mark[0]) at += 1; // "***": the inner one closes first
    if (mark[0] === "_" && isWord(text[at + mark.length])) good = false;
    if (good) return at;
    at += mark.length;
    if (mark.length === 1) while (text[at] === mark) at += 1;
  }
}

const EMPHASIS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

// While a block still grows, bold and code that are not closed yet are shown as if they were: no stray marks.
let isGrowing = false;

/** Append the inline content of a text to a parent. */
function inline(parent, text, depth = 0) {
  let plain = 0;
  let i = 0;
  const hopeless = new Set(); // marks that do not close in the rest: looked for once, not once per opening
  const flush = (end) => {
    if (end > plain) parent.append(text.slice(plain, end));
  };
  const put = (node, start, end) => {
    flush(start);
    parent.append(node);
    i = end;
    plain = end;
  };
  while (i < text.length) {
    SPECIAL.lastIndex = i;
    const found = SPECIAL.exec(text);
    if (!found) break;
    i = found.index;
    const char = text[i];
    if (char === "\n") {
      const hard = text[i - 1] === "\\";
      put(el("br"), hard ? i - 1 : i, i + 1);
    } else if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "")) {
      flush(i);
      plain = i + 1;
      i += 2;
    } else if (char === "`") {
      const ticks = /`+/y;
      ticks.lastIndex = i;
      const mark = ticks.exec(text)[0];
      let end = hopeless.has(mark) ? -1 : findTicks(text, i + mark.length, mark.length);
      if (end < 0 && isGrowing && i + mark.length < text.length) end = text.length;
      if (end < 0) {
        hopeless.add(mark);
        i += mark.length;
      } else {
        let code = text.slice(i + mark.length, end).replaceAll("\n", " ");
        if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
        put(el("code", "", code), i, Math.min(end + mark.length, text.length));
      }
    } else if ((char === "[" || char === "!") && depth < MAX_DEPTH) {
      LINK.lastIndex = i;
      const match = LINK.exec(text);
      const address = match && safeAddress(match[2]);
      if (address) {
        const anchor = link(address);
        inline(anchor, match[1], MAX_DEPTH - 1);
        put(anchor, i, i + match[0].length);
      } else {
        i += 1;
      }
    } else if (char === "h") {
      BARE_LINK.lastIndex = i;
      const match = isWord(text[i - 1]) && text.charCodeAt(i - 1) < 128 ? null : BARE_LINK.exec(text);
      const shown = match?.[0].replace(/[.,;:!?*_~)\]]+$/, (tail) => (tail[0] === ")" && match[0].includes("(") ? ")" : ""));
      const address = shown && parent.tagName !== "A" && safeAddress(shown);
      if (address) put(link(address, shown), i, i + shown.length);
      else i += 1;
    } else {
      const emphasis = depth < MAX_DEPTH && EMPHASIS.find(([mark]) => text.startsWith(mark, i));
      const mark = emphasis ? emphasis[0] : char;
      const inner = i + mark.length;
      const opens = emphasis && !hopeless.has(mark) && !isSpace(text[inner]) && !(mark[0] === "_" && isWord(text[i - 1]));
      let end = opens ? findClose(text, inner, mark) : -1;
      if (end < 0 && opens && isGrowing && mark === "**") end = text.length;
      if (end < 0) {
        if (opens) hopeless.add(mark);
        i = inner;
      } else {
        const node = el(emphasis[1]);
        inline(node, text.slice(inner, end), depth + 1);
        put(node, i, Math.min(end + mark.length, text.length));
      }
    }
  }
  flush(text.length);
}

function findTicks(text, from, length) {
  const runs = /`+/g;
  runs.lastIndex = from;
  for (let run = runs.exec(text); run; run = runs.exec(text)) {
    if (run[0].length === length) return run.index;
  }
  return -1;
}

function codeBlock(block) {
  const code = el("code", "", block.lines.join("\n"));
  const copy = iconButton("copy", "copyCode", async () => {
    toast((await copyText(code.textContent)) ? "copied" : "copyFailed");
  });
  const pre = el("pre", "", code);
  pre.tabIndex = 0; // a wide block must scroll from the keyboard
  const bar = el("div", "code-bar", el("span", "code-language", block.language || "text"), copy);
  const box = el("div", "code-block", bar, pre);
  box.codeText = code.firstChild ?? code.appendChild(document.createTextNode(""));
  return box;
}

function build(block, tight = false) {
  if (block.type === "code") return codeBlock(block);
  if (block.type === "rule") return el("hr");
  if (block.type === "heading") {
    const heading = el(`h${Math.min(block.level + 2, 6)}`, `heading-${block.level}`);
    inline(heading, block.text);
    return heading;
  }
  if (block.type === "quote") return el("blockquote", "", ...block.blocks.map((inner) => build(inner)));
  if (block.type === "list") {
    const list = el(block.ordered ? "ol" : "ul");
    if (block.ordered && block.first !== 1) list.start = block.first;
    for (const item of block.items) {
      const li = el("li");
      if (item.task !== null) {
        li.className = "task";
        const box = el("input");
        box.type = "checkbox";
        box.disabled = true;
        box.checked = item.task;
        li.append(box);
      }
      for (const inner of item.blocks) {
        const node = build(inner, !block.loose);
        if (Array.isArray(node)) li.append(...node);
        else li.append(node);
      }
      list.append(li);
    }
    return list;
  }
  if (block.type === "table") {
    const row = (tag, texts) => {
      const tr = el("tr");
      block.head.forEach((_, column) => {
        const cell = el(tag, block.align[column] ? `align-${block.align[column]}` : "");
        if (tag === "th") cell.scope = "col";
        inline(cell, texts[column] ?? "");
        tr.append(cell);
      });
      return tr;
    };
    const table = el("table", "", el("thead", "", row("th", block.head)));
    if (block.rows.length) table.append(el("tbody", "", ...block.rows.map((texts) => row("td", texts))));
    const box = el("div", "table-box", table);
    box.tabIndex = 0;
    return box;
  }
  const paragraph = el("p");
  inline(paragraph, block.text);
  return tight ? Array.from(paragraph.childNodes) : paragraph;
}

/** Shows a growing Markdown text in an element. */
export class MarkdownView {
  /** onBlock(text) is told the words of each block once it is final. */
  constructor(root, onBlock = () => {}) {
    this.root = root;
    this.onBlock = onBlock;
    this.reset();
  }

  reset() {
    this.root.replaceChildren();
    this.settled = 0; // where in the text the last, still changing block begins
    this.shown = "";
    this.ended = false;
    this.open = null; // {node, block} of the last block
  }

  /** Show this text. When it only grew, only its last block is built again. */
  show(source, ended = false) {
    if (this.ended && source === this.shown) return;
    if (this.ended || !source.startsWith(this.shown)) this.reset();
    this.shown = source;
    this.ended = ended;
    const tail = source.slice(this.settled);
    const lines = tail.split(/\r\n|\n|\r/);
    const blocks = parse(lines);
    let open = this.open;
    this.open = null;
    blocks.forEach((block, index) => {
      // Final when a whole line of the next block is here: a partial line may still turn into something else.
      const next = blocks[index + 1];
      const final = ended || (next && next.start < lines.length - 1);
      isGrowing = !final;
      const node = open ? this.rebuild(open, block) : build(block);
      isGrowing = false;
      if (!open) this.root.append(node);
      open = null;
      if (final) {
        if (next) this.settled = source.length - lengthFrom(tail, next.start);
        this.onBlock(node.textContent);
      } else if (!this.open) {
        this.open = { node, block, also: [] };
      } else {
        this.open.also.push(node);
      }
    });
    if (open) open.node.remove();
  }

  rebuild(open, block) {
    for (const node of open.also) node.remove();
    const grown = open.block.type === "code" && block.type === "code" && open.block.language === block.language;
    if (grown) {
      const had = open.node.codeText.data;
      const has = block.lines.join("\n");
      if (has.startsWith(had)) open.node.codeText.appendData(has.slice(had.length));
      else open.node.codeText.data = has;
      return open.node;
    }
    const node = build(block);
    open.node.replaceWith(node);
    return node;
  }
}

/** How many UTF-16 units the text has from the start of this line on. */
function lengthFrom(text, line) {
  const breaks = /\r\n|\n|\r/g;
  for (let count = 0; count < line; count += 1) breaks.exec(text);
  return text.length - (line ? breaks.lastIndex : 0);
}
