// The way to the server: who is signed in, tokens that renew themselves, and errors a person can read.

import { language, t } from "./i18n.js";

const SESSION = "chat.session";
const REFRESH_LOCK = "chat.refresh";
const LEASE_MS = 15000;
const OTHER_TAB_MS = 3000;

/** An answer of the server that is not a success (RFC 9457). */
export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    const told = body && typeof body === "object" ? body : {};
    super(told.detail || told.title || t("serverError", { status }));
    this.status = status;
    this.code = told.code || "";
    this.body = told;
    this.retryAfterSeconds = Number(told.retryAfter ?? retryAfter) || 0;
  }
}

/** The server could not be reached at all. */
export class Unreachable extends Error {
  constructor() {
    super(t("networkError"));
  }
}

/** Nobody is signed in (any more). */
export class SignedOut extends Error {
  constructor() {
    super(t("signedOut"));
  }
}

/** The stored session {access, refresh, membership}, or null. */
export function session() {
  try {
    return JSON.parse(localStorage.getItem(SESSION));
  } catch {
    return null;
  }
}

function keep(answer) {
  const before = session();
  const { access, refresh } = answer;
  const membership = answer.membership ?? before?.membership ?? null;
  localStorage.setItem(SESSION, JSON.stringify({ access, refresh, membership }));
}

/** Forget the session in every tab. */
export function forgetSession() {
  localStorage.removeItem(SESSION);
}

/** Call back when another tab signs in or out. */
export function onSessionChange(callback) {
  window.addEventListener("storage", (event) => {
    if (event.key === SESSION || event.key === null) callback(session());
  });
}

/** A fresh random key of 32 hex digits; works on plain http too. */
export function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function reach(path, options) {
  try {
    return await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
}

async function failure(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    body = null; // a proxy's HTML page: the status says enough
  }
  return new ApiError(response.status, body, response.headers.get("Retry-After"));
}

function post(path, body) {
  return reach(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Accept-Language": language() },
    body: JSON.stringify(body),
  });
}

/** Sign in with a password; keeps the session. */
export async function signIn({ username, password, site }) {
  const response = await post("/api/auth/token", { username, password, site });
  if (!response.ok) throw await failure(response);
  keep(await response.json());
}

/** Sign out here, in the other tabs and, when it can be reached, on the server. */
export async function signOut() {
  const { refresh } = session() ?? {};
  forgetSession();
  if (!refresh) return;
  try {
    await post("/api/auth/logout", { refresh });
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error; // offline: signed out here is what counts
  }
}

/** Run fn while no other tab runs under the same name. Plain http has no navigator.locks: a lease then. */
async function alone(name, fn) {
  if (navigator.locks) return navigator.locks.request(name, fn);
  const mine = randomKey();
  const key = `${name}.lease`;
  for (;;) {
    const [owner, until] = (localStorage.getItem(key) ?? "").split(" ");
    if (!owner || Number(until) < Date.now()) {
      localStorage.setItem(key, `${mine} ${Date.now() + LEASE_MS}`);
      await new Promise((resolve) => setTimeout(resolve, 40)); // let a tab that wrote at the same time win or lose
      if ((localStorage.getItem(key) ?? "").startsWith(mine)) break;
    }
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
  try {
    return await fn();
  } finally {
    if ((localStorage.getItem(key) ?? "").startsWith(mine)) localStorage.removeItem(key);
  }
}

// localStorage reaches other tabs a moment after it is written, even when a lock orders the tabs. So the refresh
// token that is being spent is also noted in IndexedDB, which all tabs see in one order.

function spentNote() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("chat", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("notes");
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

/** Note this refresh token as spent; false when another tab had already done so. */
async function claim(refresh) {
  let database;
  try {
    database = await spentNote();
  } catch {
    return true; // no IndexedDB in this browser or mode: the lock alone must do
  }
  return new Promise((resolve) => {
    const notes = database.transaction("notes", "readwrite");
    const store = notes.objectStore("notes");
    const reading = store.get("spent");
    let isMine = true;
    reading.onsuccess = () => {
      isMine = reading.result !== refresh;
      if (isMine) store.put(refresh, "spent");
    };
    const end = () => {
      database.close();
      resolve(isMine);
    };
    notes.oncomplete = end;
    notes.onabort = end;
  });
}

/** The session once another tab's answer has arrived here, or the same one when none comes. */
async function waitForOther(held) {
  for (const deadline = Date.now() + OTHER_TAB_MS; Date.now() < deadline; ) {
    const now = session();
    if (now?.refresh !== held.refresh) return now;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return held; // that tab was closed before it got an answer
}

let renewing = null;

/** An access token other than the refused one. A refresh token works once, so one tab renews for all. */
function renew(refused) {
  renewing ??= alone(REFRESH_LOCK, async () => {
    let held = session();
    if (held && held.access === refused && !(await claim(held.refresh))) held = await waitForOther(held);
    if (!held) throw new SignedOut();
    if (held.access !== refused) return held.access; // another tab was first
    const response = await post("/api/auth/token/refresh", { refresh: held.refresh });
    if (response.ok) {
      keep(await response.json());
      return session().access;
    }
    if (response.status === 429 || response.status >= 500) throw await failure(response);
    if (session()?.refresh === held.refresh) forgetSession();
    throw new SignedOut();
  }).finally(() => {
    renewing = null;
  });
  return renewing;
}

/**
 * The raw answer to a signed-in call; renews the token once when it is refused.
 * Throws ApiError, Unreachable or SignedOut; an AbortError passes through.
 */
export async function call(path, { method = "GET", body, headers = {}, key, signal } = {}) {
  let access = session()?.access;
  if (!access) throw new SignedOut();
  for (let attempt = 0; ; attempt += 1) {
    const sent = { Accept: "application/json", "Accept-Language": language(), ...headers };
    sent.Authorization = `Bearer ${access}`;
    if (key) sent["Idempotency-Key"] = key;
    const options = { method, headers: sent, signal };
    if (body !== undefined) {
      sent["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    const response = await reach(path, options);
    if (response.ok) return response;
    if (response.status !== 401 || attempt > 0) {
      if (response.status === 401) {
        forgetSession();
        throw new SignedOut();
      }
      throw await failure(response);
    }
    access = await renew(access);
  }
}

/** The JSON answer to a signed-in call; null for an empty one. */
export async function json(path, options) {
  const response = await call(path, options);
  if (response.status === 204) return null;
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}
