"""What the frames of a DashScope (Bailian) application mean: a reducer without I/O (WIRE 3.2 to 3.4).

Bytes, lines, counting of noise and the handling of halves of characters are those of the OpenAI reducer; what an
event says is this vendor's own. Stricter than its SDK: an error is any event named `error`, any comment
`:HTTP_STATUS/n` (or line `status:n`) of 400 or more, and any `code` without `output`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from providers import errors
from providers.clients.openai_reducer import Reducer, error_of, read_usage
from providers.sse import Event, EventDecoder, loads
from providers.types import Finished, Usage, storable

_STATUS = re.compile(rb"(?::\s*HTTP_STATUS/|status:)\s*(\d{3})\s*")
_NOT_A_REASON = (None, "", "null")
_COUNT_MAX = (1 << 31) - 1
_SESSION_MAX_CHARS = 200
_DOCUMENTS_MAX = 50
_DOCUMENT_TEXT_MAX_CHARS = 2000
_WORD_MAX_CHARS = 500


class AppReducer(Reducer):
    """Turns the bytes of one reply into text, reasoning, references, usage, the session, and how it ended.

    is_cumulative: every frame repeats the text so far, and only what it adds is taken.
    """

    __slots__ = ("_announced", "_documents", "_has_output", "_is_cumulative", "_seen", "session_id")

    def __init__(self, *, is_cumulative: bool = False, line_max_bytes: int = 8 * 1024 * 1024) -> None:
        super().__init__(line_max_bytes=line_max_bytes)
        self._decoder = EventDecoder(line_max_bytes=line_max_bytes, keeps_notes=True)
        self._is_cumulative = is_cumulative
        self._seen: dict[Any, str] = {}  # the text so far of each source, when frames repeat it
        self._announced: set[tuple[int, str]] = set()
        self._documents: list[dict[str, Any]] = []
        self._has_output = False
        self.session_id: str | None = None

    @property
    def reference_card(self) -> dict[str, Any] | None:
        """The documents that the answer leans on, in our words, or None."""
        return {"documents": self._documents} if self._documents else None

    def plain_text(self, chunk: bytes) -> str | None:
        """Return None: there is no short way for this vendor's frames."""
        return None

    def finish(self) -> None:
        """Take in the end of the body. A whole JSON answer needs no word that it is over."""
        super().finish()
        if self._mode == "json" and self._has_output and self.error is None:
            self.done = True

    def finished(self) -> Finished:
        """Return the last item of a complete reply."""
        return Finished(
            finish_reason=self.finish_reason,
            usage=_read_usage(self.usage),
            request_id=storable(self.request_id[:200]) if self.request_id else None,
            malformed_events=self.malformed_events,
            vendor_session=self.session_id,
            reference_card=self.reference_card,
        )

    def _event(self, event: Event) -> None:
        status = next((int(found[1]) for note in event.notes if (found := _STATUS.fullmatch(note))), None)
        is_error = event.name == "error" or (status is not None and status >= 400)
        try:
            value = loads(event.data) if event.data else None
        except ValueError:
            if is_error:
                self._fail({"message": event.data.decode("utf-8", "replace")}, status)
            elif event.lines:
                for line in event.lines:
                    self._json(line, count=not event.is_tail)
                    if self.is_over:
                        return
            elif not event.is_tail:
                self._malformed()
            return
        if is_error:
            self._fail(value if type(value) is dict else {}, status)
        elif event.data:
            self._value(value, count=not event.is_tail)

    def _fail(self, value: Mapping[str, Any], status: int | None) -> None:
        self.payloads += 1
        self._name_request(value)
        self.error = {"message": value.get("message"), "type": None, "code": value.get("code")}
        self.status = status

    def _name_request(self, value: Mapping[str, Any]) -> None:
        if self.request_id is None and type(found := value.get("request_id")) is str and found:
            self.request_id = found

    def _value(self, value: Any, *, count: bool) -> None:
        output = value.get("output") if type(value) is dict else None
        if type(output) is not dict:
            if type(value) is dict and value.get("code"):
                self._fail(value, None)
            elif type(value) is dict and (error := error_of(value, has_choices=False)) is not None:
                self.payloads += 1
                self.error = error  # a gateway's, in the shape of OpenAI's
            elif count:
                self._malformed()
            return
        self.payloads += 1
        self._has_output = True
        self._name_request(value)
        if usage := value.get("usage"):
            self._top_usage = usage
        session = output.get("session_id")
        if type(session) is str and 0 < len(session) <= _SESSION_MAX_CHARS:
            self.session_id = storable(session)
        if thoughts := output.get("thoughts"):
            self._thoughts(thoughts)
        if documents := output.get("doc_references"):
            self._references(documents)
        text, source = output.get("text"), "text"
        if not text and type(message := output.get("workflow_message")) is dict:
            said = message.get("message")
            text = said.get("content") if type(said) is dict else None
            source = f"node {message.get('node_id')}"
        if type(text) is str and (fresh := self._fresh(source, text)):
            self._text(fresh)
        reason = output.get("finish_reason")
        if reason not in _NOT_A_REASON:
            self.finish_reason = storable(str(reason)[:64])

    def _fresh(self, source: Any, text: str) -> str:
        """Return what this text adds to what the source has said already.

        Raises: MalformedReply text_rewritten, when it takes back what a reader may have seen.
        """
        if not self._is_cumulative:
            return text
        before = self._seen.get(source, "")
        if text.startswith(before):
            self._seen[source] = text
            return text[len(before) :]
        if before.startswith(text):
            return ""
        raise errors.MalformedReply(code="text_rewritten", retryable=False)

    def _thoughts(self, thoughts: Any) -> None:
        """Take what the application thinks and the names of what it does; what it looked up is not reasoning."""
        if type(thoughts) is not list:
            return
        for position, thought in enumerate(thoughts):
            if type(thought) is not dict:
                continue
            name = thought.get("action_name") or thought.get("action")
            if type(name) is str and name and thought.get("action_type") != "reasoning":
                self._announce(position, name)
            text = thought.get("thought")
            if type(text) is str and (fresh := self._fresh(position, text)):
                self.reasonings.append(fresh)

    def _announce(self, position: int, name: str) -> None:
        if (position, name) not in self._announced and len(self._announced) < 1000:
            self._announced.add((position, name))
            self.reasonings.append(f"〔{name[:_WORD_MAX_CHARS]}〕\n")

    def _references(self, documents: Any) -> None:
        """Take the documents not taken yet: frames may repeat them."""
        if type(documents) is not list:
            return
        for raw in documents:
            if type(raw) is dict and len(self._documents) < _DOCUMENTS_MAX:
                document = _document(raw)
                if document not in self._documents:
                    self._documents.append(document)


