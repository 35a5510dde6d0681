"""One spoken turn: a question and its reply, however often the platform asks for it.

With Prefill the platform calls early and again, with more of the sentence each time, and drops the earlier calls;
a call may also simply be repeated. Whether a call is a new turn, the last one again, or the last one grown is
decided here, under the lock of the conversation, so that no worker doubles a row.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Literal

from django.db import Error as DatabaseError
from django.db import connection

from conversations import db
from conversations.db import tenant
from conversations.errors import Conflict, NotFound, Unavailable
from conversations.generation.actions import (
    Send,
    Started,
    insert_answer,
    insert_exchange,
    refuse_while_running,
)
from conversations.generation.engine import engine
from conversations.generation.store import DatabaseAway
from conversations.history.actions import shorten_title
from conversations.models import Message
from conversations.models.conversations import PREVIEW_CHARS
from conversations.tenancy.access import OpenChat
from conversations.tenancy.throttle import spend_send
from conversations.voice import metrics
from conversations.voice.callback import SpokenTurn
from conversations.voice.door import OVER, Room, ensure_conversation
from conversations.voice.weave import weave, words

log = logging.getLogger(__name__)

SAME_SECONDS = 10.0
"""Without round ids: a call that comes this long after the last one, or its reply, may still be the same turn."""
ANSWERED_SECONDS = 3.0
"""The same after a turn that was answered whole, when the platform sends no history that could tell them apart."""
REVISED_LIKENESS = 0.5
LIKENESS_CHARS = 200
BEGIN_TRIES = 30
BEGIN_SECONDS = 6.0
"""The platform waits for ten seconds: a database that is away for longer is apologised for."""
HANG_UP_TRIES = 20
RETRY_SECONDS = 0.3

Kind = Literal["new", "again", "grown"]
_WHOLE = ("complete", "truncated")


class Superseded(Conflict):
    """A later call has taken the turn over: there is nothing to say to this one."""


@dataclass(frozen=True, slots=True)
class LastTurn:
    """The latest turn of a room, as a call that may belong to it finds it.

    Units: seconds from its own latest call, and from the end of its reply (0 while that runs), to this call.
    """

    question_id: int
    reply_id: int
    text: str
    title_is_its: bool
    status: str
    is_heard: bool
    round_id: str
    before_hash: str
    age_seconds: float
    ended_seconds: float


def kind_of(turn: SpokenTurn, last: LastTurn | None, *, has_before: bool) -> Kind:
    """Return what a call is to the last turn: `new`, the same `again`, or the same `grown` (or revised).

    A round id decides when there is one on both sides. Otherwise the platform's own history must be the same as
    it was, and little time have passed: then the same words are the turn again, words that begin with the earlier
    ones are the turn grown, and so are similar words while nothing of a reply was delivered.
    """
    if last is None:
        return "new"
    is_same_text = (words(turn.text) == words(last.text) and bool(words(turn.text))) or turn.text == last.text
    if turn.round_id and last.round_id:
        if turn.round_id != last.round_id:
            return "new"
        return "again" if is_same_text else "grown"
    is_answered = last.status in _WHOLE
    quiet_seconds = min(last.age_seconds, last.ended_seconds)
    if turn.before_hash != last.before_hash or quiet_seconds > SAME_SECONDS:
        return "new"
    if is_answered and not has_before and quiet_seconds > ANSWERED_SECONDS:
        return "new"
    if is_same_text:
        return "again"
    said, now = words(last.text), words(turn.text)
    if said and now.startswith(said):
        return "grown"
    is_like = _likeness(said, now) >= REVISED_LIKENESS
    return "grown" if is_like and not last.is_heard and not is_answered else "new"


def _likeness(said: str, now: str) -> float:
    """Return how alike two hearings of one sentence are, 0 to 1: the later one as far as the earlier one goes."""
    said = said[:LIKENESS_CHARS]
    return SequenceMatcher(None, said, now[: len(said)], autojunk=False).ratio() if said else 0.0


async def begin_turn(
    room: Room, turn: SpokenTurn, *, response_id: str, request_id: str, is_gone: Callable[[], bool]
) -> Started:
    """Return the reply to this turn, begun now or found; one still under way to another turn is ended first.

    Raises: Superseded; ChatError; NotFound when the room has been closed meanwhile.
    """
    began = time.monotonic()
    for _ in range(BEGIN_TRIES):
        try:
            return await engine().accept(
                start_turn, room, turn, response_id=response_id, is_gone=is_gone, request_id=request_id
            )
        except Superseded:
            raise
        except (DatabaseError, *DatabaseAway):
            # Should the turn have been stored all the same, it is found now.
            if time.monotonic() - began > BEGIN_SECONDS:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        except Conflict as busy:
            running = busy.extra.get("messageId")
            if running is None:
                await asyncio.sleep(0.02)
                continue
            with suppress(Conflict, NotFound, DatabaseError, *DatabaseAway):
                await engine().stop_reply(running)
    raise Unavailable(retry_after_seconds=2)


def start_turn(
    room: Room,
    turn: SpokenTurn,
    *,
    response_id: str,
    is_gone: Callable[[], bool],
    worker_id: int,
    lease_seconds: float,
) -> Started:
    """Store what this call adds, in one transaction: a turn, a longer question, or nothing.

    A caller that has gone before its turn was begun adds nothing: with Prefill it was half a sentence.
    Raises: Superseded; Conflict `generating` with the id of the reply to be ended first; Limited; OwnerGone.
    """
    with tenant(room.site_id):
        chat = _open(room)
        if is_gone():
            raise Superseded
        last = _last_turn(room, chat)
        kind = kind_of(turn, last, has_before=any(message.role != "system" for message in turn.before))
        if kind == "again" and last is not None and last.status in {"streaming", *_WHOLE}:
            started = _found(chat, last)
        elif last is not None and last.age_seconds < 0:
            raise Superseded
        else:
            refuse_while_running(chat, worker_id=worker_id, lease_seconds=lease_seconds)
            if kind == "new" or last is None:
                kind = "new"
                spend_send(chat.membership_id)
                started = insert_exchange(
                    chat, Send(chat.chat_id, turn.text), worker_id=worker_id, channel="voice"
                )
            else:
                started = _replace(chat, last, turn, worker_id=worker_id)
        _remember(room, turn, started, response_id)
    metrics.TURNS.labels(kind).inc()
    log.info(
        "voice_turn",
        extra={"reply": started.reply_id, "site": room.site_id, "chat": started.chat_id, "kind": kind},
    )
    prompt = weave(started.prompt, turn.before, apology=room.apology) if started.is_new else ()
    return replace(started, prompt=prompt, params=turn.params, follows_caller=turn.is_stream)


_LOCK = """
SELECT chat.id, chat.title, chat.context_cleared_at, site.settings::text
  FROM conversations_voice_session session
  JOIN conversations_conversation chat
    ON chat.site_id = session.site_id AND chat.id = session.conversation_id AND chat.deleted_at IS NULL
  JOIN conversations_membership member ON member.site_id = chat.site_id AND member.id = chat.membership_id
  JOIN conversations_site site ON site.id = chat.site_id
 WHERE session.site_id = %s AND session.id = %s AND session.status <> ALL(%s) AND member.status = 'approved'
   FOR UPDATE OF chat
