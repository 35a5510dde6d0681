"""Rooms as rows: who gets which, and who may talk to the platform about one right now.

Whoever wants to start or stop a task claims the session first, with an UPDATE that counts rows; a claim has a
number, and what its holder learns is written only while it is the latest. All functions are sync.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from django.conf import settings
from django.db.models import BooleanField, ExpressionWrapper, F, Q
from django.db.models.functions import Now
from django.utils import timezone

from conversations.db import tenant
from conversations.errors import ChatError, Invalid, NotFound
from conversations.history.actions import find_or_create_for_context
from conversations.models import Conversation, InternalCaller, Membership, VoiceScene, VoiceSession
from conversations.tenancy.access import access_conversation
from conversations.tenancy.throttle import spend
from conversations.voice import metrics, scenes
from conversations.voice.scene_check import SceneProblem, check_scene
from providers.errors import ConnectFailed, Misconfigured, ProviderError
from providers.fields import Secret
from providers.rtc.client import RtcAccount, RtcAnswer, read_answer
from providers.rtc.tokens import write_token

log = logging.getLogger(__name__)

Status = VoiceSession.Status
StoppedBy = VoiceSession.StoppedBy
CONTEXT_TYPE = "voice"
TOKEN_SECONDS = 24 * 3600
CLAIM_SPARE_SECONDS = 5.0
"""A claim outlives the longest call by so much; then its holder is taken for dead."""
DOUBT_SECONDS = 2.0
"""A task of which nobody knows whether it runs is stopped this soon."""
STOP_RETRY_SECONDS = (5.0, 600.0)
"""The first pause between two attempts to stop, doubled each time, and the longest."""
STOP_ATTEMPTS_MAX = 20
RUNNING = (Status.STARTING, Status.STARTED, Status.STOPPING)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a member, by a token of their own or through a server that may act for them."""

    membership: Membership
    internal: InternalCaller | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make one call about one session, with all that the call needs; good until it is overtaken."""

    number: int
    action: Literal["StartVoiceChat", "StopVoiceChat"]
    site_id: int
    session_id: int
    room_id: str
    account: RtcAccount
    body: Mapping[str, Any] = field(repr=False)  # holds the callback key
    max_minutes: int
    secrets: tuple[Secret, ...]

    def without_secrets(self, answer: RtcAnswer) -> RtcAnswer:
        """Return the answer as it came, but for keys of ours that it should quote: no key ever leaves."""
        body = answer.body
        for secret in self.secrets:
            if secret and (plain := secret.reveal().encode()) in body:
                body = body.replace(plain, b"***")
        return answer if body is answer.body else read_answer(answer.status, body)


@dataclass(frozen=True, slots=True)
class AlreadyDone:
    """The session is where the caller wants it."""

    version: str
    region: str


class Busy:
    """Somebody is talking to the platform about this session right now."""


Step = Claim | AlreadyDone | Busy


def spend_call(caller: Caller) -> None:
    """Count one call that opens or starts rooms; as many are allowed as messages may be sent.

    Raises: Limited.
    """
    spend(f"voice:{caller.membership.pk}", settings.THROTTLE_SENDS_PER_MINUTE)


# --- opening ---


def open_rooms(caller: Caller, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the site's scenes as the vendor's front end reads them, each with a fresh room, user and token.

    A scene that cannot be entered is left out; when none is left, it is said what the first one lacks. With
    `chatId`, or `contextType` and `contextId`, the rooms go on in that conversation of the member.
    Raises: ChatError.
    """
    member = caller.membership
    with tenant(member.site_id):
        conversation = _conversation_asked_for(member, body)
        rows = VoiceScene.objects.for_site(member.site_id).filter(is_active=True).select_related("site")
        opened, lacking = [], []
        for scene in rows.order_by("key"):
            if problems := [p for p in check_scene(scene) if p.code in _CLOSES_THE_DOOR]:
                lacking.append((scene, problems))
                log.warning(
                    "voice_scene_left_out",
                    extra={"site": scene.site_id, "scene": scene.key, "problems": [p.code for p in problems]},
                )
                continue
            opened.append(_open_room(caller, scene, conversation))
        if lacking and not opened:
            raise scene_incomplete(*lacking[0])
    return opened


