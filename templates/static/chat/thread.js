// The open conversation: its messages, the composer, and the one reply that may be under way.

import { ApiError, SignedOut, Unreachable, call, json, randomKey } from "./api.js";
import { byId, el, show, sleep, textButton, toast } from "./dom.js";
import { label, say, t } from "./i18n.js";
import { ReplyView, SaidView, announceWords } from "./reply.js";
import { ReplyFollower, countChars } from "./stream.js";

const BASE = "/api/xcx/chat";
const PAGE = 40;
const NEWEST = "9007199254740991"; // before any id there can be: the newest page
const MAX_CHARS = 32768;
const COUNT_FROM = MAX_CHARS - 500;
const INCLUDE = ["reasoning", "title"];
const SEND_BACKOFF_MS = [500, 1500, 3000, 6000, 10000];
const PENDING = "chat.pending";
const SUGGESTIONS = ["suggestion1", "suggestion2", "suggestion3"];

/** What was sent but not answered yet; it survives a reload, and its key makes sending it again safe. */
const pendingSend = {
  read() {
    try {
      return JSON.parse(sessionStorage.getItem(PENDING));
    } catch {
      return null;
    }
  },
  keep(pending) {
    sessionStorage.setItem(PENDING, JSON.stringify(pending));
  },
  drop(pending) {
    if (this.read()?.key === pending.key) sessionStorage.removeItem(PENDING);
  },
};

function mayPass(error) {
  return error instanceof Unreachable || (error instanceof ApiError && [408, 502, 503, 504].includes(error.status));
}

