"""The reading side of a reply: a strict decoder of our own event stream, and a client's memory of one reply.

Stricter than a real client: whatever API.md promises about the bytes and is not so becomes a violation.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib.http import Address, BadResponse, ResponseReader, connect, cut, request_bytes

TERMINAL = ("done", "error")


@dataclass(frozen=True)
class Event:
    """One complete event, as it arrived."""

    id: str
    name: str
    data: str = field(repr=False)
    payload: Any
    at: float

    @property
    def message_id(self) -> int:
        """The reply this event belongs to."""
        return int(self.id.partition("-")[0])

    @property
    def token(self) -> str:
        """The characters a `message` brings; nothing for other events."""
        return str(self.payload["token"]) if self.name == "message" else ""

    @property
    def offset(self) -> int:
        """Characters of the reply up to and including this event."""
        return int(self.id.partition("-")[2].partition(".")[0])


class EventDecoder:
    """Turns bytes into events and keeps every breach of the contract."""

    def __init__(self) -> None:
        self.comments = 0
        self.violations: list[str] = []
        self.boundaries: set[int] = set()
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete."""
        self._buffer += data
        events = []
        while (end := self._buffer.find(b"\n\n")) >= 0:
            block = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._position += end + 2
            self.boundaries.add(self._position)
            event = self._decode(block)
            if event:
                events.append(event)
        return events

    def _decode(self, block: bytes) -> Event | None:
        lines = block.split(b"\n")
        if all(line.startswith(b":") for line in lines):
            self.comments += 1
            return None
        if b"\r" in block or "\u2028".encode() in block or "\u2029".encode() in block:
            self.violations.append(f"CR, U+2028 or U+2029 raw in an event: {block[:80]!r}")
        fields: dict[str, str] = {}
        for line in lines:
            if line.startswith(b":"):
                continue
            name, _, value = line.partition(b": ")
            if name.decode() in fields:
                self.violations.append(f"field twice in one event: {block[:80]!r}")
            fields[name.decode()] = value.decode()
        if set(fields) != {"id", "event", "data"}:
            self.violations.append(f"an event needs id, event, data: {block[:80]!r}")
        data = fields.get("data", "null")
        try:
            payload = json.loads(data)
        except ValueError:
            self.violations.append(f"data is not JSON: {data[:80]!r}")
            payload = None
        return Event(fields.get("id", "0-0"), fields.get("event", "message"), data, payload, time.monotonic())


@dataclass
class Piece:
    """What one connection brought: some events, and how it ended."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list, repr=False)
    body: bytes = field(default=b"", repr=False)
    ended: str = "open"  # finished | eof | reset | refused | cut | timeout
    received_bytes: int = 0
    opened_at: float = 0.0
    ended_at: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def terminal(self) -> Event | None:
        """The `done` or `error` event, if it arrived whole."""
        return next((event for event in self.events if event.name in TERMINAL), None)

    @property
    def text(self) -> str:
        """The tokens of this piece, joined."""
        return "".join(event.token for event in self.events)

    @property
    def message_id(self) -> int | None:
        """The reply, from the headers."""
        value = self.headers.get("x-message-id")
        return int(value) if value else None

    @property
    def user_message_id(self) -> int | None:
        """The question, from the headers."""
        value = self.headers.get("x-user-message-id")
        return int(value) if value else None

    def problem(self) -> Any:
        """Return the JSON of an answer that is not a stream, or None."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


async def read_stream(
    address: Address,
    method: str,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    payload: object | None = None,
    cut_after_bytes: int | None = None,
    cut_is_reset: bool = False,
    timeout: float = 60.0,
    on_piece: Callable[[Piece], None] | None = None,
) -> Piece:
    """Return what one connection brought, up to its end, the cut or the timeout; no network error is raised.

    Exactly `cut_after_bytes` bytes of the response (head included) are seen, however they are portioned.
    `on_piece` is called after every portion, for callers who act while the stream runs.
    """
    piece = Piece(opened_at=time.monotonic())
    body = None if payload is None else json.dumps(payload, ensure_ascii=False).encode()
    try:
        reader, writer = await connect(address)
    except (OSError, TimeoutError):
        piece.ended, piece.ended_at = "refused", time.monotonic()
        return piece
    response, decoder = ResponseReader(), EventDecoder()
    try:
        async with asyncio.timeout(timeout):
            writer.write(request_bytes(method, path, {"Accept": "text/event-stream", **(headers or {})}, body))
            if cut_after_bytes == 0:
                await writer.drain()
                piece.ended = "cut"
            while piece.ended == "open":
                data = await reader.read(65536)
                if not data:
                    piece.ended = "eof"
                    break
                if cut_after_bytes is not None and piece.received_bytes + len(data) >= cut_after_bytes:
                    data = data[: cut_after_bytes - piece.received_bytes]
                    piece.ended = "cut"
                piece.received_bytes += len(data)
                _absorb(piece, response, decoder, data)
                if response.is_finished and piece.ended == "open":
                    piece.ended = "finished"
                if on_piece:
                    on_piece(piece)
    except TimeoutError:
        piece.ended = "timeout"
    except OSError:
        piece.ended = "reset"
    except BadResponse as error:
        piece.ended = "reset"
        piece.violations.append(f"not HTTP: {error}")
    finally:
        cut(writer, is_reset=piece.ended == "cut" and cut_is_reset)
    piece.ended_at = time.monotonic()
    _judge(piece, response, decoder)
    return piece


