"""Server-sent events from bytes (WIRE 4.2, policy P 1 to 4): a decoder without I/O, and lenient JSON for events.

It knows lines and events, and no vendor. It never decodes text before a line is complete, so a character
split over two reads stays whole, and U+2028, U+2029, U+0085, VT and FF inside the data are data.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import orjson

from providers.errors import ReplyTooLong

_BOM = b"\xef\xbb\xbf"
_NOTES_MAX = 16
_NOTE_MAX_BYTES = 256


class Event(NamedTuple):
    """One event: its data lines joined, its name, the lines when there were several.

    is_tail: the stream ended inside this event, so data that cannot be parsed is no fault of the sender's JSON.
    notes: its comments and unknown fields as they stood, when the decoder was asked to keep them.
    """

    data: bytes
    name: str = ""
    lines: tuple[bytes, ...] = ()
    is_tail: bool = False
    notes: tuple[bytes, ...] = ()


class EventDecoder:
    """Turns reads of any size into events; the same events for every way the bytes are cut.

    With keeps_notes it also gives events without data, when they have a name, a comment or an unknown field: some
    vendors say there that they have failed.
    """

    __slots__ = (
        "_at_start",
        "_data",
        "_data_bytes",
        "_keeps_notes",
        "_line_max",
        "_name",
        "_notes",
        "_skip_lf",
        "_tail",
        "_tail_bytes",
        "failure",
    )

    def __init__(self, *, line_max_bytes: int = 8 * 1024 * 1024, keeps_notes: bool = False) -> None:
        self._line_max = line_max_bytes
        self._keeps_notes = keeps_notes
        self._notes: list[bytes] = []
        self._tail: list[bytes] = []  # the unfinished last line, in the pieces it came in
        self._tail_bytes = 0
        self._data: list[bytes] = []  # data lines of the event that has not been dispatched yet
        self._data_bytes = 0
        self._name = ""
        self._skip_lf = False  # the last read ended in CR: a LF that follows belongs to it
        self._at_start = True
        self.failure: ReplyTooLong | None = None  # a line or event over the limit; what came before it counts

    @property
    def is_between_events(self) -> bool:
        """Whether the next byte begins a new event, with nothing held back."""
        return not (
            self._tail or self._data or self._name or self._skip_lf or self._at_start or self.failure is not None
        )

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this read completes; after a failure nothing more is read."""
        events: list[Event] = []
        if self.failure is None:
            try:
                self._feed(chunk, events)
            except ReplyTooLong as error:
                self.failure = error
        return events

    def _feed(self, chunk: bytes, events: list[Event]) -> None:
        if self._at_start:
            chunk = b"".join((*self._tail, chunk))
            self._tail, self._tail_bytes = [], 0
            if len(chunk) < 3 and _BOM.startswith(chunk):
                self._tail, self._tail_bytes = [chunk], len(chunk)
                return
            chunk = chunk.removeprefix(_BOM)
            self._at_start = False
        if self._skip_lf:
            if not chunk:
                return
            self._skip_lf = False
            if chunk[0] == 10:
                chunk = chunk[1:]
        has_cr = b"\r" in chunk
        if not has_cr and b"\n" not in chunk:
            if chunk:
                self._tail.append(chunk)
                self._tail_bytes += len(chunk)
                if self._tail_bytes > self._line_max:
                    raise ReplyTooLong(code="line_too_long")
            return
        if self._tail:
            self._tail.append(chunk)
            chunk = b"".join(self._tail)
            self._tail, self._tail_bytes = [], 0
        if has_cr:
            self._skip_lf = chunk[-1] == 13
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._data:
            rest = chunk
        else:
            # The shape nearly every server sends: whole events of one data line each.
            *whole, rest = chunk.split(b"\n\n")
            for block in whole:
                if block[:6] == b"data: " and b"\n" not in block and not self._name and not self._notes:
                    if len(block) > self._line_max:
                        raise ReplyTooLong(code="line_too_long")
                    if block != b"data: ":
                        events.append(Event(block[6:]))
                else:
                    for line in block.split(b"\n"):
                        self._line(line, events)
                    self._line(b"", events)
        if rest:
            *lines, tail = rest.split(b"\n")
            for line in lines:
                self._line(line, events)
            if tail:
                self._tail, self._tail_bytes = [tail], len(tail)
                if self._tail_bytes > self._line_max:
                    raise ReplyTooLong(code="line_too_long")

    def finish(self) -> list[Event]:
        """Return what was complete but not dispatched when the stream ended, marked as the tail."""
        events: list[Event] = []
        if self.failure is not None:
            return events
        if self._tail:
            line, self._tail, self._tail_bytes = b"".join(self._tail), [], 0
            try:
                self._line(line, events)
            except ReplyTooLong as error:
                self.failure = error
                return events
        dispatched: list[Event] = []
        self._dispatch(dispatched)
        return events + [event._replace(is_tail=True) for event in dispatched]

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            self._dispatch(events)
            return
        if len(line) > self._line_max:
            raise ReplyTooLong(code="line_too_long")
        name, _colon, value = line.partition(b":")
        if name == b"data":
            if value[:1] == b" ":
                value = value[1:]
            if self._data and _stands_alone(self._data):
                # A server that forgets the blank line: do not hold back what is already whole.
                self._dispatch(events)
            self._data.append(value)
            self._data_bytes += len(value)
            if self._data_bytes > self._line_max:
                raise ReplyTooLong(code="event_too_long")
            if len(self._data) == 1 and value.strip() == b"[DONE]":
                self._dispatch(events)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace").strip()
        elif self._keeps_notes and len(self._notes) < _NOTES_MAX and len(line) <= _NOTE_MAX_BYTES:
            self._notes.append(line)

    def _dispatch(self, events: list[Event]) -> None:
        data, name, count = self._data, self._name, len(events)
        if data:
            self._data, self._data_bytes = [], 0
        self._name = ""
        if len(data) == 1:
            if data[0].strip():
                events.append(Event(data[0], name))
        elif data:
            joined = b"\n".join(data)
            if joined.strip():
                events.append(Event(joined, name, tuple(data)))
        if self._keeps_notes:
            notes, self._notes = tuple(self._notes), []
            if len(events) > count:
                events[-1] = events[-1]._replace(notes=notes)
            elif name or notes:
                events.append(Event(b"", name, notes=notes))


def loads(data: bytes) -> Any:
    """Return the JSON value of an event, with invalid UTF-8 as U+FFFD. Raises ValueError when it is not JSON.

    orjson is fast and strict; what it refuses and other parsers read (a lone surrogate escape, NaN, a bad
    byte) goes through the standard parser.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _stands_alone(data: list[bytes]) -> bool:
    """Return whether the data so far is one whole JSON object: joined with more it could not be JSON."""
    if len(data) != 1 or data[0].rstrip()[-1:] != b"}":
        return False
    try:
        loads(data[0])
    except ValueError:
        return False
    return True
