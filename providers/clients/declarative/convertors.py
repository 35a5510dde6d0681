"""The functions that a configuration may name to turn one value into another. Nothing else can be named."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from providers import errors
from providers.clients.declarative.tool_convertors import (
    gemini_content,
    to_anthropic_messages,
    to_anthropic_tool_choice,
    to_anthropic_tools,
    to_gemini_tool_config,
    to_gemini_tools,
    to_ollama_messages,
)

Convertor = Callable[[Any, float], Any]
"""Takes the filled value and the time (seconds since 1970); raises Misconfigured when it cannot."""

_ZHIPU_SECONDS = 210.0


def zhipu_jwt(value: Any, now: float) -> str:
    """Return Zhipu's token for the key `id.secret`; words before the key (`Bearer`) stay.

    Shape:  HS256 JWT, header {alg, sign_type: SIGN, typ}, payload {api_key: id, exp: ms, timestamp: ms}
    Raises: Misconfigured, if the key has no dot.
    Source: WIRE 6.4; equal to the official SDK's token at the same moment.
    """
    before, space, key = str(value).rpartition(" ")
    key_id, dot, secret = key.partition(".")
    if not dot or not key_id or not secret:
        raise errors.Misconfigured(code="bad_api_key")
    timestamp = round(now * 1000)
    head = {"alg": "HS256", "sign_type": "SIGN", "typ": "JWT"}
    payload = {"api_key": key_id, "exp": timestamp + round(_ZHIPU_SECONDS * 1000), "timestamp": timestamp}
    signed = b".".join(_base64url(orjson.dumps(part)) for part in (head, payload))
    signature = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return f"{before}{space}{(signed + b'.' + _base64url(signature)).decode('ascii')}"


def only_system(value: Any, _now: float) -> str | None:
    """Return the text of the system messages, None when there is none."""
    return "\n\n".join(m["content"] for m in _messages(value) if m["role"] == "system") or None


def without_system(value: Any, _now: float) -> list[dict[str, Any]]:
    """Return the messages that are not the system's."""
    return [message for message in _messages(value) if message["role"] != "system"]


def to_gemini_contents(value: Any, _now: float) -> list[dict[str, Any]]:
    """Return the messages as Gemini's contents: the assistant is called model, the system is elsewhere."""
    names: dict[str, str] = {}
    return [gemini_content(message, names) for message in without_system(value, 0)]


def to_gemini_system(value: Any, now: float) -> dict[str, Any] | None:
    """Return Gemini's systemInstruction, None when there is no system message."""
    text = only_system(value, now)
    return {"parts": [{"text": text}], "role": "user"} if text else None


def to_ernie_messages(value: Any, _now: float) -> list[dict[str, Any]]:
    """Return the messages as ERNIE wants them: no system, user and assistant in turn, the user first and last."""
    turns: list[dict[str, Any]] = []
    for message in without_system(value, 0):
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n" + message["content"]
        elif turns or role == "user":
            turns.append({"role": role, "content": message["content"]})
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return turns


def last_user_text(value: Any, _now: float) -> str:
    """Return the last thing the user said."""
    return next((m["content"] for m in reversed(_messages(value)) if m["role"] == "user"), "")


def to_base64(value: Any, _now: float) -> str:
    """Return the last word in base64, for `Basic ${client_id}:${client_secret}`; words before it stay."""
    before, space, word = str(value).rpartition(" ")
    return f"{before}{space}{base64.b64encode(word.encode()).decode('ascii')}"


CONVERTORS: Mapping[str, Convertor] = {
    function.__name__: function
    for function in (
        zhipu_jwt,
        only_system,
        without_system,
        to_gemini_contents,
        to_gemini_system,
        to_ernie_messages,
        last_user_text,
        to_base64,
        to_anthropic_messages,
        to_anthropic_tools,
        to_anthropic_tool_choice,
        to_gemini_tools,
        to_gemini_tool_config,
        to_ollama_messages,
    )
}


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and "role" in m and "content" in m for m in value
    ):
        raise errors.Misconfigured(code="bad_convertor", vendor_code="messages")
    return value


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
