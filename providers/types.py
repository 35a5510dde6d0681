"""What goes to a provider and what comes back: frozen values that know nothing of Django, HTTP or vendors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Outcome = Literal["complete", "truncated"]
ToolChoice = Literal["auto", "none", "required"]

# Vendors' words for "I stopped before I had finished" (WIRE 4.1). Everything else is an ordinary end.
_TRUNCATED_REASONS = frozenset(
    {
        "length",
        "max_tokens",
        "max_output_tokens",
        "model_length",
        "content_filter",
        "sensitive",
        "safety",
        "insufficient_system_resource",
        "network_error",
        "abort",
        "error",
    }
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asks for; arguments is the vendor's JSON text, not parsed."""

    index: int
    id: str | None
    name: str | None
    arguments: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may ask for: parameters is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of the prompt.

    tool_calls: what an assistant's message asked for. tool_call_id: which of those calls a tool's message answers.
    """

    role: Role
    content: str = field(repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def chars(self) -> int:
        """The size of the message in characters, what it asked of tools included."""
        return len(self.content) + sum(len(call.name or "") + len(call.arguments) for call in self.tool_calls)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model: the whole prompt, oldest message first.

    model is "" for the endpoint's own model. params are added to the vendor's request body as they are
    (temperature, max_tokens, …) over the endpoint's own. user_ref is an opaque word for abuse reports,
    never a name or an id a vendor could read. tools are what the model may ask for; clients that cannot say so
    leave them out.

    Only for vendors that keep the conversation themselves: vendor_session is theirs from the last Finished, None
    to begin one; biz_params are the facts an application of theirs asks for (who the member is).

    is_begun: the last message is the beginning of the answer, and the model is to go on with it; some vendors
    want to be told so.
    """

    messages: tuple[ChatMessage, ...]
    model: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    user_ref: str | None = None
    vendor_session: str | None = field(default=None, repr=False)
    biz_params: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_begun: bool = False
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None

    @property
    def prompt_chars(self) -> int:
        """The size of the prompt in characters, for the trace."""
        return sum(message.chars for message in self.messages)


@dataclass(frozen=True, slots=True)
class Delta:
    """Everything one network read brought, its tokens joined. Never empty; holds no NUL and no surrogate."""

    text: str = field(default="", repr=False)
    reasoning: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt, as the vendor counted them, or estimated by us when it did not."""

    input_tokens: int
    output_tokens: int
    is_estimated: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The model said that it had finished. Exactly one, the last item of a stream that did not fail.

    vendor_session goes into the next ChatRequest of this conversation. reference_card is what the answer leans on:
    `{"documents": [{"index", "title", "id", "name", "url", "text", "pages", "images"}]}`.
    """

    finish_reason: str | None
    usage: Usage | None
    request_id: str | None = None
    malformed_events: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    vendor_session: str | None = field(default=None, repr=False)
    reference_card: Mapping[str, Any] | None = field(default=None, repr=False)


StreamItem = Delta | Finished


def outcome_of(finish_reason: str | None) -> Outcome:
    """Return what the vendor's finish_reason means for the reader: the whole answer, or a cut one."""
    return "truncated" if finish_reason is not None and finish_reason.lower() in _TRUNCATED_REASONS else "complete"


def storable(text: str) -> str:
    """Return text as PostgreSQL and UTF-8 can hold it: NUL and lone surrogates become U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "�")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Joins a pair that stands as two surrogates, and replaces those that stand alone.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
