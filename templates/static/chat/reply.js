// One message on the screen: what a person said, or a reply with its reasoning, its state and what one can do with it.

import { json } from "./api.js";
import { cardView } from "./card.js";
import { byId, copyText, el, icon, iconButton, show, textButton, toast } from "./dom.js";
import { label, say, sayTime } from "./i18n.js";
import { MarkdownView } from "./markdown.js";

const SLOW_RENDER_MS = 8;
const ANNOUNCED_BLOCKS = 30;

/** Tell screen readers about new text once; they read the reply itself only when they go there. */
export function announce(text) {
  const box = byId("announcer");
  if (!text.trim()) return;
  box.append(el("p", "", text));
  while (box.children.length > ANNOUNCED_BLOCKS) box.firstElementChild.remove();
}

export function announceWords(key) {
  const words = say(el("p"), key);
  byId("announcer").append(words);
}

/** What a person said. */
export class SaidView {
  constructor(message) {
    this.message = message;
    this.note = el("p", "note");
    show(this.note, false);
    const heading = say(el("h2", "visually-hidden"), "youSaid");
    this.root = el("article", "message message--user", heading, el("div", "bubble", message.content), this.note);
    if (message.id) this.root.dataset.messageId = message.id;
  }

  identify(id) {
    this.message.id = id;
    this.root.dataset.messageId = id;
  }

  /** Say that it was not sent, with ways on; no words takes it back. */
  complain(key, values, ...buttons) {
    show(this.note, Boolean(key));
    this.root.classList.toggle("is-unsent", Boolean(key));
    if (!key) return;
    this.note.replaceChildren(icon("alert"), say(el("span"), key, values), ...buttons);
    this.note.setAttribute("role", "alert");
  }
}

/** A reply, growing or finished. */
export class ReplyView {
  /** Hooks: onRegenerate(view), onVersion(step), onReconnect(), onTrouble(error). */
  constructor(message, hooks) {
    this.message = { content: "", status: "streaming", ...message };
    this.hooks = hooks;
    this.frame = 0;
    this.notBefore = 0;
    this.prose = el("div", "prose");
    this.markdown = new MarkdownView(this.prose, (text) => {
      if (this.isLive) announce(text);
    });
    this.isLive = this.message.status === "streaming";

    this.reasoningText = el("div", "reasoning-text");
    this.reasoningName = el("span");
    this.reasoning = el("details", "reasoning", el("summary", "", icon("right"), this.reasoningName), this.reasoningText);
    this.dots = el("div", "dots", el("span"), el("span"), el("span"));
    this.dots.setAttribute("role", "img");
    label(this.dots, "thinking");
    this.note = el("p", "note");
    this.card = el("div", "card-place");
    this.tools = el("div", "tools");
    const heading = say(el("h2", "visually-hidden"), "assistantSaid");
    this.root = el("article", "message message--assistant", heading, this.reasoning, this.prose, this.dots, this.note, this.card, this.tools);
    this.identify(this.message.id);
    this.draw();
  }

  identify(id) {
    this.message.id = id;
    if (id) this.root.dataset.messageId = id;
  }

  setText(text) {
    this.message.content = text;
    this.drawSoon();
  }

  setReasoning(text) {
    this.message.reasoning = text;
    this.drawSoon();
  }

