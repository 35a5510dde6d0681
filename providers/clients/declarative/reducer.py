"""What the events of a configured API mean: a reducer without I/O.

Bytes, lines, half characters, noise and tool calls are handled as in the OpenAI reducer; what an event says is
told by the configuration's paths and conditions. A body may be an event stream, one JSON object per line, or one
JSON object: the first byte tells, or chunk_match, which takes the JSON out of each line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from providers import errors
from providers.clients.declarative.conditions import DATA, EVENT, STATUS, any_holds
from providers.clients.declarative.pick import Path, pick
from providers.clients.declarative.schema import ErrorRule, Section
from providers.clients.declarative.tool_calls import READERS
from providers.clients.openai_reducer import Reducer, read_usage
from providers.sse import Event, loads
from providers.types import Finished, Usage, storable

_BOM = b"\xef\xbb\xbf"
_NOT_A_REASON = (None, "", "null")
_COUNT_MAX = (1 << 31) - 1


@dataclass(slots=True)
class Trace:
    """What became of one event, for the lab: what was mapped, and what was dropped and why."""

    raw: str = field(repr=False)
    event: str | None = None
    mapped: dict[str, Any] = field(default_factory=dict)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    says: str = ""


class MappedReducer(Reducer):
    """Turns the bytes of one reply into text, reasoning, usage and an end, as a section says."""

    __slots__ = (
        "_counts",
        "_facts",
        "_is_one_value",
        "_line_tail",
        "_line_tail_bytes",
        "_read_calls",
        "_seen",
        "_trace",
        "_usage_rank",
        "_watcher",
        "error_event",
        "section",
    )

    def __init__(
        self,
        section: Section,
        *,
        line_max_bytes: int = 8 * 1024 * 1024,
        watcher: Callable[[Trace], None] | None = None,
    ) -> None:
        super().__init__(line_max_bytes=line_max_bytes)
        self.section = section
        self.error_event: Any = None  # the event that was the error, for refresh_on
        self._facts: dict[str, Any] = {STATUS: 200}
        self._seen = {"content": "", "reasoning": ""}  # the text so far, when each event repeats it
        self._counts: dict[str, int] = {}
        self._usage_rank = 1 << 10
        self._line_tail: list[bytes] = []  # the unfinished last line, in the pieces it came in
        self._line_tail_bytes = 0
        self._is_one_value = False
        self._read_calls = READERS[section.tool_calls]() if section.tool_calls else None
        self._watcher = watcher
        self._trace: Trace | None = None
        if section.line_pattern is not None and not section.line_pattern.means_sse:
            self._mode = "lines"

    @property
    def is_complete(self) -> bool:
        """Whether the model said that it had finished, or the answer is one whole JSON object."""
        if self.error is not None:
            return False
        is_whole = self._has_text and (
            self._mode == "json" or (self._mode == "lines" and self.section.mode == "whole")
        )
        return self.done or is_whole or (self.finish_reason is not None and self.section.finish_completes)

    def plain_text(self, chunk: bytes) -> str | None:
        """Return None: there is no short way for mapped events."""
        return None

    def feed(self, chunk: bytes) -> None:
        """Take in one read. Raises ReplyTooLong over the limits, MalformedReply for endless noise."""
        if self._mode == "lines":
            self._feed_lines(chunk)
            return
        super().feed(chunk)
        if self._mode == "json" and not self._is_one_value and b"\n" in chunk:
            start = b"".join(self._body).removeprefix(_BOM).lstrip()
            try:
                self._is_one_value = type(loads(start.partition(b"\n")[0])) is not dict
            except ValueError:
                self._is_one_value = True
            if not self._is_one_value:
                self._mode, self._body = "lines", []
                self._feed_lines(start)

    def finish(self) -> None:
        """Take in the end of the body. Raises what feed() raises."""
        if self._mode != "lines":
            super().finish()
        elif self._line_tail and not self.is_over:
            line, self._line_tail = b"".join(self._line_tail), []
            self._line(line, is_tail=True)

    def finished(self) -> Finished:
        """Return the last item of a complete reply."""
        usage = read_usage(self.usage)
        if self._counts:
            known = usage or Usage(0, 0)
            usage = Usage(
                self._counts.get("input_tokens", known.input_tokens),
                self._counts.get("output_tokens", known.output_tokens),
            )
        return Finished(
            finish_reason=self.finish_reason,
            usage=usage,
            request_id=storable(self.request_id[:200]) if self.request_id else None,
            malformed_events=self.malformed_events,
            tool_calls=self.tool_calls,
        )

    def _feed_lines(self, chunk: bytes) -> None:
        if self.is_over:
            return
        if b"\n" in chunk:
            *lines, chunk = b"".join((*self._line_tail, chunk)).split(b"\n")
            self._line_tail, self._line_tail_bytes = [], 0
            for line in lines:
                self._line(line, is_tail=False)
                if self.is_over:
                    return
        self._line_tail.append(chunk)
        self._line_tail_bytes += len(chunk)
        if self._line_tail_bytes > self._limit:
            raise errors.ReplyTooLong(code="line_too_long")

    def _line(self, line: bytes, *, is_tail: bool) -> None:
        if len(line) > self._limit:
            raise errors.ReplyTooLong(code="line_too_long")
        line = line.strip(b"\r")
        pattern = self.section.line_pattern
        if pattern is not None and not pattern.means_sse:
            text = line.removeprefix(_BOM).decode("utf-8", "replace")
            if len(text) > pattern.max_chars:
                raise errors.ReplyTooLong(code="line_too_long_for_chunk_match")
            found = pattern.search(text)
            if found is None:
                if text.strip():
                    self._begin(line).says = "dropped: chunk_match does not match"
                    self._end()
                return
            line = found.encode()
        if line.strip():
            self._event(Event(line, is_tail=is_tail))

    def _event(self, event: Event) -> None:
        trace = self._begin(event.data)
        trace.event = event.name or None
        self._facts = {STATUS: 200, EVENT: event.name or None}
        if event.data.lstrip()[:1] != b"{":
            self._facts[DATA] = event.data.decode("utf-8", "replace").strip()
            if any_holds(self.section.done_when, None, self._facts):
                self.done = True
                trace.says = "the end: done_when"
                self._end()
                return
        before = self.malformed_events
        super()._event(event)
        if self.done and not trace.says:
            trace.says = "the end: [DONE]"
        if self.malformed_events > before:
            trace.says = "dropped: not a JSON object"
        self._end()

    def _value(self, value: Any, *, count: bool) -> None:
        if type(value) is not dict:
            if count:
                self._malformed()
            return
        if self._trace is None:  # a whole JSON body comes without an event
            self._begin(b"")
            self._mapped(value)
            self._end()
        else:
            self._mapped(value)

    def _mapped(self, value: dict[str, Any]) -> None:
        self.payloads += 1
        section, trace = self.section, self._trace
        assert trace is not None
        if (error := error_in(section.errors, value, self._facts)) is not None:
            self.error, self.error_event = error, value
            trace.mapped["error"] = error
            trace.says = "an error: the reply ends here"
            return
        mapped = {name: _first(value, paths) for name, paths in section.resp.items()}
        found = {name: item for name, item in mapped.items() if item is not None}
        for entry in section.filters:
            if entry.condition.holds(value, self._facts, mapped):
                for name in entry.fields or mapped.keys():
                    if mapped.pop(name, None) not in (None, ""):
                        trace.dropped.append((name, f"filter: {entry.condition}"))
        trace.mapped.update((name, item) for name, item in found.items() if name in mapped)
        self._said(mapped, trace)
        self._told(value, mapped)
        if self._read_calls is not None and not any(name == "content" for name, _why in trace.dropped):
            self._calls(self._read_calls(value), trace)
        if any_holds(section.done_when, value, self._facts):
            self.done = True
            trace.says = "the end: done_when"
        elif not trace.says and not trace.mapped:
            trace.says = "nothing in it is mapped"

    def _said(self, mapped: dict[str, Any], trace: Trace) -> None:
        """Take text and reasoning."""
        content, reasoning = mapped.get("content"), mapped.get("reasoning")
        for name, text, was_before in (
            ("whole_content", content, self._has_text),
            ("whole_reasoning", reasoning, self._has_text or bool(self.reasonings)),
        ):
            if mapped.get(name) in (None, ""):
                continue
            if text or was_before:
                trace.mapped.pop(name, None)
                trace.dropped.append((name, "it was said before in pieces"))
            elif name == "whole_content":
                content = mapped[name]
            else:
                reasoning = mapped[name]
        if reasoning and (fresh := self._fresh("reasoning", reasoning)):
            self.reasonings.append(fresh)
        if content:
            if type(content) is not str:
                self._text(content)
            elif fresh := self._fresh("content", content):
                self._text(fresh)

    def _told(self, value: dict[str, Any], mapped: dict[str, Any]) -> None:
        """Take usage, finish reason and request id."""
        for rank, path in enumerate(self.section.resp.get("usage", ()) if "usage" in mapped else ()):
            usage = pick(value, path)
            if not usage:
                continue
            if self.section.usage_merge and type(usage) is dict:
                known = self._top_usage if type(self._top_usage) is dict else {}
                self._top_usage = {**known, **{name: item for name, item in usage.items() if item is not None}}
            elif rank <= self._usage_rank:
                self._top_usage, self._usage_rank = usage, rank
        for name in ("input_tokens", "output_tokens"):
            count = mapped.get(name)
            if type(count) is int and 0 <= count <= _COUNT_MAX:
                self._counts[name] = count
        reason = mapped.get("finish_reason")
        if type(reason) in (str, int) and reason not in _NOT_A_REASON:
            self.finish_reason = storable(str(reason)[:64])
        request_id = mapped.get("request_id")
        if self.request_id is None and type(request_id) is str and request_id:
            self.request_id = request_id

    def _calls(self, pieces: list[Any], trace: Trace) -> None:
        """Take what an event adds to tool calls."""
        if pieces:
            self._rest({"tool_calls": pieces})
            trace.mapped["tool_calls"] = pieces

    def _fresh(self, name: str, text: Any) -> str:
        """Return what this text adds to what was said. Raises MalformedReply when it takes something back."""
        if type(text) is not str:
            return ""
        if not self.section.cumulative:
            return text
        before = self._seen[name]
        if text.startswith(before):
            self._seen[name] = text
            return text[len(before) :]
        if before.startswith(text):
            return ""
        raise errors.MalformedReply(code="text_rewritten", retryable=False)

    def _begin(self, raw: bytes) -> Trace:
        self._trace = Trace(raw.decode("utf-8", "replace") if self._watcher else "")
        return self._trace

    def _end(self) -> None:
        trace, self._trace = self._trace, None
        if self._watcher is not None and trace is not None:
            self._watcher(trace)


def error_in(rules: tuple[ErrorRule, ...], value: Any, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return {message, type, code, kind?} when one of the rules calls this value an error."""
    for rule in rules:
        if not any_holds(rule.when, value, facts):
            continue
        error = {
            "message": _word(value, rule.message, str),
            "type": _word(value, rule.type, str),
            "code": _word(value, rule.code, str, int),
        }
        return error if rule.kind is None else {**error, "kind": rule.kind}
    return None


def _first(value: Any, paths: tuple[Path, ...]) -> Any:
    """Return the first thing found that says something, else the first that is there at all."""
    there = None
    for path in paths:
        found = pick(value, path)
        if found:
            return found
        there = found if there is None else there
    return there


def _word(value: Any, paths: tuple[Path, ...], *kinds: type) -> Any:
    return next((found for path in paths if type(found := pick(value, path)) in kinds), None)
