"""The calls that wait for a model: stream, resume, whole reply, regenerate, stop, selftest.

ASGI applications ahead of Django's handler, because there every open stream would hold a thread and a
stack of middleware (DESIGN 2). They share authentication, access and errors with the rest of the API as
plain functions. A stream holds a position in the reply's buffer, and neither thread nor connection.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import time
import types
import weakref
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import parse_qs

import orjson
from django.conf import settings
from django.db import Error as DatabaseError

from conversations import db, events
from conversations.api.edge import Receive, Scope, Send, send_problem
from conversations.api.parsers import parse_json
from conversations.api.serializers import message_representation
from conversations.context.pages import context_trouble
from conversations.db import tenant
from conversations.errors import (
    RETRYABLE,
    BadRequest,
    ChatError,
    GenerationFailed,
    Invalid,
    Unavailable,
    language_of,
)
from conversations.events import Position
from conversations.generation import actions, metrics
from conversations.generation.actions import Started
from conversations.generation.buffer import Ending, ReplyBuffer, ToolNote
from conversations.generation.engine import engine
from conversations.generation.store import DatabaseAway
from conversations.history.idempotency import clean_key, hash_body
from conversations.tenancy.access import access_message
from conversations.tenancy.resolve import approved_member_for, claims_from_headers, redeem_ticket
from conversations.tenancy.tokens import Claims

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0
"""A client that takes nothing for this long is let go; it resumes by id."""
TOOL_ARGUMENTS_MAX_CHARS = 2000
ROUND_SECONDS = 0.5
"""A client that hung up is noticed after so long at most."""
EXTRAS = frozenset({"reasoning", "tool", "reference", "title"})
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class Request:
    """One call, with what the edge has read of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        self.path: Mapping[str, str] = scope.get("url_route", {}).get("kwargs", {})
        self._claims: Claims | None = None
        self.id: str = scope.get("chat.request_id", "")
        self.language = language_of(self.header(b"accept-language"))

    def header(self, name: bytes) -> str | None:
        """Return the last header of this name. Not kept as a mapping, which would live as long as the stream."""
        found = None
        for known, value in self.scope["headers"]:
            if known == name:
                found = value
        return None if found is None else found.decode("latin-1")

    async def refuse_strangers(self) -> None:
        """Raise what a caller deserves who may not chat at all, before they learn what was wrong with the rest.

        Only asked when something was: the good path finds out in its own transaction.
        """
        if self._claims is not None:
            await db.unit(_check_member, self._claims)

    async def claims(self) -> Claims:
        """Return who calls: by bearer token, or by a single-use ticket in the query, which only reads.

        Raises: NotSignedIn.
        """
        has_ticket = self.scope["method"] == "GET" and "ticket" in self.query
        if has_ticket and self.header(b"authorization") is None:
            self._claims = await db.unit(redeem_ticket, self.query["ticket"][-1])
        else:
            self._claims = claims_from_headers(self.scope["headers"])
        return self._claims

    def json(self) -> dict[str, Any]:
        """Return the body, an object; an empty body is an empty object.

        Raises: ChatError unsupported_media_type, BadRequest malformed_json, Invalid.
        """
        raw: bytes = self.scope["chat.body"]
        if not raw:
            return {}
        if (self.header(b"content-type") or "").partition(";")[0].strip().lower() != "application/json":
            raise ChatError("unsupported_media_type")
        body = parse_json(raw)
        if not isinstance(body, dict):
            raise Invalid("invalid", errors={"body": ["must be an object"]})
        return body

    def last_event_id(self) -> str | None:
        """Return where the client says it is, by header or query."""
        given = self.header(b"last-event-id") or (self.query.get("lastEventId") or [""])[-1]
        return given.strip() or None

    def position(self) -> Position | None:
        """Return the same, parsed.

        Raises: BadRequest bad_event_id.
        """
        given = self.last_event_id()
        if given is None:
            return None
        try:
            return events.parse_event_id(given)
        except ValueError as error:
            raise BadRequest("bad_event_id") from error

    def idempotency_key(self) -> str | None:
        """Return the key, checked."""
        return clean_key(self.header(b"idempotency-key"))

    def include(self, body: Mapping[str, Any] | None = None) -> frozenset[str]:
        """Return the extra events the client asks for, in the body or in the query; unknown ones are ignored.

        Raises: Invalid.
        """
        asked = (body or {}).get("include")
        if asked is None:
            asked = ",".join(self.query.get("include", [])).split(",")
        if not isinstance(asked, list) or not all(isinstance(word, str) for word in asked):
            raise Invalid("invalid", errors={"include": ["must be a list of strings"]})
        return EXTRAS & {word.strip() for word in asked}


