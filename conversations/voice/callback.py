"""What the platform asks for: its request, read and checked (WIRE 2.6), and the shape in which it is refused.

Unknown fields are welcome, since the platform and its scenes add their own; what we read is bounded here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conversations.models.conversations import CONTENT_MAX_CHARS
from providers.types import ChatMessage, Role, storable

CALLBACK_PATH = "/api/chat_callback"
WELCOME = "欢迎语"
"""What the platform sends as the member's words when a room opens; it speaks its welcome message itself."""
MODEL_MAX_CHARS = 200
ROUND_MAX_CHARS = 128
MESSAGES_MAX = 200
MAX_TOKENS = 32_768
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class CallbackError(Exception):
    """A refusal in the platform's own shape: `{"Error": {"Code", "Message"}}`."""

    def __init__(self, code: str, status: int, message: str) -> None:
        self.code, self.status, self.message = code, status, message
        super().__init__(code)

    def document(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"Error": {"Code": self.code, "Message": self.message}}


def bad_request(message: str) -> CallbackError:
    """Return the refusal of a request that cannot be understood."""
    return CallbackError("BadRequest", 400, message)


def not_let_in() -> CallbackError:
    """Return the refusal for a wrong key, an unknown room and another site's room: alike, byte for byte."""
    return CallbackError("AuthenticationError", 401, "房间不存在，或密钥不正确。")


def not_now() -> CallbackError:
    """Return the refusal while this worker ends, or its database is away."""
    return CallbackError("InternalError", 503, "服务暂时不可用，请稍后再试。")


@dataclass(frozen=True, slots=True)
class SpokenTurn:
    """What a person just said, and what the platform says went before. `params` go to the model."""

    text: str = field(repr=False)
    before: tuple[ChatMessage, ...] = field(default=(), repr=False)
    round_id: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    is_stream: bool = True
    includes_usage: bool = False

    @property
    def before_hash(self) -> str:
        """The mark of what went before: the same for one turn that arrives several times."""
        parts = [(message.role, message.content) for message in self.before]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_turn(body: Any) -> SpokenTurn:
    """Return what a parsed body asks for.

    Raises: CallbackError BadRequest.
    """
    if not isinstance(body, dict):
        raise bad_request("请求内容须为 JSON 对象。")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise bad_request("messages 不能为空")
    if len(messages) > MESSAGES_MAX:
        raise bad_request(f"messages 不能超过 {MESSAGES_MAX} 条")
    said = _without_welcome(messages)
    if not said:
        raise bad_request("messages 不能为空")
    if said[-1].role != "user":
        raise bad_request("messages 的最后一条须为 user")
    text = said[-1].content.strip()
    if not text:
        raise bad_request("最后一条 messages 的内容不能为空")
    if len(text) > CONTENT_MAX_CHARS:
        raise bad_request(f"最后一条 messages 超过 {CONTENT_MAX_CHARS} 个字符")
    custom = _custom(body)
    stream_options = body.get("stream_options")
    return SpokenTurn(
        text=text,
        before=tuple(said[:-1]),
        round_id=_round_id(body) or _round_id(custom),
        params=_params(body),
        model=storable(_text(body.get("model")))[:MODEL_MAX_CHARS],
        is_stream=body.get("stream") is not False,
        includes_usage=isinstance(stream_options, dict) and stream_options.get("include_usage") is True,
    )


def _without_welcome(messages: list[Any]) -> list[ChatMessage]:
    """Return what was said, in order; roles that are none of ours, and messages without words, are left out.

    An empty last message of the person stays: it is refused, not skipped.
    """
    said: list[ChatMessage] = []
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            raise bad_request("messages 的每一项须为对象")
        role = _ROLES.get(_text(message.get("role")).lower())
        content = text_of(message.get("content"))
        if role is None or (role == "user" and content.strip() == WELCOME):
            continue
        if content.strip() or position == len(messages) - 1:
            said.append(ChatMessage(role, content))
    return said


def text_of(content: Any) -> str:
    """Return the words of a content: a string, or parts, of which the text ones are joined."""
    if isinstance(content, str):
        return storable(content)
    if not isinstance(content, list):
        return ""
    return storable(
        "".join(_text(part.get("text")) if isinstance(part, dict) else _text(part) for part in content)
    )


def _params(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the request's settings goes to the model, brought within bounds; nonsense is left out."""
    params: dict[str, Any] = {}
    limit = body.get("max_tokens", body.get("maxTokens"))
    if _is_number(limit) and limit >= 1:
        params["max_tokens"] = min(int(limit), MAX_TOKENS)
    if _is_number(body.get("temperature")):
        params["temperature"] = min(max(body["temperature"], 0), 2)
    if _is_number(body.get("top_p")) and body["top_p"] > 0:
        params["top_p"] = min(body["top_p"], 1)
    return params


def _custom(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a scene adds in `custom`: an object, or a text that holds one; otherwise nothing."""
    custom = body.get("custom", body.get("Custom"))
    if isinstance(custom, str):
        try:
            custom = json.loads(custom)
        except (ValueError, RecursionError):
            return {}
    return custom if isinstance(custom, dict) else {}


def _round_id(body: Mapping[str, Any]) -> str:
    """Return what numbers the turn, under whatever spelling: a field whose name begins with `round`."""
    for name, value in body.items():
        if name.lower().startswith("round") and isinstance(value, str | int) and not isinstance(value, bool):
            return storable(str(value).strip())[:ROUND_MAX_CHARS]
    return ""


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