  /** Draw in the next frame, or later when the last drawing was slow. */
  drawSoon() {
    if (this.frame) return;
    const wait = this.notBefore - performance.now();
    const ask = () => {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        const start = performance.now();
        this.drawText();
        const took = performance.now() - start;
        this.notBefore = took > SLOW_RENDER_MS ? performance.now() + took * 4 : 0;
      });
    };
    if (wait <= 0) ask();
    else this.frame = setTimeout(ask, wait);
  }

  /** Take over what the server says about this reply at its end. */
  finish(values) {
    Object.assign(this.message, values);
    this.isLive = this.message.status === "streaming";
    this.setState("live");
    this.draw();
    if (!this.isLive) announceWords("replyDone");
  }

  draw() {
    this.root.dataset.status = this.message.status;
    if (this.isLive) this.root.setAttribute("aria-busy", "true");
    else this.root.removeAttribute("aria-busy");
    this.drawText();
    this.drawNote();
    this.drawCard();
    this.drawTools();
  }

  /** Show what the reply leans on; a card that is open stays so while it says the same. */
  drawCard() {
    const { referenceCard } = this.message;
    show(this.card, Boolean(referenceCard) && !this.isLive);
    if (this.cardShown === referenceCard) return;
    this.cardShown = referenceCard;
    this.card.replaceChildren(...[cardView(referenceCard)].filter(Boolean));
  }

  drawText() {
    const { content, reasoning } = this.message;
    this.markdown.show(content, !this.isLive);
    this.root.replyText = content; // the exact text, for whoever needs more than the rendering
    show(this.dots, this.isLive && !content);
    show(this.reasoning, Boolean(reasoning));
    if (!reasoning) return;
    say(this.reasoningName, this.isLive && !content ? "reasoningLive" : "reasoning");
    const node = this.reasoningText.firstChild;
    if (node && reasoning.startsWith(node.data)) node.appendData(reasoning.slice(node.data.length));
    else this.reasoningText.textContent = reasoning;
  }

  /** Show how the connection is doing: "live", "reconnecting", "waiting" (seconds) or "failed" (reason). */
  setState(state, detail) {
    this.root.dataset.connection = state;
    if (state === "live") return this.drawNote();
    show(this.note);
    this.note.classList.remove("note--alert");
    const again = textButton("reconnectNow", "link-button", () => this.hooks.onReconnect());
    if (state === "reconnecting") this.note.replaceChildren(el("span", "spinner"), say(el("span"), "reconnecting"));
    else if (state === "waiting") {
      this.note.replaceChildren(el("span", "spinner"), say(el("span"), "reconnectIn", { seconds: detail }), again);
    } else {
      this.note.replaceChildren(icon("alert"), say(el("span"), "followFailed", { reason: detail }), again);
    }
    return undefined;
  }

  drawNote() {
    const { status, finishReason, errorMessage, content } = this.message;
    let key = "";
    if (status === "stopped") key = "statusStopped";
    else if (status === "truncated") key = finishReason === "content_filter" ? "statusFiltered" : "statusTruncated";
    else if (status === "failed") key = "statusFailed";
    else if (status === "interrupted") key = "statusInterrupted";
    else if (status === "complete" && !content) key = "emptyReply";
    show(this.note, Boolean(key));
    if (!key) return;
    const bad = status === "failed" || status === "interrupted";
    this.note.classList.toggle("note--alert", bad);
    const words = errorMessage && status === "failed" ? el("span", "", errorMessage) : say(el("span"), key);
    this.note.replaceChildren(...(bad ? [icon("alert")] : []), words);
  }

  /** Where this reply stands among the versions of its turn, and whether it may be made again. */
  place({ index = 0, count = 1, isLast = false }) {
    this.index = index;
    this.count = count;
    this.isLast = isLast;
    this.drawTools();
  }

  drawTools() {
    show(this.tools, !this.isLive);
    if (this.isLive) return;
    const { content, createdAt, id } = this.message;
    const parts = [];
    if (this.count > 1) {
      const earlier = iconButton("left", "previousVersion", () => this.hooks.onVersion(-1));
      const later = iconButton("right", "nextVersion", () => this.hooks.onVersion(1));
      earlier.disabled = this.index === 0;
      later.disabled = this.index === this.count - 1;
      const place = el("span", "version", `${this.index + 1} / ${this.count}`);
      place.setAttribute("role", "img");
      label(place, "version", { index: this.index + 1, count: this.count });
      parts.push(el("span", "versions", earlier, place, later));
    }
    if (content) {
      const copy = iconButton("copy", "copy", async () => {
        const copied = await copyText(content);
        toast(copied ? "copied" : "copyFailed");
        if (copied) copy.replaceChildren(icon("check"));
        setTimeout(() => copy.replaceChildren(icon("copy")), 1600);
      });
      parts.push(copy);
    }
    if (id && content) parts.push(this.rate("up", "up", "feedbackUp"), this.rate("down", "thumbdown", "feedbackDown"));
    if (id && this.isLast) parts.push(iconButton("again", "regenerate", () => this.hooks.onRegenerate(this)));
    if (createdAt) parts.push(sayTime(el("time", "when"), createdAt));
    this.tools.replaceChildren(...parts);
  }

  rating() {
    const { feedback } = this.message;
    return typeof feedback === "string" ? feedback : (feedback?.rating ?? null);
  }

  rate(rating, iconName, key) {
    const button = iconButton(iconName, key, async () => {
      const before = this.message.feedback;
      const now = this.rating() === rating ? null : rating;
      this.message.feedback = now;
      this.drawTools();
      this.tools.querySelector(`[data-rating="${rating}"]`).focus();
      try {
        await json(`/api/xcx/chat/messages/${this.message.id}/feedback`, { method: "PUT", body: { rating: now } });
        if (now) toast("feedbackThanks");
      } catch (error) {
        this.message.feedback = before;
        this.drawTools();
        this.hooks.onTrouble(error);
      }
    });
    button.dataset.rating = rating;
    button.setAttribute("aria-pressed", String(this.rating() === rating));
    return button;
  }
}