Handler = Callable[[Request], Awaitable[None]]


class Endpoint:
    """An ASGI application that answers some methods; others go to Django, or are refused."""

    def __init__(self, *, otherwise: Any = None, **handlers: Handler) -> None:
        self._handlers = handlers
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, errors included."""
        handler = self._handlers.get(scope["method"])
        if handler is None and self._otherwise is not None:
            await self._otherwise(scope, receive, send)
            return
        if handler is None:
            allowed = ", ".join(sorted(self._handlers)).encode()
            await send_problem(scope, send, ChatError("method_not_allowed"), (b"allow", allowed))
            return
        request = Request(scope, receive, send)
        try:
            try:
                await handler(request)
            except (BadRequest, Invalid):
                await request.refuse_strangers()
                raise
        except ChatError as error:
            await send_problem(scope, send, error)
        except (DatabaseError, *DatabaseAway) as error:
            log.warning("database_away", extra={"error": type(error).__name__, "path": scope["path"]})
            await send_problem(scope, send, Unavailable(retry_after_seconds=2))


# --- sending ---


@dataclass(frozen=True, slots=True)
class Wish:
    """How a client wants its stream."""

    include: frozenset[str] = frozenset()
    ascii_only: bool = False


class Relay:
    """One client reading one reply, from a position to the terminal event."""

    __slots__ = (
        "_buffer",
        "_content",
        "_has_hung_up",
        "_is_heartbeat_due",
        "_is_particular",
        "_last_sent",
        "_reasoning",
        "_request",
        "_sending_since",
        "_start",
        "_task",
        "_tools_told",
        "_unfinished",
        "_waiter",
        "_wish",
        "_with_reasoning",
        "_with_tools",
    )

    def __init__(self, request: Request, buffer: ReplyBuffer, position: Position, wish: Wish) -> None:
        self._request = request
        self._buffer = buffer
        self._content = position.content
        self._reasoning = position.reasoning
        self._wish = wish
        self._with_reasoning = "reasoning" in wish.include
        self._with_tools = "tool" in wish.include
        self._start = position
        self._tools_told: dict[int, str] = {}
        self._is_particular = self._with_reasoning or self._with_tools or wish.ascii_only
        self._has_hung_up = False
        self._last_sent = time.monotonic()
        self._is_heartbeat_due = False
        self._unfinished: Awaitable[None] | None = None
        self._sending_since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, opening: bytes = b"") -> None:
        """Send everything from the position on, and the end; return early when the client is gone."""
        self._task = asyncio.current_task()
        metrics.SUBSCRIBERS.inc()
        rounds = Rounds.of_this_loop()
        rounds.add(self)
        try:
            if opening:
                await self._send(opening)
            await self._relay()
        finally:
            metrics.SUBSCRIBERS.dec()
            rounds.remove(self)

    async def _relay(self) -> None:
        buffer = self._buffer
        while not self._has_hung_up:
            if (unfinished := self._unfinished) is not None:
                self._unfinished = None
                await self._finish(unfinished)
            elif frames := self._next_frames():
                await self._send(frames)
            elif buffer.ending is not None:
                await self._send(self._terminal(buffer.ending), is_last=True)
                return
            elif buffer.is_lost:
                await self._send(b"", is_last=True)
                return
            elif self._is_heartbeat_due:
                await self._send(events.HEARTBEAT)
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                buffer.readers.append(self._on_more)
                try:
                    await self._waiter
                finally:
                    self._waiter = None
                    buffer.readers.remove(self._on_more)

    def _on_more(self) -> None:
        """Send what was just committed, right here when the server takes it at once; else wake our task.

        Waking a task for every token costs more than making and sending its frame.
        """
        buffer, waiter = self._buffer, self._waiter
        if waiter is None or waiter.done():
            return
        text = buffer.content.read(self._content)
        is_ordinary = text and len(text) <= events.FRAME_MAX_CHARS and not self._is_particular
        if not is_ordinary or buffer.ending is not None or buffer.is_lost or self._has_hung_up:
            waiter.set_result(None)
            return
        self._content = buffer.content.length
        body = events.content_frame(buffer.message_id, self._content, text)
        self._last_sent = time.monotonic()
        try:
            steps = self._request.send({"type": "http.response.body", "body": body, "more_body": True}).__await__()
            blocker = next(steps)
        except StopIteration:
            return
        except Exception as error:
            # It belongs to our task, not to the writer in whose commit we are.
            self._unfinished = _raise(error)
        else:
            self._unfinished = _rest_of(steps, blocker)
        self._sending_since = time.monotonic()
        waiter.set_result(None)

    def _next_frames(self) -> bytes:
        """Return the next stretch as one event, and move on."""
        buffer = self._buffer
        content_most = reasoning_most = events.FRAME_MAX_CHARS
        if self._with_tools:
            due, note = self._next_tool()
            if due and note is not None:
                return self._tool_frame(note)
            if note is not None:
                # Text goes on up to the place where the tool was asked for.
                content_most = min(content_most, max(0, note.at[0] - self._content))
                reasoning_most = min(reasoning_most, max(0, note.at[1] - self._reasoning))
        if self._with_reasoning and reasoning_most and self._reasoning < buffer.reasoning.length:
            text = buffer.reasoning.read(self._reasoning)[:reasoning_most]
            self._reasoning += len(text)
            return events.token_frame(self._event_id(), "reasoning", text, ascii_only=self._wish.ascii_only)
        if content_most and self._content < buffer.content.length:
            text = buffer.content.read(self._content)[:content_most]
            self._content += len(text)
            return events.token_frame(self._event_id(), "message", text, ascii_only=self._wish.ascii_only)
        return b""

    def _next_tool(self) -> tuple[bool, ToolNote | None]:
        """Return the next thing to tell of a tool, and whether this reader is where it belongs.

        What lies before the place where the reader came in was told to it earlier.
        """
        for note in self._buffer.tools.values():
            if self._tools_told.get(note.id) == note.status or not self._begins_before(note):
                continue
            is_reached = self._content >= note.at[0] and (
                not self._with_reasoning or self._reasoning >= note.at[1]
            )
            return is_reached, note
        return False, None

    def _begins_before(self, note: ToolNote) -> bool:
        if self._with_reasoning and self._start.reasoning > note.at[1]:
            return False
        return self._start.content <= note.at[0]

    def _tool_frame(self, note: ToolNote) -> bytes:
        """Return an event without an id: it has no place of its own in the text, and resuming repeats it.

        Every reader hears that a tool was started before it hears how it ended, however late it comes.
        """
        if note.id not in self._tools_told:
            note = replace(note, status="started", ms=None)
        self._tools_told[note.id] = note.status
        return events.frame("tool", tool_data(note), ascii_only=self._wish.ascii_only)

    def _event_id(self) -> str:
        if self._with_reasoning:
            return f"{self._buffer.message_id}-{self._content}.{self._reasoning}"
        return f"{self._buffer.message_id}-{self._content}"

    def _terminal(self, ending: Ending) -> bytes:
        if ending.status in {"complete", "truncated", "stopped"}:
            event, data = "done", done_data(self._buffer, ending)
        else:
            event, data = "error", error_data(self._buffer, ending, self._request.language)
        before = b""
        if "reference" in self._wish.include and ending.reference_card is not None:
            before = events.frame("reference", ending.reference_card, ascii_only=self._wish.ascii_only)
        return before + events.frame(event, data, event_id=self._event_id(), ascii_only=self._wish.ascii_only)

    async def _send(self, body: bytes, *, is_last: bool = False) -> None:
        await self._finish(
            self._request.send({"type": "http.response.body", "body": body, "more_body": not is_last})
        )

    async def _finish(self, sending: Awaitable[None]) -> None:
        self._sending_since = time.monotonic()
        await sending
        self._last_sent = time.monotonic()
        self._is_heartbeat_due = False
        self._sending_since = 0.0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def look(self, now: float, until_next: float) -> None:
        """Notice a client that hung up, let a silent stream speak in time, let a client go that does not read."""
        if not self._has_hung_up and self._has_left():
            self._has_hung_up = True
            self._wake()
        if not self._sending_since:
            if now + until_next > self._last_sent + settings.STREAM_HEARTBEAT_SECONDS:
                self._is_heartbeat_due = True
                self._wake()
            return
        behind_bytes = 4 * (self._buffer.content.length - self._content)
        stalled = now - self._sending_since
        if stalled > STALL_SECONDS or (stalled > 1 and behind_bytes > settings.STREAM_BEHIND_MAX_BYTES):
            metrics.DROPPED_READERS.inc()
            log.info("reader_dropped", extra={"reply": self._buffer.message_id, "seconds": round(stalled, 1)})
            self._has_hung_up = True
            if self._task is not None:
                self._task.cancel()

    def _has_left(self) -> bool:
        """Return whether the server has said that the client is gone, without waiting for it to say so.

        A task that waits for each stream's last word costs 2 KB for as long as the stream is open.
        """
        while True:
            steps = self._request.receive().__await__()
            try:
                next(steps)
            except StopIteration as said:
                if said.value["type"] == "http.disconnect":
                    return True
            except Exception as error:
                # It must not keep the others from being looked after.
                log.warning("receive_failed", extra={"error": type(error).__name__})
                return True
            else:
                steps.close()
                return False


class Rounds:
    """Looks after all relays of one event loop, every ROUND_SECONDS at most: one task, not one for each stream."""

    _all: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Rounds]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self._relays: set[Relay] = set()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of_this_loop(cls) -> Rounds:
        """Return the running loop's."""
        loop = asyncio.get_running_loop()
        found = cls._all.get(loop)
        if found is None:
            found = cls._all[loop] = cls()
        return found

    def add(self, relay: Relay) -> None:
        """Look after a relay from now on."""
        self._relays.add(relay)
        if self._task is None or self._task.done():
            # A context of its own: the request's would keep what that holds (DESIGN 6).
            self._task = asyncio.get_running_loop().create_task(self._go(), context=contextvars.Context())

    def remove(self, relay: Relay) -> None:
        """Look after it no more."""
        self._relays.discard(relay)

    async def _go(self) -> None:
        while self._relays:
            seconds = min(ROUND_SECONDS, settings.STREAM_HEARTBEAT_SECONDS / 16)
            await asyncio.sleep(seconds)
            now = time.monotonic()
            for relay in tuple(self._relays):
                relay.look(now, seconds)
        self._task = None