def _absorb(piece: Piece, response: ResponseReader, decoder: EventDecoder, data: bytes) -> None:
    decoded = response.feed(data)
    if response.status is not None and piece.status is None:
        piece.status, piece.headers = response.status, response.headers
    if not decoded:
        return
    if piece.headers.get("content-type", "").startswith("text/event-stream"):
        piece.events += decoder.feed(decoded)
    else:
        piece.body += decoded


def _judge(piece: Piece, response: ResponseReader, decoder: EventDecoder) -> None:
    piece.violations += decoder.violations
    if decoder.boundaries and set(response.chunk_ends) - decoder.boundaries:
        piece.violations.append("a write that ends inside an event")
    names = [event.name for event in piece.events]
    ends = [name for name in names if name in TERMINAL]
    if len(ends) > 1:
        piece.violations.append(f"{len(ends)} terminal events")
    if ends and names[-1] not in TERMINAL:
        piece.violations.append("an event after the terminal one")
    if any(name not in ("message", *TERMINAL) for name in names):
        piece.violations.append(f"events nobody asked for: {sorted(set(names))}")


@dataclass
class Reading:
    """A client's memory of one reply: the text so far, where it stands, and how it ended."""

    message_id: int | None = None
    user_message_id: int | None = None
    text: str = ""
    terminal: Event | None = None
    violations: list[str] = field(default_factory=list)
    pieces: int = 0

    @property
    def last_event_id(self) -> str | None:
        """The id to resume from; None before the reply is known."""
        return None if self.message_id is None else f"{self.message_id}-{len(self.text)}"

    def absorb(self, piece: Piece, *, start: int) -> None:
        """Add a piece that was asked for from offset `start`, and check that it continues what is known."""
        self.pieces += 1
        self.violations += piece.violations
        self._learn_ids(piece)
        position = start
        for event in piece.events:
            if event.message_id != self.message_id:
                self.violations.append(f"event {event.id} in the stream of reply {self.message_id}")
                continue
            token = event.token
            if event.name == "message" and not token:
                self.violations.append(f"an empty token at {event.id}")
            position += len(token)
            if event.offset != position:
                self.violations.append(f"id {event.id} where {self.message_id}-{position} belongs")
            known = self.text[position - len(token) : position]
            if not token.startswith(known):
                self.violations.append(f"replayed text differs before {event.id}: {known!r} became {token!r}")
            self.text += token[len(known) :]
            if event.name in TERMINAL:
                self._end(event)

    def _learn_ids(self, piece: Piece) -> None:
        for name in ("message_id", "user_message_id"):
            seen, known = getattr(piece, name), getattr(self, name)
            if seen is None:
                continue
            if known is None:
                setattr(self, name, seen)
            elif seen != known:
                self.violations.append(f"{name} was {known} and became {seen}")

    def _end(self, event: Event) -> None:
        if self.terminal is None:
            self.terminal = event
            self.violations += breaches_of_end(event, saved_chars=len(self.text))
        elif (event.name, event.payload) != (self.terminal.name, self.terminal.payload):
            self.violations.append(f"the end changed: {self.terminal.data} became {event.data}")

    def status(self) -> str:
        """Return the reply's status by its terminal event, or an empty string."""
        return str(self.terminal.payload.get("status", "")) if self.terminal else ""


def breaches_of_end(event: Event, *, saved_chars: int) -> list[str]:
    """Return what is wrong with a terminal event, by API.md section 3."""
    payload = event.payload if isinstance(event.payload, dict) else {}
    wanted, statuses = (
        (
            {"messageId", "createdAt", "status", "finishReason", "usage", "referenceCard"},
            ("complete", "truncated", "stopped"),
        )
        if event.name == "done"
        else (
            {"message", "code", "retryable", "messageId", "status", "savedChars"},
            ("failed", "interrupted"),
        )
    )
    breaches = []
    if missing := wanted - set(payload):
        breaches.append(f"{event.name} without {sorted(missing)}: {event.data}")
    if payload.get("status") not in statuses:
        breaches.append(f"{event.name} with status {payload.get('status')!r}")
    if payload.get("messageId") != event.message_id:
        breaches.append(f"{event.name} of {payload.get('messageId')} under id {event.id}")
    if event.name == "error" and payload.get("savedChars") != saved_chars:
        breaches.append(f"savedChars {payload.get('savedChars')} after {saved_chars} characters")
    return breaches