"""

# A statement of its own, after the lock: what others have done before it must be seen.
_LATEST = """
SELECT turn.question_id, turn.reply_id, question.content, reply.status, reply.content <> '',
       turn.round_id, turn.before_hash,
       extract(epoch FROM %(arrived)s - turn.arrived_at),
       coalesce(extract(epoch FROM %(arrived)s - reply.finished_at), 0)
  FROM conversations_voice_turn turn
  JOIN conversations_message question ON question.site_id = turn.site_id AND question.id = turn.question_id
  JOIN conversations_message reply ON reply.site_id = turn.site_id AND reply.id = turn.reply_id
 WHERE turn.site_id = %(site)s AND turn.session_id = %(session)s AND turn.task_id = %(task)s
   AND question.conversation_id = %(chat)s
   AND NOT EXISTS (SELECT 1 FROM conversations_message later
                    WHERE later.site_id = turn.site_id AND later.conversation_id = %(chat)s
                      AND later.id > question.id AND later.id <> reply.id
                      AND later.role IN ('user', 'assistant'))
"""


def _open(room: Room) -> OpenChat:
    """Return the conversation of the room, locked; its member was let in a moment ago, and is again.

    Raises: NotFound, when the room or its member is not what it was.
    """
    values: list[Any] = [room.site_id, room.session_id, list(OVER)]
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, values)
        row = cursor.fetchone()
        if row is None:
            ensure_conversation(room)
            cursor.execute(_LOCK, values)
            row = cursor.fetchone()
    if row is None:
        raise NotFound
    return OpenChat(row[0], room.site_id, room.membership_id, row[1], row[2], json.loads(row[3]))


def _last_turn(room: Room, chat: OpenChat) -> LastTurn | None:
    """Return the latest turn of this room's task, unless the conversation has gone on since."""
    values: dict[str, Any] = {
        "arrived": room.arrived_at,
        "site": room.site_id,
        "session": room.session_id,
        "task": room.task_id,
        "chat": chat.chat_id,
    }
    with connection.cursor() as cursor:
        cursor.execute(_LATEST, values)
        row = cursor.fetchone()
    if row is None:
        return None
    question_id, reply_id, text, status, is_heard, round_id, before_hash, age, ended = row
    return LastTurn(
        question_id=question_id,
        reply_id=reply_id,
        text=text,
        title_is_its=chat.title == shorten_title(text),
        status=status,
        is_heard=is_heard,
        round_id=round_id,
        before_hash=before_hash,
        age_seconds=float(age),
        ended_seconds=float(ended),
    )


