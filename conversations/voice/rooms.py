"""Starting and stopping rooms: the calls of the platform, each made by whoever holds the claim.

A call that was begun is finished and written down, also when the caller hangs up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import time
from collections.abc import Callable
from functools import partial

from django.conf import settings

from conversations import db
from conversations.errors import ChatError
from conversations.voice import sessions
from conversations.voice.sessions import AlreadyDone, Busy, Caller, Claim, Step
from providers.errors import ProviderError, TimedOut
from providers.registry import policy_from_settings
from providers.rtc.client import SERVICE, Action, RtcAnswer, call

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
SWEEP_SECONDS = 1.0

_tasks: set[asyncio.Task[RtcAnswer]] = set()


async def start_room(
    caller: Caller, scene_key: str, *, room_id: str | None, version: str | None, request_id: str
) -> RtcAnswer:
    """Return the platform's answer to the start of a room, or what it would say when the room runs already.

    Two starts at once make one call; the second waits for what the first one learns.
    Raises: ChatError, also platform_timeout and platform_unavailable.
    """
    await db.unit(sessions.spend_call, caller)
    claim = partial(sessions.claim_start, caller, scene_key, room_id=room_id, version=version)
    return await _until_done("StartVoiceChat", claim, request_id)


async def stop_room(
    caller: Caller, scene_key: str, *, room_id: str | None, version: str | None, request_id: str
) -> RtcAnswer:
    """Return the platform's answer to the end of a room, or what it would say when none runs.

    A stop that failed is repeated by the sweeper.
    Raises: ChatError, also platform_timeout and platform_unavailable.
    """
    claim = partial(sessions.claim_stop, caller, scene_key, room_id=room_id, version=version)
    return await _until_done("StopVoiceChat", claim, request_id)


async def sweep_rooms() -> int:
    """Stop the rooms whose time is over; return how many were tried."""
    claims = await db.unit(sessions.claim_due)
    await asyncio.gather(*(_perform(claim) for claim in claims), return_exceptions=True)
    return len(claims)


async def sweep_rooms_for_ever() -> None:
    """Stop the rooms whose time is over, once a second, until cancelled; then wait for the calls under way."""
    try:
        while True:
            try:
                # Another round at once while there may be more than one round's worth.
                if await sweep_rooms():
                    continue
            except Exception as error:
                # Whatever it was, mostly the database being away: without a next round rooms would run for ever.
                log.warning("voice_sweep_failed", extra={"error": type(error).__name__})
            await asyncio.sleep(SWEEP_SECONDS)
    finally:
        own = {task for task in _tasks if task.get_loop() is asyncio.get_running_loop()}
        if own:
            await asyncio.wait(own, timeout=settings.VOICE_PLATFORM_SECONDS + 1)


async def _until_done(action: Action, claim: Callable[[], Step], request_id: str) -> RtcAnswer:
    give_up = time.monotonic() + 2 * settings.VOICE_PLATFORM_SECONDS + sessions.CLAIM_SPARE_SECONDS
    while True:
        step = await db.unit(claim)
        match step:
            case AlreadyDone():
                return _as_the_platform(action, step, request_id)
            case Busy():
                if time.monotonic() > give_up:
                    raise ChatError("platform_timeout")
                await asyncio.sleep(POLL_SECONDS)
            case Claim():
                answer = await _perform(step)
                if step.action == action:
                    return answer
                # An earlier task had to be ended first. When the platform refuses that, nothing can be started.
                if not answer.is_ok and not sessions.is_gone(answer):
                    return answer


async def _perform(claim: Claim) -> RtcAnswer:
    """Return the platform's answer, once it is written down."""
    # A context of its own: a request's would carry its database connection along.
    task = asyncio.create_task(_call_and_finish(claim), context=contextvars.Context())
    _tasks.add(task)
    task.add_done_callback(_let_go)
    return await asyncio.shield(task)


def _let_go(task: asyncio.Task[RtcAnswer]) -> None:
    """Forget a task; a failure of the platform was written down, anything else is a defect of ours."""
    _tasks.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, ChatError):
        log.error("voice_call_broken", exc_info=error)


async def _call_and_finish(claim: Claim) -> RtcAnswer:
    try:
        answer = await call(
            claim.account,
            claim.action,
            claim.body,
            policy=policy_from_settings(),
            seconds=settings.VOICE_PLATFORM_SECONDS,
        )
    except ProviderError as error:
        await db.unit(sessions.finish, claim, error)
        code = "platform_timeout" if isinstance(error, TimedOut) else "platform_unavailable"
        raise ChatError(code) from error
    answer = claim.without_secrets(answer)
    await db.unit(sessions.finish, claim, answer)
    return answer


def _as_the_platform(action: Action, done: AlreadyDone, request_id: str) -> RtcAnswer:
    """Return a success in the platform's words (WIRE 2.3), for a call that need not be made."""
    metadata = {
        "RequestId": request_id,
        "Action": action,
        "Version": done.version,
        "Service": SERVICE,
        "Region": done.region,
    }
    body = json.dumps({"Result": "ok", "ResponseMetadata": metadata}).encode()
    return RtcAnswer(200, body, request_id)