# Without these no token can be written; what else a scene lacks is said when it is started.
_CLOSES_THE_DOOR = {"no_app_id", "no_app_key", "unreadable_key"}


def scene_incomplete(scene: VoiceScene, problems: list[SceneProblem]) -> ChatError:
    """Return the error that names what a scene lacks."""
    return ChatError(
        "scene_incomplete",
        errors={scene.key: [{"code": problem.code, "zh": problem.zh, "en": problem.en} for problem in problems]},
    )


def _conversation_asked_for(member: Membership, body: Mapping[str, Any]) -> Conversation | None:
    chat_id = body.get("chatId")
    if chat_id is not None:
        if not isinstance(chat_id, int | str):
            raise Invalid("invalid", errors={"chatId": ["must be an id"]})
        return access_conversation(member, chat_id)
    context_type, context_id = body.get("contextType"), body.get("contextId")
    if context_type is None and context_id is None:
        return None
    for name, value, most in (("contextType", context_type, 64), ("contextId", context_id, 200)):
        if not isinstance(value, str) or not 0 < len(value) <= most or "\0" in value:
            raise Invalid("invalid", errors={name: [f"must be a text of 1 to {most} characters"]})
    return find_or_create_for_context(member, context_type=str(context_type), context_id=str(context_id))[0]


def _open_room(caller: Caller, scene: VoiceScene, conversation: Conversation | None) -> dict[str, Any]:
    now = timezone.now()
    expires_at = now + timedelta(seconds=TOKEN_SECONDS)
    session = VoiceSession.across_sites.create(
        site_id=scene.site_id,
        scene=scene,
        membership=caller.membership,
        conversation=conversation,
        caller=caller.internal,
        room_id=f"{scene.site_id}-{uuid.uuid4().hex}",
        user_id=f"user-{uuid.uuid4().hex}",
        bot_id=scenes.bot_id_of(scene),
        created_at=now,
        token_expires_at=expires_at,
    )
    token = write_token(
        app_id=scene.rtc_app_id,
        app_key=scene.secret("app_key").reveal(),
        room_id=session.room_id,
        user_id=session.user_id,
        issued_at=int(now.timestamp()),
        expire_at=int(expires_at.timestamp()),
    )
    return {
        "scene": scenes.front_end_scene(scene, bot_id=session.bot_id),
        "rtc": {"AppId": scene.rtc_app_id, "RoomId": session.room_id, "UserId": session.user_id, "Token": token},
    }


# --- claiming ---


def claim_start(caller: Caller, scene_key: str, *, room_id: str | None = None, version: str | None = None) -> Step:
    """Return what it takes to start a room of this caller: the room named, else their latest of the scene.

    A Claim of StopVoiceChat means that an earlier task, of which nobody knows whether it runs, is to be ended
    first.
    Raises: ChatError scene_not_found, room_not_found, scene_incomplete.
    """
    member = caller.membership
    with tenant(member.site_id):
        scene = _scene(member, scene_key)
        session = _rooms_of(member, scene, room_id).first()
        if session is None:
            raise NotFound("room_not_found")
        if session.status == Status.STARTED:
            return AlreadyDone(version or scene.version, scene.region)
        if session.is_busy:
            return Busy()
        if session.status in RUNNING:
            return _claim_stop(session, by=session.stopped_by or StoppedBy.CALLER)
        if problems := [problem for problem in check_scene(scene) if problem.stops_start]:
            raise scene_incomplete(scene, problems)
        return _claim_start(session, scene, member, version)


