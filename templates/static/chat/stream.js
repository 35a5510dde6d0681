// Reading a streamed reply: events out of bytes, and one follower that goes on wherever the connection broke.

import { ApiError, SignedOut, call } from "./api.js";
import { sleep } from "./dom.js";

const SILENCE_MS = 25000; // the server sends a comment every 10 s
const SUSPECT_MS = 12000; // a phone that slept, or a network that changed, kills connections without a word
const BACKOFF_MS = [300, 800, 1500, 3000, 6000, 12000];

/** Turns the bytes of an event stream into events {id, event, data}, whatever the cuts between chunks. */
export class EventDecoder {
  constructor() {
    this.decoder = new TextDecoder();
    this.rest = "";
    this.id = "";
    this.clear();
  }

  clear() {
    this.event = "";
    this.data = [];
  }

  /** The events that end in this chunk. */
  push(bytes) {
    const text = this.rest + this.decoder.decode(bytes, { stream: true });
    const events = [];
    let start = 0;
    for (;;) {
      const line = /\r\n|\n|\r/g;
      line.lastIndex = start;
      const end = line.exec(text);
      // A CR at the very end may be half of CRLF: wait for the next chunk.
      if (!end || (end[0] === "\r" && line.lastIndex === text.length)) break;
      this.line(text.slice(start, end.index), events);
      start = line.lastIndex;
    }
    this.rest = text.slice(start);
    return events;
  }

  line(line, events) {
    if (line === "") {
      if (this.data.length) {
        events.push({ id: this.id, event: this.event || "message", data: this.data.join("\n") });
      }
      this.clear();
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") this.data.push(value);
    else if (name === "event") this.event = value;
    else if (name === "id") this.id = value;
  }
}

/** How many characters (Unicode code points, not UTF-16 units) a text has. */
export function countChars(text) {
  let count = text.length;
  for (let i = 0; i < text.length - 1; i += 1) {
    const unit = text.charCodeAt(i);
    if (unit >= 0xd800 && unit <= 0xdbff) {
      const next = text.charCodeAt(i + 1);
      if (next >= 0xdc00 && next <= 0xdfff) {
        count -= 1;
        i += 1;
      }
    }
  }
  return count;
}

/** The text without its first characters. */
function dropChars(text, count) {
  return count <= 0 ? text : Array.from(text).slice(count).join("");
}

/** {messageId, offset, reasoningOffset} of an event id, or null. */
export function readEventId(id) {
  const parts = /^(\d+)-(\d+)(?:\.(\d+))?$/.exec(id);
  if (!parts) return null;
  return { messageId: Number(parts[1]), offset: Number(parts[2]), reasoningOffset: Number(parts[3] ?? 0) };
}

/**
 * Follows one reply to its end, over as many connections as it takes.
 *
 * Hooks: started(messageId), text(text), reasoning(text), title(title), done(data), failed(data), state(name, seconds), lost(error).
 * The text handed to hooks is always the whole text so far; state is "live", "reconnecting" or "waiting".
 */
export class ReplyFollower {
  constructor({ messageId = null, text = "", reasoning = "", hooks }) {
    this.messageId = messageId;
    this.text = text;
    this.reasoning = reasoning;
    this.chars = countChars(text);
    this.reasoningChars = countChars(reasoning);
    this.hooks = hooks;
    this.closed = new AbortController();
    this.retry = new AbortController();
    this.reading = null;
    this.heardAt = Date.now();
    this.giveUp = () => {};
  }

  /** Stop reading. The reply itself goes on: only stop ends it. */
  close() {
    this.closed.abort();
    this.retry.abort();
    this.reading?.abort();
  }

  /** Do not wait any longer before the next try, and do not trust a connection that has been silent. */
  hurry() {
    this.retry.abort();
    if (Date.now() - this.heardAt > SUSPECT_MS) this.giveUp();
  }