@types.coroutine
def _rest_of(steps: Any, blocker: Any) -> Generator[Any, None, None]:
    """Go on with an awaitable that was begun outside a task, at what it waits for."""
    yield blocker
    yield from steps


async def _raise(error: Exception) -> None:
    raise error


def tool_data(note: ToolNote) -> dict[str, Any]:
    """Return what `tool` says; arguments that are too long to be shown are left out."""
    said: dict[str, Any] = {"callId": note.id, "name": note.name}
    if len(note.arguments) <= TOOL_ARGUMENTS_MAX_CHARS:
        try:
            arguments = orjson.loads(note.arguments or "{}")
            orjson.dumps(arguments)  # what is nested deeper than this can be read, and not be written
            said["arguments"] = arguments
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            said["arguments"] = note.arguments
    return {**said, "status": note.status, "ms": note.ms}


def done_data(buffer: ReplyBuffer, ending: Ending) -> dict[str, Any]:
    """Return what `done` says."""
    return {
        "messageId": buffer.message_id,
        "createdAt": buffer.created_at,
        "status": ending.status,
        "finishReason": ending.finish_reason,
        "usage": ending.usage,
        "referenceCard": ending.reference_card,
    }


def error_data(buffer: ReplyBuffer, ending: Ending, language: Any) -> dict[str, Any]:
    """Return what `error` says; nothing of the provider's own words."""
    error = GenerationFailed(ending.error_code or "internal")
    return {
        "message": error.text.detail(language),
        "code": error.code,
        "retryable": error.code in RETRYABLE,
        "messageId": buffer.message_id,
        "status": ending.status,
        "savedChars": buffer.content.length,
    }