def claim_stop(caller: Caller, scene_key: str, *, room_id: str | None = None, version: str | None = None) -> Step:
    """Return what it takes to stop a room of this caller: the room named, else the latest that runs in the scene.

    Raises: ChatError scene_not_found, room_not_found, scene_incomplete.
    """
    member = caller.membership
    with tenant(member.site_id):
        scene = _scene(member, scene_key, is_active=None)
        rows = _rooms_of(member, scene, room_id)
        session = rows.filter(status__in=RUNNING).first() or rows.first()
        if session is None:
            raise NotFound("room_not_found")
        if session.status not in RUNNING:
            return AlreadyDone(version or scene.version, scene.region)
        if session.is_busy:
            return Busy()
        return _claim_stop(session, by=StoppedBy.CALLER, version=version)


def claim_due(*, at_most: int = 20) -> list[Claim]:
    """Return claims to stop the rooms whose time is over, or whose member may not chat any more.

    Of two workers that ask, one gets each.
    """
    may_chat = Q(
        membership__status=Membership.Status.APPROVED, membership__user__is_active=True, site__is_active=True
    )
    is_due = Q(status__in=RUNNING, stop_due_at__lte=Now()) | (Q(status=Status.STARTED) & ~may_chat)
    due = VoiceSession.across_sites.filter(_is_free(), is_due).order_by("stop_due_at")
    claims = []
    for site_id, session_id in list(due.values_list("site_id", "pk")[:at_most]):
        try:
            with tenant(site_id):
                step = _claim_due(site_id, session_id)
        except Exception as error:
            # One row that cannot be handled must not keep the others running for ever.
            log.exception("voice_sweep_broken", exc_info=error, extra={"site": site_id, "session": session_id})
            continue
        if step is not None:
            claims.append(step)
    return claims


def _claim_due(site_id: int, session_id: int) -> Claim | None:
    session = _with_state(VoiceSession.objects.for_site(site_id)).filter(pk=session_id).first()
    if session is None or session.status not in RUNNING or session.is_busy:
        return None
    member = Membership.objects.for_site(site_id).select_related("site", "user").get(pk=session.membership_id)
    by = StoppedBy.LIMIT if member.is_approved else StoppedBy.STAFF
    try:
        step = _claim_stop(session, by=session.stopped_by or by)
    except ChatError:
        return None  # noted as a failed attempt
    return step if isinstance(step, Claim) else None


def request_stop(session: VoiceSession) -> bool:
    """Ask for the end of a room on behalf of staff; return whether it runs. The sweeper does it within seconds."""
    rows = VoiceSession.objects.for_site(session.site_id).filter(pk=session.pk, status__in=RUNNING)
    return bool(rows.update(stop_due_at=Now(), stopped_by=StoppedBy.STAFF, stop_attempts=0))


def _scene(member: Membership, key: str, *, is_active: bool | None = True) -> VoiceScene:
    rows = VoiceScene.objects.for_site(member.site_id).select_related("site").filter(key=key)
    scene: VoiceScene | None = (rows if is_active is None else rows.filter(is_active=is_active)).first()
    if scene is None:
        raise NotFound("scene_not_found")
    return scene


def _is_free() -> Q:
    return Q(busy_until__isnull=True) | Q(busy_until__lte=Now())


def _with_state(rows: Any) -> Any:
    """Return the sessions with their scene, and `is_busy` by the database's clock."""
    busy = ExpressionWrapper(Q(busy_until__isnull=False, busy_until__gt=Now()), output_field=BooleanField())
    return rows.select_related("scene__site", "conversation").annotate(is_busy=busy)


def _rooms_of(member: Membership, scene: VoiceScene, room_id: str | None) -> Any:
    rows = _with_state(VoiceSession.objects.visible_to(member)).filter(scene=scene)
    return (rows if room_id is None else rows.filter(room_id=room_id)).order_by("-id")


def _busy_until() -> Any:
    return Now() + timedelta(seconds=settings.VOICE_PLATFORM_SECONDS + CLAIM_SPARE_SECONDS)


