"""One bounded HTTP call to somebody's own backend, described by templates: what pages and tools of a site ask.

The door to the templates, the address guard and the encrypted secrets for rooms above this one. A call is
`{"method", "url", "headers", "query", "body"}`; `${path}` in their texts stands for a value, by a path grammar
and nothing else; a host is never put together from values.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
import orjson

from providers.clients.declarative.fill import (
    UNDEFINED,
    UrlTemplate,
    Values,
    as_text,
    compile_url,
    compile_value,
    fill,
    fill_url,
    header_text,
    parse_text,
    query_text,
    refs_of,
)
from providers.credentials import Secret
from providers.errors import ProviderError
from providers.http import shared_client
from providers.registry import policy_from_settings

__all__ = [
    "Answer",
    "Call",
    "CallFailed",
    "Secret",
    "call_backend",
    "check_text",
    "compile_call",
    "fill_text",
    "internal_headers",
    "member_header",
]

CALL_SECONDS = 3.0
ANSWER_MAX_BYTES = 64 * 1024
BODY_MAX_BYTES = 64 * 1024
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_FIELDS = {"method", "url", "headers", "query", "body"}
_OURS = {"host", "content-length", "transfer-encoding", "connection", "x-member", "accept-encoding"}


class CallFailed(Exception):
    """A call that brought nothing. The code says why, in one word for the log; never an address or a value."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Call:
    """A compiled call."""

    method: str
    url: UrlTemplate
    headers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    query: Mapping[str, Any] = field(default_factory=dict, repr=False)
    body: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a backend said: a JSON value, or a text."""

    status: int
    value: Any = field(repr=False)

    @property
    def text(self) -> str:
        """The answer as text; JSON in one line."""
        return as_text(self.value)


def compile_call(config: Any, *, names: frozenset[str]) -> Call:
    """Return the call that a configuration describes. `names` are those that `${…}` may begin with.

    Raises: ValueError, which names what is wrong.
    """
    if not isinstance(config, dict):
        raise ValueError("must be a JSON object")
    if unknown := sorted(set(config) - _FIELDS):
        raise ValueError(f"{unknown[0]}: unknown; known are {', '.join(sorted(_FIELDS))}")
    method = config.get("method", "GET")
    if method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}")
    if not isinstance(config.get("url"), str):
        raise ValueError("url: is missing")
    try:
        url = compile_url(config["url"])
        if url.base is not None:
            raise ValueError("must begin with https:// or http://")
    except ValueError as error:
        raise ValueError(f"url: {error}") from error
    parts: dict[str, Any] = {}
    for name in ("headers", "query"):
        pairs = config.get(name, {})
        if not isinstance(pairs, dict) or not all(isinstance(value, str) for value in pairs.values()):
            raise ValueError(f"{name}: must map names to texts")
        parts[name] = _compiled(name, pairs)
    for header in parts["headers"]:
        if (
            header.lower().startswith("x-internal-")
            or header.lower() in _OURS
            or not header.replace("-", "").isalnum()
            or not header.isascii()
        ):
            raise ValueError(f"headers: {header} is not for a template")
    if config.get("body") is not None and method == "GET":
        raise ValueError("body: a GET has none")
    parts["body"] = _compiled("body", config.get("body"))
    call = Call(method, url, **parts)
    for node in (url, call.headers, call.query, call.body):
        for ref in refs_of(node):
            if ref.name not in names:
                raise ValueError(f"${{{ref}}}: unknown; known are {', '.join(sorted(names))}")
    return call


def _compiled(name: str, value: Any) -> Any:
    try:
        return compile_value(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def check_text(text: str, *, names: frozenset[str]) -> None:
    """Return nothing when every `${…}` of a text begins with one of these names. Raises: ValueError."""
    for part in parse_text(text):
        if not isinstance(part, str) and part.name not in names:
            raise ValueError(f"${{{part}}}: unknown; known are {', '.join(sorted(names))}")


def fill_text(text: str, values: Mapping[str, Any]) -> str:
    """Return a text with its `${path}` replaced; what is not there is empty. Raises: ValueError."""
    return as_text(fill(compile_value(text), Values(values)))


async def call_backend(
    call: Call,
    values: Mapping[str, Any],
    *,
    secret: Secret,
    key_id: str,
    identity: Mapping[str, Any] | None = None,
    seconds: float = CALL_SECONDS,
    max_bytes: int = ANSWER_MAX_BYTES,
) -> Answer:
    """Return what the backend answers with a status of 2xx, within the seconds and the bytes.

    With a secret the request is signed as our internal callers sign (`internal_headers`), and the member's
    identity goes along signed (`member_header`). No redirects, public addresses only (PROVIDER_ALLOWED_ADDRESSES).
    Raises: CallFailed.
    """
    try:
        request = _request(
            call, Values({**values, "secret": secret}), secret=secret, key_id=key_id, identity=identity
        )
        async with asyncio.timeout(seconds):
            return await _exchange(request, max_bytes)
    except TimeoutError as error:
        raise CallFailed("timed_out") from error
    except ProviderError as error:  # the guard's and the templates' refusals
        raise CallFailed(error.code) from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise CallFailed("unreachable") from error


def _request(
    call: Call, values: Values, *, secret: Secret, key_id: str, identity: Mapping[str, Any] | None
) -> httpx.Request:
    url = fill_url(call.url, values)
    query = fill(call.query, values, is_optional=True)
    if query is not UNDEFINED and query:
        pairs = "&".join(
            f"{quote(name, safe='')}={quote(query_text(value), safe='')}" for name, value in query.items()
        )
        url += ("&" if "?" in url else "?") + pairs
    given = fill(call.headers, values, is_optional=True)
    headers = {} if given is UNDEFINED else {name: header_text(name, value) for name, value in given.items()}
    body = b""
    if call.body is not None:
        filled = fill(call.body, values)
        body = filled.encode() if isinstance(filled, str) else orjson.dumps(filled)
        if len(body) > BODY_MAX_BYTES:
            raise CallFailed("request_too_large")
        headers.setdefault("Content-Type", "application/json")
    headers.setdefault("Accept", "application/json, text/plain")
    if secret:
        headers |= internal_headers(call.method, url, body, secret=secret, key_id=key_id, now=time.time())
        if identity is not None:
            headers["X-Member"] = member_header(identity, secret=secret, now=time.time())
    return httpx.Request(
        call.method, url, headers={**headers, "Accept-Encoding": "identity"}, content=body or None
    )


async def _exchange(request: httpx.Request, max_bytes: int) -> Answer:
    response = await shared_client(policy_from_settings()).send(request, stream=True)
    try:
        if not 200 <= response.status_code < 300:
            raise CallFailed(f"status_{response.status_code}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise CallFailed("encoded")
        said = bytearray()
        async for part in response.aiter_raw():
            said += part
            if len(said) > max_bytes:
                raise CallFailed("answer_too_large")
    finally:
        await response.aclose()
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return Answer(response.status_code, json.loads(said.decode()))
        except (ValueError, RecursionError) as error:
            raise CallFailed("malformed_json") from error
    if kind and not kind.startswith("text/"):
        raise CallFailed("not_text")
    try:
        return Answer(response.status_code, said.decode())
    except UnicodeDecodeError as error:
        raise CallFailed("not_text") from error


def internal_headers(
    method: str, url: str, body: bytes, *, secret: Secret, key_id: str, now: float, nonce: str = ""
) -> dict[str, str]:
    """Return the headers by which a receiver knows that a request is ours, and whole.

    X-Internal-Signature is `v1=<hex HMAC-SHA256(secret, string)>`; the string is, each on a line, `v1`, the
    method, the path, the sorted query (RFC 3986), timestamp, nonce, key id, and hex SHA-256 of the body. Unix
    seconds; receivers allow 300 of drift and refuse a nonce they have seen.
    Source: WIRE 7, checked by tests/wire/internal_hmac_vectors.json.
    """
    parts = urlsplit(url)
    pairs = sorted(parse_qsl(parts.query, keep_blank_values=True))
    query = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)
    nonce = nonce or secrets.token_hex(16)
    moment = str(int(now))
    digest = hashlib.sha256(body).hexdigest()
    to_sign = "\n".join(("v1", method.upper(), parts.path or "/", query, moment, nonce, key_id, digest))
    signature = hmac.new(secret.reveal().encode(), to_sign.encode(), hashlib.sha256).hexdigest()
    return {
        "X-Internal-Key-Id": key_id,
        "X-Internal-Timestamp": moment,
        "X-Internal-Nonce": nonce,
        "X-Internal-Signature": f"v1={signature}",
    }


def member_header(identity: Mapping[str, Any], *, secret: Secret, now: float) -> str:
    """Return who the member is, for a backend to trust: `v1.<claims>.<hex HMAC-SHA256(secret, "v1.<claims>")>`.

    The claims are base64url without padding of JSON; `iat` and `exp` are Unix seconds, five minutes apart.
    """
    claims = orjson.dumps({**identity, "iat": int(now), "exp": int(now) + 300}, option=orjson.OPT_SORT_KEYS)
    said = "v1." + base64.urlsafe_b64encode(claims).decode().rstrip("=")
    return f"{said}.{hmac.new(secret.reveal().encode(), said.encode(), hashlib.sha256).hexdigest()}"