async def _relay_reply(
    request: Request, started: Started, position: Position, wish: Wish, *, opening: bytes = b""
) -> None:
    """Answer with the stream of a reply from a position on.

    Raises: BadRequest bad_event_id when the position is ahead of the reply, Unavailable when this process
    has just lost it; before the stream starts.
    """
    async with engine().attach(started.reply_id) as buffer:
        if position.content or position.reasoning:
            is_there = await buffer.reaches(position.content, position.reasoning)
            if buffer.is_lost:
                raise Unavailable(retry_after_seconds=1)
            if not is_there:
                raise BadRequest("bad_event_id")
        if "tool" in wish.include:
            await engine().load_tools(buffer)
        await request.send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    *STREAM_HEADERS,
                    (b"x-chat-id", str(started.chat_id).encode()),
                    (b"x-user-message-id", str(started.user_message_id).encode()),
                    (b"x-message-id", str(started.reply_id).encode()),
                ],
            }
        )
        await Relay(request, buffer, position, wish).run(events.OPENING + opening)


def _wish(request: Request, started: Started, body: Mapping[str, Any] | None = None) -> Wish:
    asked = (request.query.get("ascii") or [""])[-1].lower()
    is_ascii = started.is_ascii_stream if asked == "" else asked in {"1", "true", "on", "yes"}
    return Wish(request.include(body), is_ascii)


