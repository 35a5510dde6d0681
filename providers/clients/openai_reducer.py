"""What the events of an OpenAI-compatible chat stream mean: a reducer without I/O.

The rules are policy P of WIRE 4.2; each number in a comment below is one of its points. The vendors' quirks
that it absorbs are listed in WIRE 4.4 and kept as cases in tests/wire/sse_corpus/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from providers import errors
from providers.sse import Event, EventDecoder, loads
from providers.types import Delta, Finished, ToolCall, Usage, storable

_MAX_MALFORMED = 1000
_MAX_TOOL_CHARS = 1 << 20
_NOT_A_REASON = (None, "", "null")


class Reducer:
    """Turns the bytes of one reply into text, reasoning, tool calls, usage, and how it ended.

    feed() for each read, finish() at the end of the body, take() for what came since the last take.
    texts and reasonings hold the tokens one by one until they are taken.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_choice_usage",
        "_decoder",
        "_has_text",
        "_held",
        "_is_plain",
        "_limit",
        "_mode",
        "_tool_chars",
        "_tools",
        "_top_usage",
        "done",
        "error",
        "finish_reason",
        "malformed_events",
        "payloads",
        "reasonings",
        "request_id",
        "status",
        "texts",
    )

    def __init__(self, *, line_max_bytes: int = 8 * 1024 * 1024) -> None:
        self._decoder = EventDecoder(line_max_bytes=line_max_bytes)
        self._limit = line_max_bytes
        self._mode = "unknown"
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._held = ""  # a high surrogate whose other half is in the next token
        self._has_text = False
        self._is_plain = False  # nothing is held back: a read may be looked at by itself
        self._tools: dict[int, dict[str, Any]] = {}
        self._tool_chars = 0
        self._top_usage: Any = None
        self._choice_usage: Any = None
        self.texts: list[str] = []
        self.reasonings: list[str] = []
        self.finish_reason: str | None = None
        self.error: dict[str, Any] | None = None
        self.status: int | None = None  # the HTTP status that an error in the stream names, if it does
        self.done = False
        self.malformed_events = 0
        self.payloads = 0  # events that carried data we could read; comments and noise do not count
        self.request_id: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing that follows counts: [DONE] or an error was read."""
        return self.done or self.error is not None

    @property
    def is_complete(self) -> bool:
        """Whether the model said that it had finished (13)."""
        return self.error is None and (self.done or self.finish_reason is not None)

    @property
    def usage(self) -> Any:
        """The vendor's own usage object: the last at the top level, else the last inside choice 0 (10)."""
        return self._top_usage or self._choice_usage

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls assembled so far, by index (11)."""
        return tuple(
            ToolCall(index, call["id"], call["name"], "".join(call["arguments"]))
            for index, call in sorted(self._tools.items())
        )

    def plain_text(self, chunk: bytes) -> str | None:
        """Return the text of a read that is one ordinary token and nothing else; None means: feed() and take().

        Servers send most of a reply like this, an event of one line for each token. The answer is what feed()
        and take() would give, for a third of the time.
        """
        if not self._is_plain:
            self._is_plain = (
                self._mode == "sse"
                and self.request_id is not None
                and not (self.is_over or self._held or self.texts or self.reasonings)
                and self._decoder.is_between_events
            )
            if not self._is_plain:
                return None
        end = len(chunk) - 2
        if chunk[:7] != b"data: {" or chunk.find(b"\n") != end or chunk[end + 1] != 10 or b"\r" in chunk:
            return None
        try:
            value = orjson.loads(chunk[6:end])
            (choice,) = value["choices"]
            delta = choice["delta"]
            text = delta["content"]
            if (
                type(text) is not str
                or not text
                or len(delta) != 1
                or choice["finish_reason"] is not None
                or choice["index"] != 0
                or "usage" in choice
                or "error" in value
                or value.get("usage")
                or "\0" in text
                or end > self._limit
            ):
                return None
        except (ValueError, KeyError, TypeError):
            return None
        self.payloads += 1
        self._has_text = True
        return text

    def feed(self, chunk: bytes) -> None:
        """Take in one read. Raises ReplyTooLong over the limits, MalformedReply for endless noise."""
        self._is_plain = False
        if self._mode != "sse":
            chunk = self._sniff(chunk)
            if self._mode != "sse":
                return
        if self.done or self.error is not None:
            return
        for event in self._decoder.feed(chunk):
            self._event(event)
            if self.done or self.error is not None:
                return
        if self._decoder.failure is not None:
            raise self._decoder.failure

    def finish(self) -> None:
        """Take in the end of the body. Raises what feed() raises."""
        if self._mode == "json":
            body = b"".join(self._body)
            self._body = []
            if body.strip() and not self.is_over:
                self._json(body, count=True)
            return
        if self._mode == "unknown" and self._body:
            self._mode = "sse"
            self.feed(b"".join(self._body))
        if not self.is_over:
            for event in self._decoder.finish():
                self._event(event)
                if self.is_over:
                    return
            if self._decoder.failure is not None:
                raise self._decoder.failure

    def take(self) -> Delta | None:
        """Return the text and reasoning since the last take, storable, or None when there is none."""
        texts = self.texts
        if texts:
            text = texts[0] if len(texts) == 1 else "".join(texts)
            texts.clear()
            if self._held:
                text, self._held = self._held + text, ""
            if "\ud800" <= text[-1] <= "\udbff":
                text, self._held = text[:-1], text[-1]
            text = storable(text)
        elif not self.reasonings:
            return None
        else:
            text = ""
        reasoning = ""
        if self.reasonings:
            reasoning = storable("".join(self.reasonings))
            self.reasonings.clear()
        return Delta(text, reasoning) if text or reasoning else None

    def take_last(self) -> Delta | None:
        """Return what take() returns at the end of the reply: nothing is held back any more."""
        if self._held:
            self.texts.insert(0, self._held)
            self._held = ""
            delta = self.take()
            if self._held:
                text = (delta.text if delta else "") + "\ufffd"
                self._held = ""
                return Delta(text, delta.reasoning if delta else "")
            return delta
        delta = self.take()
        if self._held:
            self._held = ""
            return Delta((delta.text if delta else "") + "\ufffd", delta.reasoning if delta else "")
        return delta

    def finished(self) -> Finished:
        """Return the last item of a complete reply."""
        return Finished(
            finish_reason=self.finish_reason,
            usage=read_usage(self.usage),
            request_id=storable(self.request_id[:200]) if self.request_id else None,
            malformed_events=self.malformed_events,
            tool_calls=self.tool_calls,
        )

    def _sniff(self, chunk: bytes) -> bytes:
        """Decide by the first byte that is not blank: a body that opens with `{` is JSON under any name (14)."""
        self._body.append(chunk)
        self._body_bytes += len(chunk)
        if self._mode == "unknown":
            start = b"".join(self._body)
            stripped = start.removeprefix(b"\xef\xbb\xbf").lstrip()
            if stripped[:1] == b"{":
                self._mode = "json"
                self._body = [start]
            elif stripped and not (len(start) < 3 and b"\xef\xbb\xbf".startswith(start)):
                self._mode = "sse"
                self._body = []
                return start
        if self._body_bytes > self._limit:
            raise errors.ReplyTooLong(code="body_too_long")
        return b""

    def _event(self, event: Event) -> None:
        data = event.data
        if data[:1] != b"{" and data.strip() == b"[DONE]":  # 5
            self.done = True
            return
        try:
            value = loads(data)
        except ValueError:
            if event.lines:  # 4
                for line in event.lines:
                    if line.strip() == b"[DONE]":
                        self.done = True
                    elif line.strip():
                        self._json(line, count=not event.is_tail)
                    if self.done or self.error is not None:
                        return
            elif not event.is_tail:
                self._malformed()
            return
        self._value(value, count=not event.is_tail)

    def _json(self, data: bytes, *, count: bool) -> None:
        try:
            value = loads(data)
        except ValueError:
            if count:
                self._malformed()
            return
        self._value(value, count=count)

    def _malformed(self) -> None:  # 12
        self.malformed_events += 1
        if self.malformed_events > _MAX_MALFORMED:
            raise errors.MalformedReply(code="endless_noise")

    def _value(self, value: Any, *, count: bool) -> None:
        if type(value) is not dict:
            if count:
                self._malformed()
            return
        self.payloads += 1
        choices = value.get("choices")
        if "error" in value or type(choices) is not list:
            self.error = error_of(value, has_choices=bool(choices))  # 6
            if self.error is not None:
                return
        if usage := value.get("usage"):
            self._top_usage = usage
        if self.request_id is None and type(found := value.get("id")) is str and found:
            self.request_id = found
        if type(choices) is not list:
            return
        for position, choice in enumerate(choices):  # 7
            if type(choice) is dict and choice.get("index", position) in (0, None):
                self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        if type(delta) is dict:
            content = delta.get("content")
            if content:
                self._text(content)
            if len(delta) > 1 or not content:
                self._rest(delta)
        elif delta is None and type(message := choice.get("message")) is dict:  # 9
            content = message.get("content")
            if content and not self._has_text:
                self._text(content)
                self._rest(message)
            elif not content and not self._tools:
                self._rest(message)
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _NOT_A_REASON:  # 10
            self.finish_reason = storable(str(reason)[:64])
        if usage := choice.get("usage"):
            self._choice_usage = usage

    def _text(self, content: Any) -> None:
        if type(content) is not str:
            content = _join_parts(content)
            if not content:
                return
        self.texts.append(content)
        self._has_text = True

    def _rest(self, delta: dict[str, Any]) -> None:
        """Take reasoning (8) and tool calls (11) out of a delta."""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning:
            if type(reasoning) is not str:
                reasoning = _join_parts(reasoning)
            if reasoning:
                self.reasonings.append(reasoning)
        calls = delta.get("tool_calls")
        if type(calls) is not list:
            return
        for position, call in enumerate(calls):
            if type(call) is not dict:
                continue
            index = call.get("index")
            index = index if type(index) is int else position
            kept = self._tools.setdefault(index, {"id": None, "name": None, "arguments": []})
            function = call.get("function")
            if not isinstance(function, dict):
                function = {}
            kept["id"] = kept["id"] or _text_or_none(call.get("id"))
            kept["name"] = kept["name"] or _text_or_none(function.get("name"))
            arguments = function.get("arguments")
            if type(arguments) is str and arguments:
                kept["arguments"].append(storable(arguments))
                self._tool_chars += len(arguments)
            if self._tool_chars > _MAX_TOOL_CHARS or len(self._tools) > 1000:
                raise errors.ReplyTooLong(code="tool_calls_too_long")


def _text_or_none(value: Any) -> str | None:
    return storable(value) if type(value) is str and value else None


def _join_parts(content: Any) -> str:
    """Return the text of a content that is a list of parts (some Mistral-like gateways)."""
    if type(content) is not list:
        return ""
    return "".join(
        part if isinstance(part, str) else part["text"]
        for part in content
        if isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))
    )


def error_of(value: Mapping[str, Any], *, has_choices: bool) -> dict[str, Any] | None:
    """Return {message, type, code} when this object is an error in any of the four shapes (6), else None."""
    error = value.get("error")
    if type(error) is dict and (error or not has_choices):
        return {name: error.get(name) for name in ("message", "type", "code")}
    if type(error) is str and (error or not has_choices):
        return {"message": error, "type": None, "code": None}
    if value.get("object") == "error":
        return {name: value.get(name) for name in ("message", "type", "code")}
    if has_choices:
        return None
    base = value.get("base_resp")
    if type(base) is dict and base.get("status_code") not in (0, None):
        return {"message": base.get("status_msg"), "type": None, "code": base.get("status_code")}
    code = value.get("code")
    if type(code) is int and code != 0 and "message" in value:
        return {"message": value.get("message"), "type": None, "code": code}
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31  # what a column holds; more is a vendor's mistake


def read_usage(raw: Any) -> Usage | None:
    """Return the vendor's usage as ours, or None when it holds no counts."""
    if type(raw) is not dict:
        return None
    counts = []
    for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        counts.append(next((raw[name] for name in names if _is_count(raw.get(name))), None))
    if counts == [None, None]:
        return None
    return Usage(input_tokens=counts[0] or 0, output_tokens=counts[1] or 0)