def _take(session: VoiceSession, **changes: Any) -> bool:
    """Claim a session as it was read; False when somebody was faster."""
    rows = VoiceSession.objects.for_site(session.site_id).filter(_is_free(), pk=session.pk, claim=session.claim)
    # Should the holder die, the sweeper stops the task when the claim has run out.
    taken = rows.update(claim=F("claim") + 1, busy_until=_busy_until(), stop_due_at=_busy_until(), **changes)
    return bool(taken)


def _claim_start(session: VoiceSession, scene: VoiceScene, member: Membership, version: str | None) -> Step:
    conversation = session.conversation
    if conversation is None or conversation.deleted_at is not None:
        conversation, _ = find_or_create_for_context(member, context_type=CONTEXT_TYPE, context_id=session.room_id)
    session.task_id = f"task-{secrets.token_hex(16)}"
    is_taken = _take(
        session,
        status=Status.STARTING,
        task_id=session.task_id,
        conversation=conversation,
        stopped_at=None,
        stopped_by="",
        stop_attempts=0,
        last_error="",
    )
    if not is_taken:
        return Busy()
    return _claim(session, scene, "StartVoiceChat", version)


def _claim_stop(session: VoiceSession, *, by: str, version: str | None = None) -> Step:
    if not _take(session, status=Status.STOPPING, stopped_by=by):
        return Busy()
    _end_context(session)
    try:
        return _claim(session, session.scene, "StopVoiceChat", version)
    except ChatError:
        _note_failed_stop(session, session.claim + 1, session.stop_attempts, "scene_incomplete")
        raise


def _claim(
    session: VoiceSession,
    scene: VoiceScene,
    action: Literal["StartVoiceChat", "StopVoiceChat"],
    version: str | None,
) -> Claim:
    try:
        account = scenes.account_of(scene, version=version)
        is_start = action == "StartVoiceChat"
        body = scenes.start_body(scene, session) if is_start else scenes.task_body(scene, session)
        kept = tuple(scene.secret(name) for name in ("secret_key", "app_key", "callback_key", "access_key_id"))
    except Misconfigured as error:
        raise scene_incomplete(scene, [p for p in check_scene(scene) if p.code == "unreadable_key"]) from error
    return Claim(
        number=session.claim + 1,
        action=action,
        site_id=session.site_id,
        session_id=session.pk,
        room_id=session.room_id,
        account=account,
        body=body,
        max_minutes=scenes.max_minutes(scene),
        secrets=kept,
    )


def _end_context(session: VoiceSession) -> None:
    """Let later turns see nothing of the room's; a chat that was only continued by voice stays one context."""
    chat = session.conversation
    if chat is not None and (chat.context_type, chat.context_id) == (CONTEXT_TYPE, session.room_id):
        rows = Conversation.objects.for_site(session.site_id).filter(pk=chat.pk)
        rows.update(context_cleared_at=Now())


# --- writing down what the platform said ---


def finish(claim: Claim, outcome: RtcAnswer | ProviderError) -> None:
    """Write down how a call ended; nothing, when the claim was overtaken."""
    code = "" if isinstance(outcome, RtcAnswer) and outcome.is_ok else _code_of(outcome)
    metrics.PLATFORM_CALLS.labels(claim.action, _kind_of(outcome)).inc()
    extra = {"site": claim.site_id, "session": claim.session_id, "room": claim.room_id, "action": claim.action}
    if code:
        request_id = outcome.request_id if isinstance(outcome, RtcAnswer) else outcome.provider_request_id
        log.warning("voice_platform_failed", extra={**extra, "code": code, "platform_request_id": request_id})
    with tenant(claim.site_id):
        session = VoiceSession.objects.for_site(claim.site_id).filter(pk=claim.session_id).first()
        if session is None or session.claim != claim.number:
            log.warning("voice_claim_overtaken", extra=extra)
            return
        if claim.action == "StartVoiceChat":
            _finish_start(session, claim, outcome, code)
        elif not code or is_gone(outcome):
            if _write(session, claim.number, status=Status.STOPPED, stopped_at=Now(), stop_due_at=None):
                metrics.ROOMS_STOPPED.labels(session.stopped_by or StoppedBy.CALLER).inc()
                log.info("voice_room_stopped", extra={**extra, "by": session.stopped_by})
        else:
            _note_failed_stop(session, claim.number, session.stop_attempts, code)


