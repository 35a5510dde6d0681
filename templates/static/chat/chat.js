// The chat page: who is at the door, and which conversation is open. The list and the thread have their own modules.

import * as api from "./api.js";
import { byId, show, toast } from "./dom.js";
import { label, say, switchLanguage, t, translate } from "./i18n.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";

const SITE = "chat.site";
const USERNAME = "chat.username";
const WAITING_POLL_MS = 10000;
const UNREACHABLE_POLL_MS = 4000;

let person = null;
let sidebar = null;
let thread = null;
let waitingTimer = 0;

/** The chat the address bar names, or null. */
function chatInAddress() {
  const found = /^#c(\d+)$/.exec(location.hash);
  return found ? Number(found[1]) : null;
}

function setAddress(chatId) {
  const hash = chatId ? `#c${chatId}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname + location.search);
}

function setTitle(title) {
  const heading = byId("chat-title");
  heading.textContent = title || "";
  document.title = title ? `${title} · ${t("appName")}` : t("appName");
}

function nameOf(me) {
  return me.nickname || me.user?.nickname || me.user?.username || (typeof me.user === "string" ? me.user : "");
}

function siteNameOf(me) {
  return (typeof me.site === "object" ? me.site?.name || me.site?.slug : me.site) || "";
}

// --- the gate: sign-in and waiting ---------------------------------------------------------------------------------

function showGate(part) {
  show(byId("app"), false);
  show(byId("gate"));
  show(byId("sign-in"), part === "sign-in");
  show(byId("waiting"), part === "waiting");
  document.title = `${t(part === "sign-in" ? "signIn" : "waitingTitle")} · ${t("appName")}`;
}

function leaveApp() {
  clearTimeout(waitingTimer);
  thread?.close();
  sidebar?.close();
  person = null;
}

function showSignIn(message = "") {
  leaveApp();
  showGate("sign-in");
  byId("sign-in-error").textContent = message;
  byId("site").value = localStorage.getItem(SITE) || "demo";
  byId("username").value = localStorage.getItem(USERNAME) || "";
  byId("password").value = "";
  byId(byId("username").value ? "password" : "username").focus();
}

/** Show why this person cannot chat yet: "waiting", "rejected", "suspended" or "unreachable". */
function showWaiting(state, me = {}) {
  leaveApp();
  say(byId("waiting-title"), `${state}Title`);
  say(byId("waiting-text"), `${state}Text`);
  byId("waiting-who").textContent = [nameOf(me), siteNameOf(me)].filter(Boolean).join(" · ");
  showGate("waiting");
  if (state === "waiting") waitingTimer = setTimeout(enter, WAITING_POLL_MS);
  if (state === "unreachable") waitingTimer = setTimeout(enter, UNREACHABLE_POLL_MS);
}

async function submitSignIn(event) {
  event.preventDefault();
  const username = byId("username").value.trim();
  const password = byId("password").value;
  const site = byId("site").value.trim();
  const button = byId("sign-in-button");
  const complaint = byId("sign-in-error");
  if (!username || !password || !site) {
    complaint.textContent = t("needBoth");
    return;
  }
  complaint.textContent = "";
  button.disabled = true;
  say(button, "signingIn");
  try {
    await api.signIn({ username, password, site });
    localStorage.setItem(SITE, site);
    localStorage.setItem(USERNAME, username);
    byId("password").value = "";
    await enter();
  } catch (error) {
    complaint.textContent = error.status === 401 ? error.body.detail || t("badSignIn") : error.message;
    byId("password").focus();
  } finally {
    button.disabled = false;
    say(button, "signIn");
  }
}

/** Ask the server who is signed in and show what is theirs. */
async function enter() {
  clearTimeout(waitingTimer);
  let me;
  try {
    me = await api.json("/api/auth/me");
  } catch (error) {
    const isGone = error instanceof api.SignedOut;
    if (isGone || (error instanceof api.ApiError && error.status < 500 && error.status !== 429)) {
      showSignIn(isGone && !person ? "" : error.message);
    } else {
      showWaiting("unreachable"); // the session stays
    }
    return;
  }
  if (me.status === "approved") showApp(me);
  else showWaiting(["rejected", "suspended"].includes(me.status) ? me.status : "waiting", me);
}

// --- inside ----------------------------------------------------------------------------------------------------------

function trouble(error) {
  if (error instanceof api.SignedOut) showSignIn(error.message);
  else if (error instanceof api.ApiError && error.code === "not_approved") enter();
  else toast(error.message);
}

function showApp(me) {
  person = me;
  show(byId("gate"), false);
  show(byId("app"));
  const name = nameOf(me);
  byId("site-name").textContent = siteNameOf(me) || t("appName");
  byId("person-name").textContent = name;
  byId("person-initial").textContent = Array.from(name)[0]?.toUpperCase() ?? "";
  if (name) say(byId("greeting"), "greetingNamed", { name });
  else say(byId("greeting"), "greeting");
  const owner = JSON.stringify([me.user, me.site]);
  sidebar.start();
  thread.start(owner);
  open(chatInAddress() ?? thread.pendingChatId());
}

function open(chatId, { focus = true } = {}) {
  closeDrawer();
  sidebar.select(chatId);
  setTitle(chatId ? sidebar.titleOf(chatId) : "");
  setAddress(chatId);
  thread.open(chatId);
  if (focus && window.matchMedia("(hover: hover)").matches) byId("composer-text").focus();
}

function openDrawer() {
  byId("app").classList.add("drawer-open");
  byId("open-drawer").setAttribute("aria-expanded", "true");
  settleDrawer();
  byId("close-drawer").focus();
}

function closeDrawer() {
  const wasOpen = byId("app").classList.contains("drawer-open");
  byId("app").classList.remove("drawer-open");
  byId("open-drawer").setAttribute("aria-expanded", "false");
  settleDrawer();
  if (wasOpen) byId("open-drawer").focus();
}

const narrow = window.matchMedia("(max-width: 859px)");

/** What is off the screen can neither be reached with Tab nor by a screen reader. */
function settleDrawer() {
  const isOpen = byId("app").classList.contains("drawer-open");
  byId("sidebar").inert = narrow.matches && !isOpen;
  document.querySelector(".thread").inert = narrow.matches && isOpen;
}

function begin() {
  translate();
  thread = new Thread({
    onTrouble: trouble,
    onChat: (chatId) => {
      setAddress(chatId);
      sidebar.select(chatId);
    },
    onTitle: (chatId, title) => {
      setTitle(title);
      sidebar.retitle(chatId, title);
    },
    onActivity: () => sidebar.refresh(),
    onGone: () => {
      setAddress(null);
      sidebar.refresh();
    },
  });
  sidebar = new Sidebar({
    onTrouble: trouble,
    onOpen: (chatId) => open(chatId),
    onTitle: (chatId, title) => {
      if (thread.chatId === chatId) setTitle(title);
    },
    onRemoved: (chatId) => {
      thread.forget(chatId);
      if (thread.chatId === chatId) open(null);
    },
    onGenerating: (chatId) => {
      if (thread.chatId === chatId) thread.catchUp();
    },
  });

  byId("sign-in").addEventListener("submit", submitSignIn);
  byId("reveal").addEventListener("click", () => {
    const input = byId("password");
    const hidden = input.type === "password";
    input.type = hidden ? "text" : "password";
    byId("reveal").setAttribute("aria-pressed", String(hidden));
    label(byId("reveal"), hidden ? "hidePassword" : "showPassword");
  });
  byId("check-again").addEventListener("click", async () => {
    await enter();
    if (byId("waiting-title").dataset.i18n === "waitingTitle" && !byId("waiting").hidden) toast("stillWaiting");
  });
  for (const button of document.querySelectorAll(".js-language")) {
    button.addEventListener("click", () => {
      switchLanguage();
      sidebar.render();
      if (!thread.chatId) setTitle("");
    });
  }
  for (const button of document.querySelectorAll(".js-sign-out")) {
    button.addEventListener("click", () => {
      const leaving = api.signOut();
      showSignIn();
      leaving.catch((error) => toast(error.message));
    });
  }
  byId("new-chat").addEventListener("click", () => open(null));
  byId("new-chat-narrow").addEventListener("click", () => open(null));
  byId("open-drawer").addEventListener("click", openDrawer);
  byId("close-drawer").addEventListener("click", closeDrawer);
  byId("scrim").addEventListener("click", closeDrawer);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("composer-text").focus();
  });
  narrow.addEventListener("change", settleDrawer);
  settleDrawer();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && byId("app").classList.contains("drawer-open") && byId("menu").hidden) closeDrawer();
  });
  window.addEventListener("popstate", () => {
    if (person) open(chatInAddress(), { focus: false });
  });
  window.addEventListener("offline", () => toast("offline"));
  window.addEventListener("online", () => {
    toast("online");
    if (person) thread.hurry();
    else if (!byId("waiting").hidden) enter();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !person) return;
    thread.hurry();
    sidebar.refresh();
  });
  const identity = (held) => (held ? JSON.stringify(held.membership) : null);
  let known = identity(api.session());
  api.onSessionChange((held) => {
    const now = identity(held);
    if (now === known && held) return; // renewed tokens, same person
    known = now;
    if (held) location.reload();
    else showSignIn();
  });

  if (api.session()) enter();
  else showSignIn();
}

begin();
