"""The vocabulary of a stream: event names, ids, and frames as bytes. No I/O, no Django."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

HEARTBEAT = b": ping\n\n"
OPENING = b": ok\n\n"
FRAME_MAX_CHARS = 4096
"""Longer stretches leave as several frames, so that back-pressure works between them."""

_EVENT_ID = re.compile(r"(\d{1,18})-(\d{1,9})(?:\.(\d{1,9}))?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a reply: code points of content, and of reasoning, that the reader has."""

    message_id: int
    content: int = 0
    reasoning: int = 0


def parse_event_id(text: str) -> Position:
    """Return the place that an event id names: `<message>-<offset>` or `<message>-<offset>.<reasoning offset>`.

    Raises: ValueError.
    """
    match = _EVENT_ID.match(text)
    if match is None:
        raise ValueError("malformed event id")
    return Position(int(match[1]), int(match[2]), int(match[3] or 0))


def to_json(value: Any, *, ascii_only: bool = False) -> bytes:
    """Return one line of JSON with U+2028 and U+2029 escaped; with `ascii_only`, everything beyond ASCII."""
    if ascii_only:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    data = orjson.dumps(value)
    if b"\xe2\x80\xa8" in data or b"\xe2\x80\xa9" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


def token_frame(event_id: str, event: str, text: str, *, ascii_only: bool = False) -> bytes:
    """Return one frame of text: `message` for content, `reasoning` for thoughts."""
    data = to_json(text, ascii_only=ascii_only)
    return b'id: %b\nevent: %b\ndata: {"token":%b}\n\n' % (event_id.encode(), event.encode(), data)


def content_frame(message_id: int, offset: int, text: str) -> bytes:
    """Return what `token_frame` gives for content in UTF-8: the frame of nearly every token."""
    data = orjson.dumps(text)
    if b"\xe2\x80" in data:
        data = to_json(text)
    return b'id: %d-%d\nevent: message\ndata: {"token":%b}\n\n' % (message_id, offset, data)


def frame(event: str, data: Any, *, event_id: str | None = None, ascii_only: bool = False) -> bytes:
    """Return one frame; LF only, data on one line."""
    head = b"id: %b\n" % event_id.encode() if event_id else b""
    return b"%bevent: %b\ndata: %b\n\n" % (head, event.encode(), to_json(data, ascii_only=ascii_only))


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL and UTF-8 can hold the text as it is: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def is_storable_json(value: Any) -> bool:
    """Return whether every text in a JSON value, keys included, is storable."""
    rest = [value]
    while rest:
        match rest.pop():
            case str() as text if not is_storable(text):
                return False
            case dict() as pairs:
                rest += pairs
                rest += pairs.values()
            case list() as items:
                rest += items
    return True
