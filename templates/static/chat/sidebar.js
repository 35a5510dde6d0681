// The list of conversations: search, pages, rename, pin, archive and delete.

import { json } from "./api.js";
import { byId, el, icon, iconButton, show, textButton, toast } from "./dom.js";
import { label, say, t } from "./i18n.js";

const PAGE_SIZE = 30;
const POLL_MS = 4000;
const SEARCH_DELAY_MS = 250;

/** The group of a conversation in the list: a key of the word list. */
function groupOf(chat, now) {
  if (chat.archived) return "archivedGroup";
  if (chat.pinned) return "pinned";
  const moment = new Date(chat.lastMessageAt ?? chat.createdAt);
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate());
  const days = (midnight - moment) / 86400000;
  if (days <= 0) return "today";
  if (days <= 1) return "yesterday";
  return days <= 6 ? "thisWeek" : "earlier";
}

const GROUPS = ["pinned", "today", "yesterday", "thisWeek", "earlier", "archivedGroup"];

export class Sidebar {
  /** Hooks: onOpen(chatId), onTitle(chatId, title), onRemoved(chatId), onGenerating(chatId), onTrouble(error). */
  constructor(hooks) {
    this.hooks = hooks;
    this.root = byId("history");
    this.menu = byId("menu");
    this.reset();
    const search = byId("search");
    search.addEventListener("input", () => {
      show(byId("clear-search"), search.value !== "");
      clearTimeout(this.searchTimer);
      this.searchTimer = setTimeout(() => this.find(search.value.trim()), SEARCH_DELAY_MS);
    });
    byId("clear-search").addEventListener("click", () => {
      search.value = "";
      show(byId("clear-search"), false);
      this.find("");
      search.focus();
    });
    byId("toggle-archived").addEventListener("click", () => {
      this.archived = !this.archived;
      const button = byId("toggle-archived");
      button.setAttribute("aria-pressed", String(this.archived));
      say(button.querySelector("span"), this.archived ? "showActive" : "showArchived");
      this.load();
    });
    this.root.addEventListener("scroll", () => {
      const left = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight;
      if (left < 200 && this.nextCursor && !this.loading) this.loadMore();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!this.menu.hidden && !this.menu.contains(event.target)) this.closeMenu();
    });
    window.addEventListener("resize", () => this.closeMenu());
    this.menu.addEventListener("keydown", (event) => this.menuKey(event));
  }

  reset() {
    this.chats = [];
    this.nextCursor = null;
    this.selected = null;
    this.query = "";
    this.archived = false;
    this.failed = false;
    this.loaded = false;
    this.loading = 0;
    this.turn = 0; // answers to earlier questions are dropped
  }

  start() {
    this.reset();
    byId("search").value = "";
    show(byId("clear-search"), false);
    byId("toggle-archived").setAttribute("aria-pressed", "false");
    say(byId("toggle-archived").querySelector("span"), "showArchived");
    this.load();
  }

  close() {
    this.turn += 1;
    clearTimeout(this.pollTimer);
    this.closeMenu(false);
    this.chats = [];
    this.root.replaceChildren();
  }

  address(cursor) {
    const query = new URLSearchParams({ pageSize: String(PAGE_SIZE) });
    if (this.query) query.set("q", this.query);
    if (this.archived) query.set("archived", "true");
    if (cursor) query.set("cursor", cursor);
    return `/api/xcx/chat/history?${query}`;
  }

  find(query) {
    if (query === this.query) return;
    this.query = query;
    this.load();
  }

  /** Load the first page in place of the list. */
  async load() {
    this.turn += 1;
    const turn = this.turn;
    this.loading += 1;
    this.failed = false;
    this.render();
    try {
      const page = await json(this.address());
      if (turn !== this.turn) return;
      this.chats = page.items;
      this.nextCursor = page.nextCursor ?? null;
      this.loaded = true;
    } catch (error) {
      if (turn !== this.turn) return;
      this.failed = true;
      this.hooks.onTrouble(error);
    } finally {
      this.loading -= 1;
    }
    this.settle();
  }

  async loadMore() {
    const turn = this.turn;
    this.loading += 1;
    this.render();
    try {
      const page = await json(this.address(this.nextCursor));
      if (turn !== this.turn) return;
      const known = new Set(this.chats.map((chat) => chat.chatId));
      this.chats.push(...page.items.filter((chat) => !known.has(chat.chatId)));
      this.nextCursor = page.nextCursor ?? null;
    } catch (error) {
      if (turn === this.turn) this.hooks.onTrouble(error);
    } finally {
      this.loading -= 1;
    }
    if (turn === this.turn) this.settle();
  }

  /** Bring the first page up to date and keep what was loaded below it. */
  async refresh() {
    const turn = this.turn;
    let page;
    try {
      page = await json(this.address());
    } catch {
      return this.settle(); // the list that is there stays; whoever acts next meets the error
    }
    if (turn !== this.turn) return undefined;
    const fresh = new Set(page.items.map((chat) => chat.chatId));
    const below = this.chats.slice(page.items.length).filter((chat) => !fresh.has(chat.chatId));
    if (!below.length) this.nextCursor = page.nextCursor ?? null;
    this.chats = [...page.items, ...below];
    this.loaded = true;
    return this.settle();
  }

  /** Show the list; look again soon while a reply is under way somewhere. */
  settle() {
    this.render();
    clearTimeout(this.pollTimer);
    const busy = this.chats.filter((chat) => chat.generating);
    for (const chat of busy) this.hooks.onGenerating(chat.chatId);
    if (busy.length) {
      this.pollTimer = setTimeout(() => {
        if (document.hidden) this.settle();
        else this.refresh();
      }, POLL_MS);
    }
    const current = this.chats.find((chat) => chat.chatId === this.selected);
    if (current) this.hooks.onTitle(current.chatId, current.title);
  }

  titleOf(chatId) {
    return this.chats.find((chat) => chat.chatId === chatId)?.title ?? "";
  }

  select(chatId) {
    this.selected = chatId;
    this.render();
  }

  retitle(chatId, title) {
    const chat = this.chats.find((one) => one.chatId === chatId);
    if (!chat || chat.title === title) return;
    chat.title = title;
    this.render();
  }

  render() {
    const focused = document.activeElement?.dataset?.focus;
    const top = this.root.scrollTop;
    const parts = [];
    // A conversation is made with its first message; when that never arrived, there is nothing to show.
    const chats = this.chats.filter((chat) => chat.title || chat.messageCount !== 0 || chat.chatId === this.selected);
    if (this.query) {
      parts.push(...this.group("results", chats));
    } else {
      const now = new Date();
      for (const name of GROUPS) {
        parts.push(...this.group(name, chats.filter((chat) => groupOf(chat, now) === name)));
      }
    }
    if (!chats.length && this.loaded && !this.loading && !this.failed) {
      let key = this.archived ? "noArchived" : "noConversations";
      if (this.query) key = "noResults";
      parts.push(say(el("p", "history-empty"), key));
    }
    if (this.failed) {
      parts.push(say(el("p", "history-empty"), "listFailed"));
      parts.push(textButton("tryAgain", "button load-more", () => this.load()));
    } else if (this.loading) {
      parts.push(say(el("p", "history-empty"), "loading"));
    } else if (this.nextCursor) {
      parts.push(textButton("loadMore", "button load-more", () => this.loadMore()));
    }
    this.root.replaceChildren(...parts);
    this.root.scrollTop = top;
    if (focused) this.root.querySelector(`[data-focus="${focused}"]`)?.focus();
  }

  group(name, chats) {
    if (!chats.length) return [];
    const heading = say(el("h2", "group-name"), name);
    heading.id = `group-${name}`;
    const list = el("ul", "group", ...chats.map((chat) => this.row(chat)));
    list.setAttribute("aria-labelledby", heading.id);
    return [heading, list];
  }

  row(chat) {
    const title = chat.title || t("untitled");
    const open = el("button", "chat-link", el("span", "chat-name", title));
    open.type = "button";
    open.dataset.focus = `chat-${chat.chatId}`;
    const preview = previewOf(chat);
    if (preview) open.append(el("span", "chat-preview", preview));
    if (chat.chatId === this.selected) open.setAttribute("aria-current", "page");
    open.addEventListener("click", () => this.hooks.onOpen(chat.chatId));
    const row = el("li", "chat-row", open);
    if (chat.generating) {
      const dot = el("span", "live-dot");
      dot.setAttribute("role", "img");
      row.append(label(dot, "replying"));
    }
    const more = iconButton("more", "more", () => this.openMenu(chat, more), { title });
    more.classList.add("row-more");
    more.dataset.focus = `more-${chat.chatId}`;
    more.setAttribute("aria-haspopup", "menu");
    row.append(more);
    return row;
  }

  // --- the menu of one conversation ---

  openMenu(chat, anchor) {
    const item = (iconName, key, act, className = "menu-item") => {
      const button = el("button", className, icon(iconName), say(el("span"), key));
      button.type = "button";
      button.setAttribute("role", "menuitem");
      button.tabIndex = -1;
      button.addEventListener("click", () => {
        this.closeMenu();
        act();
      });
      return button;
    };
    this.anchor = anchor;
    this.menu.replaceChildren(
      item("edit", "rename", () => this.rename(chat)),
      item("pin", chat.pinned ? "unpin" : "pin", () => this.change(chat, { pinned: !chat.pinned })),
      item("archive", chat.archived ? "unarchive" : "archive", () => this.archive(chat)),
      item("delete", "remove", () => this.remove(chat), "menu-item menu-item--danger"),
    );
    label(this.menu, "more", { title: chat.title || t("untitled") });
    show(this.menu);
    const place = anchor.getBoundingClientRect();
    const size = this.menu.getBoundingClientRect();
    const left = Math.min(place.right - 32, window.innerWidth - size.width - 8);
    const below = place.bottom + 4 + size.height < window.innerHeight;
    this.menu.style.left = `${Math.max(8, left)}px`;
    this.menu.style.top = `${below ? place.bottom + 4 : place.top - size.height - 4}px`;
    this.menu.firstElementChild.focus();
  }

  closeMenu(giveBackFocus = true) {
    if (this.menu.hidden) return;
    const hadFocus = this.menu.contains(document.activeElement);
    show(this.menu, false);
    if (giveBackFocus && hadFocus) {
      const again = this.root.querySelector(`[data-focus="${this.anchor.dataset.focus}"]`);
      (again ?? this.anchor).focus();
    }
  }

  menuKey(event) {
    const items = Array.from(this.menu.children);
    const at = items.indexOf(document.activeElement);
    const go = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (go !== undefined) {
      event.preventDefault();
      items[(go + items.length) % items.length].focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      event.preventDefault();
      event.stopPropagation();
      this.closeMenu();
    }
  }

  async change(chat, values) {
    try {
      const changed = await json(`/api/xcx/chat/${chat.chatId}`, { method: "PATCH", body: values });
      Object.assign(chat, values, changed ?? {});
      await this.refresh();
      return true;
    } catch (error) {
      this.hooks.onTrouble(error);
      return false;
    }
  }

  async archive(chat) {
    const archived = !chat.archived;
    if (!(await this.change(chat, { archived }))) return;
    this.chats = this.chats.filter((one) => one.chatId !== chat.chatId);
    this.settle();
    toast(archived ? "archivedDone" : "unarchivedDone");
  }

  async rename(chat) {
    const input = byId("rename-input");
    input.value = chat.title ?? "";
    const asked = ask("rename-dialog");
    input.select();
    if ((await asked) !== "save") return;
    const title = input.value.trim();
    if (title && title !== chat.title && (await this.change(chat, { title }))) this.hooks.onTitle(chat.chatId, title);
  }

  async remove(chat) {
    say(byId("remove-text"), "removeText", { title: chat.title || t("untitled") });
    if ((await ask("remove-dialog")) !== "remove") return;
    try {
      await json(`/api/xcx/chat/${chat.chatId}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) {
        this.hooks.onTrouble(error);
        return;
      }
    }
    this.chats = this.chats.filter((one) => one.chatId !== chat.chatId);
    this.settle();
    this.hooks.onRemoved(chat.chatId);
    toast("removed");
  }
}

function previewOf(chat) {
  const last = chat.lastMessage;
  const text = typeof last === "string" ? last : (last?.content ?? last?.preview ?? "");
  const plain = text.slice(0, 160).replace(/^[ \t]*(?:#{1,6}|>|[-*+]|\d+\.)[ \t]+/gm, "").replace(/[*`]+/g, "");
  return plain.replace(/\s+/g, " ").trim();
}

/** Open a dialog; resolves with the value of the button that closed it, "" when it was cancelled. */
function ask(id) {
  const dialog = byId(id);
  dialog.returnValue = "";
  dialog.showModal();
  const cancel = () => dialog.close("");
  dialog.querySelector(".js-cancel").addEventListener("click", cancel, { once: true });
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        dialog.querySelector(".js-cancel").removeEventListener("click", cancel);
        resolve(dialog.returnValue);
      },
      { once: true },
    );
  });
}
