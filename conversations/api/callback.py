"""The voice platform's call for a reply (API.md 4, WIRE 2.6 to 2.8): an ASGI application ahead of Django's.

Key and body are checked first, while a status can still tell; then the platform hears who speaks, before anything
that may take time. What a reply is, and when it is the last one again, is told in `voice/turns.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

from django.db import Error as DatabaseError

from conversations import db
from conversations.api.edge import CALLBACK_BODY_MAX_BYTES, Receive, Scope, Send
from conversations.api.errors import log_unexpected
from conversations.api.parsers import parse_json
from conversations.api.stream import STREAM_HEADERS, Request
from conversations.context.prompt import estimate_tokens
from conversations.errors import ChatError
from conversations.generation.buffer import Ending
from conversations.generation.engine import engine
from conversations.generation.store import DatabaseAway
from conversations.voice.callback import CallbackError, SpokenTurn, bad_request, not_let_in, not_now, read_turn
from conversations.voice.chunks import Chunks, finish_reason_of, usage_of
from conversations.voice.door import Room, access_room, bearer_key
from conversations.voice.speech import Speech
from conversations.voice.turns import Superseded

log = logging.getLogger(__name__)

UNSPOKEN = {"failed", "interrupted"}
"""How replies end for which we apologise."""
SILENT = {"complete", "truncated"}
"""How replies end that should have words: without any, to a person they are a failure like the others."""


async def callback(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one call of the platform, refusals included."""
    received = time.monotonic()
    request = Request(scope, receive, send)
    try:
        if scope["method"] != "POST":
            raise CallbackError("BadRequest", 405, "只支持 POST 请求。")
        try:
            room = await db.unit(access_room, _room_id(request), _key(request), received)
        except (DatabaseError, *DatabaseAway) as error:
            log.warning("database_away", extra={"error": type(error).__name__, "path": scope["path"]})
            raise not_now() from error
        turn = read_turn(_body(request))
        if engine().is_draining:
            raise not_now()
        await Answer(request, room, turn).give()
    except CallbackError as error:
        await _send_json(request, error.document(), error.status)


def _room_id(request: Request) -> str:
    """Return the room that the query names; none or several name none."""
    named = request.query.get("room_id", [])
    return named[0] if len(named) == 1 else ""


def _key(request: Request) -> str:
    """Return the key of the one Authorization header."""
    given = [value for name, value in request.scope["headers"] if name.lower() == b"authorization"]
    return bearer_key(given[0].decode("latin-1")) if len(given) == 1 else ""


def _body(request: Request) -> Any:
    """Return the parsed body, whatever its content type says.

    Raises: CallbackError BadRequest.
    """
    try:
        return parse_json(request.scope["chat.body"], most_bytes=CALLBACK_BODY_MAX_BYTES)
    except ChatError as error:
        raise bad_request("请求内容不是有效的 JSON。") from error


class Answer:
    """The answer to one call that was let in: a stream of chunks, or one completion."""

    def __init__(self, request: Request, room: Room, turn: SpokenTurn) -> None:
        self._request = request
        self._room = room
        self._turn = turn
        self._chunks = Chunks(turn.model)
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._said: list[str] = []

    async def give(self) -> None:
        """Give it, to the end or until the caller has gone."""
        listening = asyncio.get_running_loop().create_task(self._listen())
        try:
            await (self._stream() if self._turn.is_stream else self._whole())
        finally:
            listening.cancel()

    async def _stream(self) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
        await self._request.send(start)
        await self._write(self._chunks.opening())
        speech = self._speech()
        try:
            ending = await speech.run()
        except Superseded:
            ending = Ending("stopped")
        except (ChatError, DatabaseError, *DatabaseAway) as error:
            # The status has been sent: what remains is to say so, in words.
            log.warning(
                "voice_turn_refused",
                extra={
                    "request_id": self._request.id,
                    "site": self._room.site_id,
                    "code": error.code if isinstance(error, ChatError) else "unavailable",
                },
            )
            ending = Ending("failed")
        except Exception as error:
            # Whatever it was: the person waits, and silence would be the worst answer.
            log_unexpected(error, self._request.scope["headers"], path=self._request.scope["path"])
            ending = Ending("failed")
        if ending is None:
            return
        if self._is_apology_due(ending) and self._room.apology:
            await self._write(self._chunks.text(self._room.apology))
        usage = self._usage(speech, ending) if self._turn.includes_usage else None
        last = self._chunks.closing(finish_reason_of(ending.finish_reason), usage)
        await self._write(last, is_last=True)

    async def _whole(self) -> None:
        speech = self._speech()
        try:
            ending = await speech.run()
        except Superseded:
            ending = Ending("stopped")
        except (ChatError, DatabaseError, *DatabaseAway) as error:
            if isinstance(error, ChatError) and error.status == 404:
                raise not_let_in() from error
            raise not_now() from error
        if ending is None:
            return
        if self._is_apology_due(ending):
            self._said.append(self._room.apology)
        reason = finish_reason_of(ending.finish_reason)
        usage = self._usage(speech, ending)
        await _send_json(self._request, self._chunks.whole("".join(self._said), reason, usage))

    def _speech(self) -> Speech:
        return Speech(
            self._room,
            self._turn,
            response_id=self._chunks.id,
            request_id=self._request.id,
            say=self._say,
            gone=self._gone,
        )

    async def _say(self, text: str) -> None:
        self._said.append(text)
        if self._turn.is_stream:
            await self._write(self._chunks.text(text))

    def _is_apology_due(self, ending: Ending) -> bool:
        return ending.status in UNSPOKEN or (ending.status in SILENT and not "".join(self._said).strip())

    async def _write(self, body: bytes, *, is_last: bool = False) -> None:
        await self._request.send({"type": "http.response.body", "body": body, "more_body": not is_last})

    def _usage(self, speech: Speech, ending: Ending) -> dict[str, int]:
        """Return the tokens as the model's server counted them, or as we estimate them."""
        counted = ending.usage or {}
        prompt = () if speech.started is None else speech.started.prompt
        asked = counted.get("inputTokens")
        said = counted.get("outputTokens")
        if asked is None:
            asked = sum(estimate_tokens(message.content) for message in prompt or self._turn.before)
        return usage_of(asked, estimate_tokens("".join(self._said)) if said is None else said)

    async def _listen(self) -> None:
        """Notice that the caller hangs up."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        with contextlib.suppress(asyncio.InvalidStateError):
            self._gone.set_result(None)


async def _send_json(request: Request, document: dict[str, Any], status: int = 200) -> None:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await request.send({"type": "http.response.start", "status": status, "headers": headers})
    await request.send({"type": "http.response.body", "body": body})