async def _answer_with(
    request: Request, started: Started, position: Position | None, body: Mapping[str, Any] | None = None
) -> None:
    wish = _wish(request, started, body)
    opening = b""
    if "title" in wish.include and started.title:
        opening = events.frame("title", {"title": started.title}, ascii_only=wish.ascii_only)
    await _relay_reply(request, started, position or Position(started.reply_id), wish, opening=opening)


# --- the calls ---


def parse_send(body: Mapping[str, Any], *, chat_id: int, operation: str, key: str | None) -> actions.Send:
    """Return what a member sends, checked.

    Raises: Invalid.
    """
    content = actions.clean_content(body.get("content"))
    wrong: dict[str, list[str]] = {}
    source_page = body.get("sourcePage")
    if source_page is not None and (
        not isinstance(source_page, str) or len(source_page) > 200 or not events.is_storable(source_page)
    ):
        wrong["sourcePage"] = ["must be a string of at most 200 characters"]
    page_context = body.get("pageContext")
    if page_context is not None and (
        not isinstance(page_context, dict) or not events.is_storable_json(page_context)
    ):
        wrong["pageContext"] = ["must be an object without NUL and lone surrogates"]
    elif page_context is not None and (trouble := context_trouble(page_context)) is not None:
        wrong["pageContext"] = [trouble]
    if wrong:
        raise Invalid("invalid", errors=wrong)
    return actions.Send(
        chat_id=chat_id,
        content=content,
        source_page=source_page or "",
        page_context=page_context,
        idempotency_key=key,
        body_hash=hash_body(operation, dict(body)) if key else "",
    )


async def post_stream(request: Request) -> None:
    """CHAT-4: store the question, and stream the reply. With Last-Event-ID: resume, send nothing again."""
    claims = await request.claims()
    position = request.position()
    if position is not None:
        await _resume(request, claims, position)
        return
    body = request.json()
    chat_id = body.get("chatId")
    if isinstance(chat_id, bool) or not isinstance(chat_id, int):
        raise Invalid("invalid", errors={"chatId": ["must be an integer"]})
    request.include(body)
    send = parse_send(body, chat_id=chat_id, operation="stream", key=request.idempotency_key())
    started = await engine().accept(actions.start_reply, claims, send, request_id=request.id)
    await _answer_with(request, started, None, body)


async def get_stream(request: Request) -> None:
    """Resume by Last-Event-ID."""
    claims = await request.claims()
    position = request.position()
    if position is None:
        raise BadRequest("bad_event_id")
    await _resume(request, claims, position)


