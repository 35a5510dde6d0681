"""getScenes and proxy: what the vendor's front end speaks, at the paths it speaks to (WIRE 2.3, 2.4).

ASGI applications ahead of Django, since they wait for the platform. Their answers are not ours to design:
- the platform's answer goes through verbatim, a failure of ours in its envelope;
- a member's front end gets HTTP 200 with either, since it looks for ResponseMetadata.Error alone; 401, 403 and 429
  keep their status, so that a client knows when to refresh its token or to wait;
- an internal caller gets the status that fits, and 401 `{"code":401,"message":"鉴权失败"}` when its signature does
  not.
"""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

from django.db import Error as DatabaseError

from conversations import db
from conversations.api.errors import log_unexpected
from conversations.api.stream import Request
from conversations.errors import BadRequest, ChatError, Limited, NotAllowed, NotSignedIn, Unavailable
from conversations.generation.engine import engine
from conversations.generation.store import DatabaseAway
from conversations.models import InternalCaller
from conversations.tenancy.internal import BadSignature, accept_internal_call, has_internal_headers
from conversations.voice import rooms, sessions
from conversations.voice.callers import caller_from_server, caller_from_token
from conversations.voice.scene_check import is_version
from conversations.voice.sessions import Caller
from providers.rtc.client import RtcAnswer

log = logging.getLogger(__name__)

REFUSED = json.dumps({"code": 401, "message": "鉴权失败"}, ensure_ascii=False, separators=(",", ":")).encode()
_ROOM_ID = re.compile(r"[A-Za-z0-9_@.\-]{1,128}\Z")


async def post_get_scenes(request: Request) -> None:
    """Answer with the site's scenes, and a fresh room, user and token in each."""
    await _answer(request, "getScenes")


async def post_proxy(request: Request) -> None:
    """Start or stop a room, and answer as the platform did."""
    await _answer(request, "proxy")


async def _answer(request: Request, call: str) -> None:
    internal: InternalCaller | None = None
    try:
        if _is_of_a_server(request):
            internal = await db.unit(_signed_by, request)
        status, body = await _act(request, call, internal)
    except BadSignature:
        status, body = 401, REFUSED
    except ChatError as error:
        status, body = _failure(request, call, error, is_server=internal is not None)
    except (DatabaseError, *DatabaseAway) as error:
        log.warning("database_away", extra={"error": type(error).__name__, "path": request.scope["path"]})
        status, body = _failure(request, call, Unavailable(), is_server=internal is not None)
    except Exception as error:
        # This envelope is the only thing the callers understand, whatever went wrong.
        log_unexpected(error, request.scope["headers"], path=request.scope["path"])
        status, body = _failure(request, call, ChatError("internal"), is_server=internal is not None)
    await _send(request, status, body)


def _is_of_a_server(request: Request) -> bool:
    """Return whether the call has to be signed: it says so, or brings no token of a member."""
    return has_internal_headers(request.scope["headers"]) or request.header(b"authorization") is None


def _signed_by(request: Request) -> InternalCaller:
    scope = request.scope
    return accept_internal_call(
        method=scope["method"],
        path=scope["path"],
        query_string=scope.get("query_string", b""),
        headers=scope["headers"],
        body=scope["chat.body"],
        now=time.time(),
    )


async def _act(request: Request, call: str, internal: InternalCaller | None) -> tuple[int, bytes]:
    if internal is None:
        # Who asks comes before what is wrong with the rest.
        caller: Caller = await db.unit(caller_from_token, request.scope["headers"])
        body = request.json()
    else:
        body = request.json()
        caller = await db.unit(caller_from_server, internal, body)
    action = (request.query.get("Action") or [""])[-1]
    if call == "getScenes":
        if action not in ("", "getScenes"):
            raise BadRequest("unknown_action")
        await db.unit(sessions.spend_call, caller)
        scenes = await db.unit(sessions.open_rooms, caller, body)
        return 200, _json({"ResponseMetadata": {"Action": "getScenes"}, "Result": {"scenes": scenes}})
    answer = await _proxy(request, caller, action, body)
    if internal is None or answer.is_ok:
        return 200, answer.body
    return (429 if answer.status == 429 else 502), answer.body


async def _proxy(request: Request, caller: Caller, action: str, body: dict[str, Any]) -> RtcAnswer:
    if action not in ("StartVoiceChat", "StopVoiceChat"):
        raise BadRequest("unknown_action")
    version = (request.query.get("Version") or [""])[-1] or None
    if version is not None and not is_version(version):
        raise BadRequest("bad_request")
    scene_id, room_id = body.get("SceneID"), body.get("RoomID")
    if not isinstance(scene_id, str) or not scene_id or "\0" in scene_id:
        raise BadRequest("scene_id_missing")
    if room_id is not None and not (isinstance(room_id, str) and _ROOM_ID.match(room_id)):
        raise ChatError("room_not_found")
    # The sweeper that ends what nobody stops lives with the engine: no room without it.
    await engine().started()
    do = rooms.start_room if action == "StartVoiceChat" else rooms.stop_room
    return await do(caller, scene_id, room_id=room_id, version=version, request_id=request.id)


def _failure(request: Request, call: str, error: ChatError, *, is_server: bool) -> tuple[int, bytes]:
    """Return status and envelope of a failure of ours."""
    message = error.text.detail(request.language)
    if error.code == "scene_incomplete":
        lacks = [
            problem["en" if request.language == "en" else "zh"]
            for problems in (error.errors or {}).values()
            for problem in problems
        ]
        message = f"{message} {'; '.join(lacks)}"
    told = {"Code": -1, "Message": f"Error: {message}", "Reason": error.code}
    body = _json({"ResponseMetadata": {"Action": call, "RequestId": request.id, "Error": told}})
    keeps_status = is_server or isinstance(error, NotSignedIn | NotAllowed | Limited)
    return (error.status if keeps_status else 200), body


async def _send(request: Request, status: int, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await request.send({"type": "http.response.start", "status": status, "headers": headers})
    await request.send({"type": "http.response.body", "body": body})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