def _found(chat: OpenChat, last: LastTurn) -> Started:
    """Return the reply that is there."""
    reply: Message = Message.objects.for_site(chat.site_id).get(pk=last.reply_id)
    return Started(
        chat_id=chat.chat_id,
        site_id=chat.site_id,
        user_message_id=last.question_id,
        reply_id=reply.pk,
        created_at=reply.created_at,
        is_new=False,
        channel="voice",
    )


def _replace(chat: OpenChat, last: LastTurn, turn: SpokenTurn, *, worker_id: int) -> Started:
    """Put the grown question in the place of the earlier one, and a new reply in that of the dropped one.

    What was said to the platform for half a sentence was said to nobody; the ledger keeps what it cost. A vendor
    that keeps the conversation itself has heard the half sentence: it begins another session.
    """
    site, chat_id = chat.site_id, chat.chat_id
    title = shorten_title(turn.text) if last.title_is_its else chat.title
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE conversations_message SET content = %s WHERE site_id = %s AND id = %s",
            [turn.text, site, last.question_id],
        )
        cursor.execute(
            "UPDATE conversations_conversation"
            "   SET last_message = %s, title = %s, message_count = message_count - 1"
            " WHERE site_id = %s AND id = %s",
            [turn.text[:PREVIEW_CHARS], title, site, chat_id],
        )
        cursor.execute(
            "DELETE FROM conversations_vendor_session WHERE site_id = %s AND conversation_id = %s", [site, chat_id]
        )
        cursor.execute(
            "SELECT coalesce(max(attempt), 0) FROM conversations_generation"
            " WHERE site_id = %s AND message_id = %s",
            [site, last.reply_id],
        )
        (attempts,) = cursor.fetchone()
        started = insert_answer(chat, last.question_id, worker_id=worker_id, channel="voice", attempt=attempts + 1)
        cursor.execute(
            "UPDATE conversations_generation SET message_id = %s WHERE site_id = %s AND message_id = %s",
            [started.reply_id, site, last.reply_id],
        )
        cursor.execute(
            "DELETE FROM conversations_message"
            " WHERE site_id = %s AND conversation_id = %s AND (id = %s OR (role = 'tool' AND reply_to_id = %s))",
            [site, chat_id, last.reply_id, last.reply_id],
        )
        cursor.execute(
            "UPDATE conversations_message SET version = 1 WHERE site_id = %s AND id = %s", [site, started.reply_id]
        )
    return started


def _remember(room: Room, turn: SpokenTurn, started: Started, response_id: str) -> None:
    """Note this call as the one that carries the room's latest turn, unless a later one does."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO conversations_voice_turn AS latest (site_id, session_id, task_id, question_id, reply_id,"
            "            round_id, before_hash, response_id, heard_chars, arrived_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, NULL, %s)"
            " ON CONFLICT (site_id, session_id) DO UPDATE"
            "    SET task_id = excluded.task_id, question_id = excluded.question_id, reply_id = excluded.reply_id,"
            "        round_id = excluded.round_id, before_hash = excluded.before_hash, heard_chars = NULL,"
            "        response_id = excluded.response_id, arrived_at = excluded.arrived_at"
            "  WHERE latest.arrived_at <= excluded.arrived_at",
            [
                room.site_id,
                room.session_id,
                room.task_id,
                started.user_message_id,
                started.reply_id,
                turn.round_id,
                turn.before_hash,
                response_id,
                room.arrived_at,
            ],
        )


def leave_turn(room: Room, reply_id: int, *, response_id: str, heard_chars: int) -> bool:
    """Note that a call was hung up on; return whether the person has left with it: no other carries the reply."""
    with tenant(room.site_id), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE conversations_voice_turn SET heard_chars = %s"
            " WHERE site_id = %s AND session_id = %s AND reply_id = %s AND response_id = %s",
            [heard_chars, room.site_id, room.session_id, reply_id, response_id],
        )
        return cursor.rowcount == 1


async def hang_up(room: Room, reply_id: int, *, response_id: str, heard_chars: int, grace_seconds: float) -> None:
    """End a reply whose caller has gone, with what was delivered; unless the same turn comes again."""
    if not heard_chars:
        await asyncio.sleep(grace_seconds)
    for _ in range(HANG_UP_TRIES):
        try:
            if not await db.unit(leave_turn, room, reply_id, response_id=response_id, heard_chars=heard_chars):
                return
            log.info("voice_hung_up", extra={"reply": reply_id, "site": room.site_id, "heard_chars": heard_chars})
            await engine().stop_reply(reply_id)
            return
        except (Conflict, NotFound):
            return  # It had ended, or the longer turn has taken its place.
        except (DatabaseError, *DatabaseAway, Unavailable) as error:
            log.warning("voice_hang_up_failed", extra={"reply": reply_id, "error": type(error).__name__})
            await asyncio.sleep(RETRY_SECONDS)