def _finish_start(session: VoiceSession, claim: Claim, outcome: RtcAnswer | ProviderError, code: str) -> None:
    if not code:
        # Staff may have asked for its end meanwhile.
        due = Now() if session.stopped_by else Now() + timedelta(minutes=claim.max_minutes)
        if _write(session, claim.number, status=Status.STARTED, started_at=Now(), stop_due_at=due):
            metrics.ROOMS_STARTED.inc()
            log.info(
                "voice_room_started", extra={"site": claim.site_id, "session": session.pk, "room": claim.room_id}
            )
    elif _may_have_acted(outcome):
        due = Now() + timedelta(seconds=DOUBT_SECONDS)
        _write(session, claim.number, status=Status.STOPPING, stop_due_at=due, last_error=code)
    else:
        _write(session, claim.number, status=Status.FAILED, stop_due_at=None, last_error=code)


def _note_failed_stop(session: VoiceSession, number: int, attempts: int, code: str) -> None:
    first, longest = STOP_RETRY_SECONDS
    pause = min(longest, first * 2 ** min(attempts, 20))
    changes: dict[str, Any] = {"stop_due_at": Now() + timedelta(seconds=pause)}
    if attempts + 1 >= STOP_ATTEMPTS_MAX:
        changes = {"status": Status.FAILED, "stop_due_at": None}
    if _write(session, number, last_error=code, stop_attempts=attempts + 1, **changes) and "status" in changes:
        metrics.ROOMS_GIVEN_UP.inc()
        log.error(
            "voice_stop_given_up",
            extra={"site": session.site_id, "session": session.pk, "room": session.room_id, "code": code},
        )


def _write(session: VoiceSession, number: int, **changes: Any) -> bool:
    rows = VoiceSession.objects.for_site(session.site_id).filter(pk=session.pk, claim=number)
    return bool(rows.update(busy_until=None, **changes))


def _code_of(outcome: RtcAnswer | ProviderError) -> str:
    """Return what went wrong in a word that is safe to log and to show to staff."""
    code = outcome.error_code or "" if isinstance(outcome, RtcAnswer) else outcome.code
    return "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "_" for char in code)[:100]


def _kind_of(outcome: RtcAnswer | ProviderError) -> str:
    if isinstance(outcome, RtcAnswer):
        return "ok" if outcome.is_ok else "refused"
    return outcome.code


def _may_have_acted(outcome: RtcAnswer | ProviderError) -> bool:
    """Return whether the platform may have done what it was asked, although it did not say so."""
    if isinstance(outcome, RtcAnswer):
        return outcome.status >= 500
    return not isinstance(outcome, Misconfigured) and not (
        isinstance(outcome, ConnectFailed) and outcome.code != "no_answer"
    )


_GONE = ("notexist", "notfound", "notstart", "alreadystop", "hasstopped", "hasended")


def is_gone(outcome: RtcAnswer | ProviderError) -> bool:
    """Return whether a refused stop says that there is nothing to stop any more."""
    if not isinstance(outcome, RtcAnswer) or outcome.status >= 500:
        return False
    said = f"{outcome.error_code} {outcome.error_message}".lower()
    words = said.replace(" ", "").replace("_", "").replace("hasnotbeen", "not").replace("doesnotexist", "notexist")
    return any(word in words for word in _GONE) and "service" not in words and "action" not in words