async def _resume(request: Request, claims: Claims, position: Position) -> None:
    started = await db.unit(actions.find_started, claims, position.message_id)
    body = request.json() if request.scope["method"] == "POST" else None
    await _answer_with(request, started, position, body)


async def get_reply_stream(request: Request) -> None:
    """Stream one reply from its beginning, or from Last-Event-ID on."""
    claims = await request.claims()
    position = request.position()
    started = await db.unit(actions.find_started, claims, request.path["message_id"])
    if position is not None and position.message_id != started.reply_id:
        raise BadRequest("bad_event_id")
    await _answer_with(request, started, position)


async def post_regenerate(request: Request) -> None:
    """Make another version of a reply, and stream it."""
    claims = await request.claims()
    position = request.position()
    if position is not None:
        await _resume(request, claims, position)
        return
    body = request.json()
    request.include(body)
    key, message_id = request.idempotency_key(), request.path["message_id"]
    started = await engine().accept(
        actions.regenerate_reply,
        claims,
        message_id,
        request_id=request.id,
        idempotency_key=key,
        body_hash=hash_body(f"regenerate {message_id}", body) if key else "",
    )
    await _answer_with(request, started, None, body)


async def post_message(request: Request) -> None:
    """CHAT-3: the same as a stream, answered when the reply is finished."""
    claims = await request.claims()
    chat_id = request.path["chat_id"]
    body = request.json()
    send = parse_send(
        body,
        chat_id=int(chat_id) if chat_id.isascii() and chat_id.isdigit() and len(chat_id) < 20 else 0,
        operation=f"message {chat_id}",
        key=request.idempotency_key(),
    )
    started = await engine().accept(actions.start_reply, claims, send, request_id=request.id)
    buffer, ending = await engine().ended(started.reply_id)
    if ending.status in {"failed", "interrupted"}:
        raise GenerationFailed(
            ending.error_code or "internal",
            extra={
                "messageId": started.reply_id,
                "userMessageId": started.user_message_id,
                "replyStatus": ending.status,
                "savedChars": buffer.content.length,
            },
        )
    await _send_json(request, await db.unit(_exchange, claims, started))


def _exchange(claims: Claims, started: Started) -> dict[str, Any]:
    with tenant(claims.site_id):
        membership = approved_member_for(claims)
        return {
            "userMessage": message_representation(access_message(membership, started.user_message_id)),
            "aiReply": message_representation(access_message(membership, started.reply_id)),
        }


async def post_stop(request: Request) -> None:
    """End a reply, whichever worker runs it; answer with what is saved, and how fast upstream was closed."""
    claims = await request.claims()
    started = await db.unit(actions.find_started, claims, request.path["message_id"])
    await engine().stop(started)
    receipt = await db.unit(actions.read_receipt, claims, started.reply_id)
    await _send_json(
        request,
        {
            "messageId": receipt.message_id,
            "status": receipt.status,
            "savedChars": receipt.saved_chars,
            "upstreamClosedMs": receipt.upstream_closed_ms,
        },
    )


async def get_selftest(request: Request) -> None:
    """Send ten numbered events, 100 ms apart: a client that gets them at once has a buffering proxy."""
    await db.unit(_check_member, await request.claims())
    await request.send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
    await request.send({"type": "http.response.body", "body": events.OPENING, "more_body": True})
    began = time.monotonic()
    for number in range(1, 11):
        await asyncio.sleep(max(0.0, began + number * 0.1 - time.monotonic()))
        data = {"token": str(number), "n": number, "ms": round((time.monotonic() - began) * 1000)}
        await request.send(
            {
                "type": "http.response.body",
                "body": events.frame("message", data, event_id=f"selftest-{number}"),
                "more_body": True,
            }
        )
    await request.send({"type": "http.response.body", "body": events.frame("done", {"events": 10})})


def _check_member(claims: Claims) -> None:
    with tenant(claims.site_id):
        approved_member_for(claims)


async def _send_json(request: Request, document: Mapping[str, Any], status: int = 200) -> None:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await request.send({"type": "http.response.start", "status": status, "headers": headers})
    await request.send({"type": "http.response.body", "body": body})
