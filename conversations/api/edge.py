"""The outermost ASGI layer: request ids, one place that reads bodies, the access log, and the last resort.

DRF takes a chunked JSON body for an empty one, and Django buffers without asking; here every body is read
once, up to the limit, and handed on whole with its length.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings

from conversations.api.errors import problem_response_parts
from conversations.errors import ChatError, NotSignedIn
from conversations.tenancy.resolve import claims_from_headers
from conversations.voice.callback import CALLBACK_PATH, CallbackError

log = logging.getLogger("chat.requests")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FILES_PATH = "/api/knowledge/documents"
FORM_BYTES = 64 * 1024
"""What a form may have beside its file."""
CALLBACK_BODY_MAX_BYTES = 4 * 1024 * 1024
"""The voice platform may send pictures beside the words, which are read over."""
ENVELOPED = {"/getScenes": "getScenes", "/proxy": "proxy"}
"""Paths whose callers read the voice platform's envelope, and what it calls them."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}\Z")


class Edge:
    """Wraps the whole application. Only HTTP passes through it changed."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            # Nobody speaks it yet; a server answers the handshake with 403.
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began = time.monotonic()
        request_id = _request_id(scope["headers"])
        status = 0

        def send_with_id(message: Message) -> Awaitable[None]:
            # No coroutine of its own: this stands in the path of every token.
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            return send(message)

        headers = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
        headers.append((b"x-request-id", request_id.encode()))
        try:
            body = await _body_in_time(receive, _limit(scope))
            headers = [pair for pair in headers if pair[0] not in {b"content-length", b"transfer-encoding"}]
            if body or scope["method"] not in {"GET", "HEAD"}:
                headers.append((b"content-length", str(len(body)).encode()))
            inner = {**scope, "headers": headers, "chat.request_id": request_id, "chat.body": body}
            await self._application(inner, _replay(body, receive), send_with_id)
        except _HungUp:
            status = 499
        except ChatError as error:
            status = error.status
            await send_problem({**scope, "headers": headers}, send_with_id, error)
        except Exception as error:
            log.exception(
                "request_failed", extra={"request_id": request_id, "path": scope["path"]}, exc_info=error
            )
            if status:
                raise
            status = 500
            await send_problem({**scope, "headers": headers}, send_with_id, ChatError("internal"))
        finally:
            log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.monotonic() - began, 4),
                },
            )


class _HungUp(Exception):
    """The client went away before its body was whole."""


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.match(text := value.decode("latin-1")):
            return text
    return uuid.uuid4().hex


def _limit(scope: Scope) -> int:
    """Return how many bytes a body may have. The admin and the documents take files, their settings bound them.

    Many bytes are read for those alone who hold a token of ours; whether it is good enough is the view's to say.
    """
    path: str = scope["path"]
    if path.startswith("/admin/"):
        return max(32 * 1024 * 1024, settings.KNOWLEDGE_FILE_MAX_BYTES + FORM_BYTES)
    if path.startswith(FILES_PATH):
        try:
            claims_from_headers(scope["headers"])
        except NotSignedIn:
            return settings.REQUEST_BODY_MAX_BYTES
        return settings.KNOWLEDGE_FILE_MAX_BYTES + FORM_BYTES
    return CALLBACK_BODY_MAX_BYTES if path.startswith(CALLBACK_PATH) else settings.REQUEST_BODY_MAX_BYTES


async def _body_in_time(receive: Receive, most: int) -> bytes:
    """Return the whole body.

    Raises: ChatError request_timeout, body_too_large, file_too_large.
    """
    try:
        async with asyncio.timeout(settings.REQUEST_READ_SECONDS):
            return await _read_body(receive, most)
    except TimeoutError as error:
        raise ChatError("request_timeout") from error


async def _read_body(receive: Receive, most: int) -> bytes:
    """Return the whole body.

    Raises: ChatError body_too_large (or file_too_large) as soon as that is known; the rest is not read.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUp
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise ChatError("body_too_large" if most == settings.REQUEST_BODY_MAX_BYTES else "file_too_large")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives the body once, then what really comes."""
    is_given = False

    async def first() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    def replay() -> Awaitable[Message]:
        nonlocal is_given
        if is_given:
            return receive()
        is_given = True
        return first()

    return replay


async def send_problem(scope: Scope, send: Send, error: ChatError, *more: tuple[bytes, bytes]) -> None:
    """Answer with the problem document of an error, and with more headers; to voice callers in their shapes."""
    status, headers, body = problem_response_parts(error, scope["headers"])
    if scope["path"].startswith(CALLBACK_PATH):
        code = "BadRequest" if status < 500 else "InternalError"
        refusal = CallbackError(code, status, error.text.detail("zh-hans"))
        body = json.dumps(refusal.document(), ensure_ascii=False, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    elif scope["path"] in ENVELOPED:
        # The vendor's front end breaks on an answer without ResponseMetadata (WIRE 2.4).
        problem = json.loads(body)
        told = {"Code": -1, "Message": f"Error: {problem['detail']}", "Reason": error.code}
        metadata = {"Action": ENVELOPED[scope["path"]], "RequestId": problem["requestId"], "Error": told}
        body = json.dumps({"ResponseMetadata": metadata}, ensure_ascii=False, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += more
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