def _document(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return one doc_reference in our words, bounded, with web addresses only."""
    images, pages = raw.get("images"), raw.get("page_number")
    return {
        "index": _word(raw.get("index_id")),
        "title": _word(raw.get("title")),
        "id": _word(raw.get("doc_id")),
        "name": _word(raw.get("doc_name")),
        "url": _web_address(raw.get("doc_url")),
        "text": _word(raw.get("text"), _DOCUMENT_TEXT_MAX_CHARS),
        "pages": [page for page in pages if type(page) is int][:100] if type(pages) is list else [],
        "images": [url for image in images[:20] if (url := _web_address(image))] if type(images) is list else [],
    }


def _word(value: Any, most: int = _WORD_MAX_CHARS) -> str:
    return storable(value[:most]) if type(value) is str else str(value) if type(value) is int else ""


def _web_address(value: Any) -> str:
    if type(value) is not str or len(value) > 4000 or not re.match(r"https?://", value, re.IGNORECASE):
        return ""
    return storable(value)


def _read_usage(raw: Any) -> Usage | None:
    """Return the tokens of all models that took part in the answer, None when none are counted."""
    models = raw.get("models") if type(raw) is dict else None
    if type(models) is not list:
        return read_usage(raw)
    counted = [usage for model in models if (usage := read_usage(model)) is not None]
    if not counted:
        return None
    return Usage(
        min(sum(usage.input_tokens for usage in counted), _COUNT_MAX),
        min(sum(usage.output_tokens for usage in counted), _COUNT_MAX),
    )