export class Thread {
  /** Hooks: onChat(chatId), onTitle(chatId, title), onActivity(), onGone(), onTrouble(error). */
  constructor(hooks) {
    this.hooks = hooks;
    this.chatId = null;
    this.turns = [];
    this.owner = "";
    this.visit = 0; // grows when another conversation is opened: late answers are dropped
    this.follower = null;
    this.sending = false;
    this.stopWanted = false;
    this.waitToSend = new AbortController();
    this.opening = null;
    this.stuck = true;
    this.lastTop = 0;
    this.scroller = byId("scroller");
    this.list = byId("messages");
    this.input = byId("composer-text");
    this.listen();
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      if (event.isComposing || event.keyCode === 229) return; // Enter chooses a word in an input method
      event.preventDefault();
      this.submit();
    });
    this.input.addEventListener("input", () => this.drawComposer());
    byId("stop").addEventListener("click", () => this.stop());
    byId("jump").addEventListener("click", () => {
      this.stick();
      this.input.focus();
    });
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.keepBottom()).observe(this.list);
    new ResizeObserver(() => this.keepBottom()).observe(this.scroller);
    byId("suggestions").replaceChildren(
      ...SUGGESTIONS.map((key) =>
        textButton(key, "suggestion", () => {
          this.input.value = t(key);
          this.drawComposer();
          this.input.focus();
        }),
      ),
    );
  }

  // --- coming and going ---

  start(owner) {
    this.owner = owner;
  }

  /** The chat of a send that was not answered before the page was reloaded, or null. */
  pendingChatId() {
    const pending = pendingSend.read();
    return pending?.owner === this.owner ? pending.chatId : null;
  }

  leave() {
    this.visit += 1;
    this.follower?.close();
    this.follower = null;
    this.sending = false;
    this.stopWanted = false;
    this.opening = null;
    this.turns = [];
    this.list.replaceChildren();
    show(byId("older"), false);
    this.notice("");
  }

  close() {
    this.leave();
    this.chatId = null;
    this.input.value = "";
  }

  /** Forget what was typed for a conversation that is gone. */
  forget(chatId) {
    sessionStorage.removeItem(`chat.draft.${chatId}`);
  }

  /** Show a conversation, or an empty page for a new one. */
  async open(chatId) {
    this.leave();
    this.chatId = chatId;
    this.stuck = true;
    this.input.value = sessionStorage.getItem(this.draftKey()) ?? "";
    this.drawComposer();
    show(byId("welcome"), chatId === null);
    const visit = this.visit;
    if (chatId !== null) {
      const opening = this.load();
      this.opening = opening;
      const isOpen = await opening;
      if (this.opening === opening) this.opening = null;
      if (!isOpen) return;
      this.fetchTitle(visit);
    }
    const pending = pendingSend.read();
    if (visit === this.visit && pending?.owner === this.owner && pending.chatId === chatId) this.deliver(pending);
  }

  async fetchTitle(visit) {
    try {
      const chat = await json(`${BASE}/${this.chatId}`);
      if (visit === this.visit && chat.title) this.hooks.onTitle(chat.chatId, chat.title);
    } catch (error) {
      if (visit === this.visit && !(error instanceof Unreachable)) this.hooks.onTrouble(error);
    }
  }

  draftKey() {
    return `chat.draft.${this.chatId ?? "new"}`;
  }

  // --- messages ---

  /** Load the newest messages and go on with a running reply; true when they are shown. */
  async load({ quiet = false } = {}) {
    const visit = this.visit;
    this.loading = true;
    if (!quiet) this.list.replaceChildren(say(el("p", "thread-word"), "loading"));
    let page;
    try {
      page = await json(`${BASE}/${this.chatId}/messages?before=${NEWEST}&limit=${PAGE}`);
    } catch (error) {
      if (visit !== this.visit || quiet) return false;
      this.loadFailed(error);
      return false;
    } finally {
      this.loading = false;
    }
    if (visit !== this.visit || this.busy) return false;
    if (quiet && this.shows(page.items)) {
      this.followRunning();
      return true;
    }
    this.turns = [];
    this.list.replaceChildren();
    for (const message of page.items) this.add(message);
    this.hasOlder = page.items.length >= PAGE;
    this.arrange();
    this.stick();
    this.followRunning();
    return true;
  }

  loadFailed(error) {
    if (error instanceof SignedOut) {
      this.hooks.onTrouble(error);
      return;
    }
    const gone = error instanceof ApiError && (error.status === 404 || error.status === 403);
    const words = say(el("p", "thread-word"), gone ? "conversationGone" : "messagesFailed");
    const again = gone
      ? textButton("newChat", "button", () => this.hooks.onGone() ?? this.open(null))
      : textButton("tryAgain", "button", () => this.open(this.chatId));
    this.list.replaceChildren(words, again);
    if (!gone) toast(error.message);
  }

  shows(messages) {
    return messages.every((message) => {
      const view = this.viewOf(message.id);
      return view && (message.role !== "assistant" || view.message.status === message.status);
    });
  }

  viewOf(id) {
    for (const turn of this.turns) {
      for (const view of turn.views) if (view.message.id === id) return view;
    }
    return null;
  }

  /** Add a message as a turn of its own, or as one more version of a reply. */
  add(message, { first = false } = {}) {
    if (message.role === "user") {
      const view = new SaidView(message);
      this.turns[first ? "unshift" : "push"]({ role: "user", views: [view], shown: 0 });
      return view;
    }
    if (message.role !== "assistant") return null;
    let view = null;
    view = new ReplyView(message, {
      onRegenerate: (which) => this.regenerate(which),
      onVersion: (step) => this.showVersion(view, step),
      onReconnect: () => this.reconnect(view),
      onTrouble: (error) => this.hooks.onTrouble(error),
    });
    const turn = message.replyTo && this.turns.find((one) => one.role === "assistant" && one.replyTo === message.replyTo);
    if (turn) {
      if (first) turn.views.unshift(view);
      else turn.views.push(view);
      turn.shown = turn.views.length - 1;
    } else {
      this.turns[first ? "unshift" : "push"]({ role: "assistant", replyTo: message.replyTo, views: [view], shown: 0 });
    }
    return view;
  }

  /** Put the turns on the page in their order and tell each reply where it stands. */
  arrange() {
    const roots = [];
    this.turns.forEach((turn, index) => {
      const view = turn.views[turn.shown];
      if (turn.role === "assistant") {
        const isLast = index === this.turns.length - 1;
        view.place({ index: turn.shown, count: turn.views.length, isLast });
      }
      roots.push(view.root);
    });
    let at = this.list.firstElementChild;
    for (const root of roots) {
      if (root === at) at = at.nextElementSibling;
      else this.list.insertBefore(root, at);
    }
    while (at) {
      const next = at.nextElementSibling;
      at.remove();
      at = next;
    }
    show(byId("welcome"), this.chatId === null && !roots.length);
    this.drawOlder();
  }

  showVersion(view, step) {
    const turn = this.turns.find((one) => one.views.includes(view));
    turn.shown = Math.min(Math.max(turn.shown + step, 0), turn.views.length - 1);
    this.arrange();
    const tools = turn.views[turn.shown].tools;
    (tools.querySelector(step < 0 ? "button:enabled" : ".versions button:last-child:enabled") ?? tools.querySelector("button"))?.focus();
  }

  drawOlder() {
    const box = byId("older");
    show(box, Boolean(this.hasOlder) && this.turns.length > 0);
    if (!box.hidden && !box.firstElementChild) {
      box.replaceChildren(textButton("olderMessages", "button button--small", () => this.loadOlder()));
    }
  }

  async loadOlder() {
    if (this.loadingOlder || !this.hasOlder) return;
    const visit = this.visit;
    const oldest = Math.min(...this.turns.flatMap((turn) => turn.views.map((view) => view.message.id)).filter(Boolean));
    this.loadingOlder = true;
    try {
      const page = await json(`${BASE}/${this.chatId}/messages?before=${oldest}&limit=${PAGE}`);
      if (visit !== this.visit) return;
      const height = this.scroller.scrollHeight;
      const top = this.scroller.scrollTop;
      for (const message of page.items.slice().reverse()) this.add(message, { first: true });
      this.hasOlder = page.items.length >= PAGE;
      this.arrange();
      this.scroller.scrollTop = top + this.scroller.scrollHeight - height;
    } catch (error) {
      if (visit === this.visit) this.hooks.onTrouble(error);
    } finally {
      this.loadingOlder = false;
    }
  }

  // --- scrolling ---

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const isAtBottom = scrollHeight - scrollTop - clientHeight < 48;
    if (isAtBottom) this.stuck = true;
    else if (scrollTop < this.lastTop - 2) this.stuck = false; // only a person scrolls up
    this.lastTop = scrollTop;
    show(byId("jump"), !isAtBottom && !this.stuck);
    if (scrollTop < 240 && this.hasOlder && !this.stuck) this.loadOlder();
  }

  keepBottom() {
    if (this.stuck) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.scrolled();
  }

  stick() {
    this.stuck = true;
    show(byId("jump"), false);
    this.keepBottom();
  }

  // --- the running reply ---

  get busy() {
    return this.sending || this.follower !== null;
  }

  /** Go on with the newest reply when it is still being written. */
  followRunning() {
    const turn = this.turns[this.turns.length - 1];
    const view = turn?.role === "assistant" ? turn.views[turn.shown] : null;
    if (view?.message.status === "streaming") this.follow(view);
  }

  follow(view, response = null, onUnknown = null) {
    const visit = this.visit;
    const here = (fn) => (...values) => {
      if (visit === this.visit) fn(...values);
    };
    const follower = new ReplyFollower({
      messageId: view.message.id ?? null,
      text: view.message.content,
      reasoning: view.message.reasoning ?? "",
      hooks: {
        started: here((id) => {
          view.identify(id);
          this.replyKnown(id);
        }),
        text: here((text) => view.setText(text)),
        reasoning: here((text) => view.setReasoning(text)),
        title: here((title) => this.hooks.onTitle(this.chatId, title)),
        state: here((state, seconds) => view.setState(state, seconds)),
        done: here((data) => {
          const { status, finishReason, usage, createdAt, referenceCard } = data;
          this.ended(view, { status, finishReason, usage, createdAt, referenceCard });
        }),
        failed: here((data) => {
          this.ended(view, { status: data.status ?? "failed", errorMessage: data.message });
        }),
        lost: here((error) => {
          this.follower = null;
          this.drawComposer();
          if (error === null && onUnknown) onUnknown();
          else if (error instanceof SignedOut) this.hooks.onTrouble(error);
          else view.setState("failed", error?.message ?? t("networkError"));
        }),
      },
    });
    this.follower = follower;
    this.drawComposer();
    if (view.message.id) this.replyKnown(view.message.id);
    follower.run(response);
  }

  replyKnown(messageId) {
    if (this.stopWanted) this.askToStop(messageId);
  }

  reconnect(view) {
    if (this.follower) this.follower.hurry();
    else this.follow(view);
  }

  ended(view, values) {
    this.follower = null;
    this.stopWanted = false;
    view.finish({ createdAt: view.message.createdAt ?? new Date().toISOString(), ...values });
    this.arrange();
    this.drawComposer();
    this.hooks.onActivity();
  }

  /** The network or the page is back: do not wait, and see what happened meanwhile. */
  hurry() {
    this.waitToSend.abort();
    if (this.follower) this.follower.hurry();
    else this.catchUp();
  }

  /** Show what was said in this conversation from elsewhere. */
  catchUp() {
    if (this.chatId === null || this.busy || this.loading) return;
    const now = Date.now();
    if (now - (this.caughtUpAt ?? 0) < 3000) return;
    this.caughtUpAt = now;
    this.load({ quiet: true });
  }

  async stop() {
    if (!this.busy || this.stopWanted) return;
    this.stopWanted = true;
    this.drawComposer();
    const messageId = this.follower?.messageId;
    if (messageId) await this.askToStop(messageId);
  }

  async askToStop(messageId) {
    try {
      await json(`${BASE}/messages/${messageId}/stop`, { method: "POST", body: {} });
      this.follower?.hurry();
    } catch (error) {
      this.stopWanted = false;
      this.drawComposer();
      if (!(error instanceof ApiError && error.status === 409)) this.hooks.onTrouble(error); // 409: it had just ended
    }
  }

  // --- sending ---

  submit() {
    const content = this.input.value.trim();
    if (!content || countChars(content) > MAX_CHARS) return;
    if (this.busy) {
      this.notice("running");
      return;
    }
    if (this.opening) {
      const visit = this.visit;
      this.opening.then((isOpen) => isOpen && visit === this.visit && this.submit());
      return;
    }
    const pending = {
      owner: this.owner, chatId: this.chatId, chatKey: randomKey(), key: randomKey(), content,
    };
    pendingSend.keep(pending);
    sessionStorage.removeItem(this.draftKey());
    this.input.value = "";
    this.notice("");
    this.deliver(pending, this.showSending(pending));
  }

  showSending(pending) {
    const said = this.add({ role: "user", content: pending.content });
    const reply = this.add({ role: "assistant", content: "", status: "streaming" });
    this.arrange();
    this.stick();
    return { said, reply };
  }

  unshow(views) {
    if (!views) return;
    this.turns = this.turns.filter((turn) => !turn.views.includes(views.said) && !turn.views.includes(views.reply));
    this.arrange();
  }

  /** Send until it is answered. The same key every time: the server takes it once. */
  async deliver(pending, views = null) {
    const visit = this.visit;
    this.sending = true;
    this.drawComposer();
    let response;
    try {
      response = await this.insist(visit, views, async () => {
        if (pending.chatId === null) {
          const chat = await json(`${BASE}/conversations`, { method: "POST", body: {}, key: pending.chatKey });
          pending.chatId = chat.chatId;
          pendingSend.keep(pending);
          if (visit === this.visit) {
            this.chatId = chat.chatId;
            this.hooks.onChat(chat.chatId);
          }
        }
        const body = { chatId: pending.chatId, content: pending.content, include: INCLUDE };
        const headers = { Accept: "text/event-stream" };
        return call(`${BASE}/stream`, { method: "POST", body, headers, key: pending.key });
      });
    } catch (error) {
      if (visit === this.visit) this.notSent(error, pending, views);
      return;
    }
    const messageId = Number(response.headers.get("X-Message-Id")) || null;
    const userMessageId = Number(response.headers.get("X-User-Message-Id")) || null;
    if (messageId) pendingSend.drop(pending);
    if (visit !== this.visit) {
      response.body.cancel();
      return;
    }
    this.sending = false;
    if (messageId && this.viewOf(messageId)) {
      response.body.cancel(); // it had arrived before the reload, and is shown already
      this.drawComposer();
      if (!this.follower) this.followRunning();
      return;
    }
    const { said, reply } = views ?? this.showSending(pending);
    said.complain("");
    if (userMessageId) said.identify(userMessageId);
    if (messageId) reply.identify(messageId);
    announceWords("writing");
    this.follow(reply, response, () => this.deliver(pending, { said, reply }));
    this.hooks.onActivity();
  }

  /** Try again while the network is away, a few times. */
  async insist(visit, views, attempt) {
    for (let failures = 0; ; failures += 1) {
      try {
        return await attempt();
      } catch (error) {
        if (!mayPass(error) || failures >= SEND_BACKOFF_MS.length) throw error;
        if (visit === this.visit) views?.said?.complain("sendWaiting");
        this.waitToSend = new AbortController();
        await sleep(Math.max(SEND_BACKOFF_MS[failures], (error.retryAfterSeconds ?? 0) * 1000), this.waitToSend.signal);
      }
    }
  }

  notSent(error, pending, shown) {
    this.sending = false;
    this.stopWanted = false;
    if (error instanceof SignedOut) {
      this.hooks.onTrouble(error); // kept: it is sent when the same person signs in again
      return;
    }
    const takeBack = (views) => {
      pendingSend.drop(pending);
      this.unshow(views);
      this.input.value = [pending.content, this.input.value].filter(Boolean).join("\n");
      this.drawComposer();
      this.input.focus();
    };
    if (error instanceof ApiError && error.status < 500 && error.status !== 429) {
      takeBack(shown);
      this.notice(error.code === "generating" ? "running" : "", error.code === "generating" ? "" : error.message);
      if (error.code === "generating") this.load({ quiet: true });
      if (error.code === "not_approved") this.hooks.onTrouble(error);
      return;
    }
    const views = shown ?? this.showSending(pending);
    views.reply.root.hidden = true;
    const again = textButton("sendAgain", "link-button", () => {
      views.said.complain("");
      views.reply.root.hidden = false;
      this.deliver(pending, views);
    });
    const edit = textButton("editAgain", "link-button", () => takeBack(views));
    views.said.complain("notSent", { reason: error.message }, again, edit);
    this.drawComposer();
  }

  /** Ask for another version of the last reply. */
  async regenerate(view) {
    if (this.busy) {
      this.notice("running");
      return;
    }
    const visit = this.visit;
    const turn = this.turns.find((one) => one.views.includes(view));
    const key = randomKey();
    const before = view.message;
    this.notice("");
    this.sending = true;
    const reply = this.add({ role: "assistant", content: "", status: "streaming", replyTo: null });
    this.turns.pop(); // add made a turn of its own: it is one more version of this one
    turn.views.push(reply);
    turn.shown = turn.views.length - 1;
    this.arrange();
    this.stick();
    this.drawComposer();
    this.input.focus();
    const drop = () => {
      turn.views = turn.views.filter((one) => one !== reply);
      turn.shown = turn.views.length - 1;
      this.arrange();
      this.drawComposer();
    };
    try {
      const send = () => {
        const headers = { Accept: "text/event-stream" };
        const body = { include: INCLUDE };
        return call(`${BASE}/messages/${before.id}/regenerate`, { method: "POST", body, headers, key });
      };
      const response = await this.insist(visit, null, send);
      if (visit !== this.visit) {
        response.body.cancel();
        return;
      }
      this.sending = false;
      const messageId = Number(response.headers.get("X-Message-Id")) || null;
      if (messageId) reply.identify(messageId);
      announceWords("writing");
      this.follow(reply, response, () => {
        drop();
        this.hooks.onTrouble(new Unreachable());
      });
      this.hooks.onActivity();
    } catch (error) {
      if (visit !== this.visit) return;
      this.sending = false;
      this.stopWanted = false;
      drop();
      if (error.code === "generating") this.notice("running");
      else this.hooks.onTrouble(error);
    }
  }

  // --- the composer ---

  notice(key, text = "") {
    const box = byId("notice");
    show(box, Boolean(key || text));
    if (key) say(box, key);
    else {
      delete box.dataset.i18n;
      box.textContent = text;
    }
  }

  drawComposer() {
    const content = this.input.value;
    if (content) sessionStorage.setItem(this.draftKey(), content);
    else sessionStorage.removeItem(this.draftKey());
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
    const chars = countChars(content.trim());
    const count = byId("composer-count");
    if (chars > MAX_CHARS) say(count, "charsOver", { count: chars - MAX_CHARS });
    else if (chars > COUNT_FROM) say(count, "charsLeft", { count: MAX_CHARS - chars });
    else {
      delete count.dataset.i18n;
      count.textContent = "";
    }
    count.classList.toggle("is-over", chars > MAX_CHARS);
    const stop = byId("stop");
    const hadFocus = document.activeElement === stop || document.activeElement === byId("send");
    show(stop, this.busy);
    show(byId("send"), !this.busy);
    stop.disabled = this.stopWanted;
    label(stop, this.stopWanted ? "stopping" : "stop");
    byId("send").disabled = !chars || chars > MAX_CHARS;
    if (!this.busy && byId("notice").dataset.i18n === "running") this.notice("");
    if (hadFocus && document.activeElement === document.body) this.input.focus();
  }
}