  /** Read from this response, if there is one, then resume until the reply has ended. */
  async run(response = null) {
    let failures = 0;
    while (!this.closed.signal.aborted) {
      const before = this.chars + this.reasoningChars;
      let asked = 0;
      try {
        response ??= await this.open();
        this.hooks.state("live");
        if (await this.read(response)) return;
      } catch (error) {
        if (this.closed.signal.aborted) return;
        if (error instanceof SignedOut || this.isFinal(error)) {
          this.hooks.lost(error);
          return;
        }
        if (error instanceof ApiError && error.code === "bad_event_id") this.startOver();
        asked = (error.retryAfterSeconds ?? 0) * 1000;
      }
      if (this.closed.signal.aborted) return;
      if (this.messageId === null) {
        this.hooks.lost(null); // the answer ended before it said which reply it was
        return;
      }
      response = null;
      failures = this.chars + this.reasoningChars > before ? 0 : failures + 1;
      await this.pause(Math.max(asked, BACKOFF_MS[Math.min(failures, BACKOFF_MS.length - 1)]));
    }
  }

  isFinal(error) {
    if (!(error instanceof ApiError) || error.code === "bad_event_id") return false;
    return error.status < 500 && error.status !== 408 && error.status !== 409 && error.status !== 429;
  }

  async pause(milliseconds) {
    this.retry = new AbortController();
    let left = milliseconds * (0.8 + Math.random() * 0.4);
    while (left > 0 && !this.retry.signal.aborted) {
      if (left > 1500) this.hooks.state("waiting", Math.ceil(left / 1000));
      else this.hooks.state("reconnecting");
      const step = Math.min(left, 1000);
      await sleep(step, this.retry.signal);
      left -= step;
    }
    if (!this.closed.signal.aborted) this.hooks.state("reconnecting");
  }

  startOver() {
    this.text = "";
    this.reasoning = "";
    this.chars = 0;
    this.reasoningChars = 0;
  }

  open() {
    this.reading = new AbortController();
    const headers = { Accept: "text/event-stream" };
    const offset = this.reasoningChars ? `${this.chars}.${this.reasoningChars}` : String(this.chars);
    if (offset !== "0") headers["Last-Event-ID"] = `${this.messageId}-${offset}`;
    const path = `/api/xcx/chat/messages/${this.messageId}/stream?include=reasoning,title`;
    return call(path, { headers, signal: this.reading.signal });
  }

  /** True when the reply has ended; false when only the connection has. */
  async read(response) {
    const reader = response.body.getReader();
    const events = new EventDecoder();
    let alarm = 0;
    this.heardAt = Date.now();
    const silence = new Promise((resolve) => {
      this.giveUp = () => resolve(null);
    });
    const stopReading = this.giveUp;
    this.closed.signal.addEventListener("abort", stopReading);
    try {
      for (;;) {
        alarm = setTimeout(stopReading, SILENCE_MS);
        const chunk = await Promise.race([reader.read(), silence]);
        clearTimeout(alarm);
        this.heardAt = Date.now();
        if (!chunk || chunk.done) return false;
        for (const event of events.push(chunk.value)) {
          if (this.closed.signal.aborted) return false;
          if (this.take(event)) return true;
        }
      }
    } finally {
      clearTimeout(alarm);
      this.closed.signal.removeEventListener("abort", stopReading);
      reader.cancel().catch(() => {}); // already broken: nothing left to cancel
    }
  }

  /** Take one event; true when it was the last. */
  take({ id, event, data }) {
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      return false;
    }
    const place = readEventId(id);
    if (place && this.messageId === null) {
      this.messageId = place.messageId;
      this.hooks.started(place.messageId);
    }
    if (event === "message") {
      const token = this.news(value.token ?? "", place?.offset, this.chars);
      if (token) {
        this.text += token;
        this.chars += countChars(token);
        this.hooks.text(this.text);
      }
    } else if (event === "reasoning") {
      const token = this.news(value.token ?? value.text ?? "", place?.reasoningOffset, this.reasoningChars);
      if (token) {
        this.reasoning += token;
        this.reasoningChars += countChars(token);
        this.hooks.reasoning(this.reasoning);
      }
    } else if (event === "title") {
      const title = value.title ?? value.token;
      if (title) this.hooks.title(title);
    } else if (event === "done") {
      this.hooks.done(value);
      return true;
    } else if (event === "error") {
      this.hooks.failed(value);
      return true;
    }
    return false;
  }

  /** The part of a token that is not on the screen yet, by the offset at its end. */
  news(token, endOffset, have) {
    if (!endOffset) return token;
    const count = countChars(token);
    if (endOffset === have + count) return token;
    if (endOffset <= have) return "";
    const missing = endOffset - count - have;
    if (missing > 0) throw new Error(`a gap of ${missing} characters`); // read on from what is shown
    return dropChars(token, -missing);
  }
}
