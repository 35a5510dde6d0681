"""What begins and repeats replies: one transaction each, sync, run through `db.unit` by the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from django.db import IntegrityError
from psycopg.types.json import Jsonb

from conversations.context.prompt import build_prompt
from conversations.db import prepared_cursor, tenant
from conversations.errors import Conflict, Invalid, NotAllowed, NotFound
from conversations.events import is_storable
from conversations.generation.seam import Way
from conversations.history.actions import shorten_title
from conversations.history.idempotency import claim_key
from conversations.models import Generation, Message, site_setting
from conversations.models.conversations import CONTENT_MAX_CHARS, PREVIEW_CHARS
from conversations.models.site_settings import offered_tools, setting_of
from conversations.tenancy.access import OpenChat, access_reply, open_chat
from conversations.tenancy.grants import KeysOfMember, read_keys
from conversations.tenancy.resolve import approved_member_for
from conversations.tenancy.throttle import spend_send
from conversations.tenancy.tokens import Claims
from providers.types import ChatMessage

Channel = Literal["chat", "voice"]


@dataclass(frozen=True, slots=True)
class Send:
    """What a member sends. `body` is the whole parsed body, for the idempotency hash."""

    chat_id: int
    content: str
    source_page: str = ""
    page_context: dict[str, Any] | None = None
    idempotency_key: str | None = None
    body_hash: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A reply that exists now: made by this request, or by an earlier one with the same key."""

    chat_id: int
    site_id: int
    user_message_id: int
    reply_id: int
    created_at: Any
    is_new: bool
    prompt: tuple[ChatMessage, ...] = ()
    title: str | None = None
    is_ascii_stream: bool = False
    allows_stand_in: bool = True
    midstream_failover: Way = "off"
    keys: KeysOfMember | None = None
    tools: tuple[str, ...] = ()
    tool_rounds: int = 5
    searches_by_tool: bool = False
    """Whether the model searches what the site knows, or, when it has no tools, that is done for it."""
    wants_context: bool = False
    """Whether the prompt may get something beside the conversation: context/enrich.py."""
    channel: Channel = "chat"
    attempt: int = 1
    """The first attempt's number: more than one where a reply takes the place of another."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What the asker wants of the model (temperature, max_tokens, …)."""
    follows_caller: bool = False
    """Made for one caller alone: it ends only when they have all of it, or hang up."""


class OwnerGone(Exception):
    """A reply is under way on a worker that is dead, or that we are: sweep it, then ask again."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        super().__init__(worker_id)


def clean_content(value: object) -> str:
    """Return what a member says, trimmed.

    Raises: Invalid empty_content, content_too_long, or invalid for what cannot be stored.
    """
    if not isinstance(value, str):
        raise Invalid("invalid", errors={"content": ["must be a string"]})
    content = value.strip()
    if not content:
        raise Invalid("empty_content")
    if len(content) > CONTENT_MAX_CHARS:
        raise Invalid("content_too_long")
    if not is_storable(content):
        raise Invalid("invalid", errors={"content": ["must not hold NUL or lone surrogates"]})
    return content


def start_reply(claims: Claims, send: Send, *, worker_id: int, lease_seconds: float) -> Started:
    """Store the question and an empty reply that belongs to this worker; or find those of an earlier try.

    The hot path of sending: five statements of SQL where the ORM took fourteen (12 ms of CPU against 2).
    Raises: NotAllowed, Conflict `generating` with the running reply's id, Invalid, Limited; OwnerGone.
    """
    with tenant(claims.site_id):
        chat = open_chat(claims, send.chat_id)
        if send.idempotency_key:
            earlier = _find_earlier(chat, send.idempotency_key, send.body_hash)
            if earlier is not None:
                return earlier
        refuse_while_running(chat, worker_id=worker_id, lease_seconds=lease_seconds)
        spend_send(chat.membership_id)
        return insert_exchange(chat, send, worker_id=worker_id)


def regenerate_reply(
    claims: Claims,
    reply_id: int | str,
    *,
    idempotency_key: str | None,
    body_hash: str,
    worker_id: int,
    lease_seconds: float,
) -> Started:
    """Begin another version of a reply; the earlier one stays.

    Raises: NotFound, Invalid not_a_reply, and as `start_reply`.
    """
    with tenant(claims.site_id):
        reply = access_reply(approved_member_for(claims), reply_id)
        if reply.reply_to_id is None:
            raise Invalid("not_a_reply")
        chat = open_chat(claims, reply.conversation_id)
        if idempotency_key:
            earlier = _find_earlier(chat, idempotency_key, body_hash)
            if earlier is not None:
                return earlier
        refuse_while_running(chat, worker_id=worker_id, lease_seconds=lease_seconds)
        spend_send(chat.membership_id)
        # Whether the question came from a page stands in its row; enriching reads that.
        return insert_answer(chat, reply.reply_to_id, worker_id=worker_id, key=idempotency_key, has_page=True)


_REPLY = """
     reply AS (
        INSERT INTO conversations_message
               (site_id, conversation_id, role, content, reasoning, status, error_code, reply_to_id, version,
                channel, source_page, feedback, feedback_reason, worker_id, created_at)
        SELECT %(site)s, %(chat)s, 'assistant', '', '', 'streaming', '', question.id, {version},
               %(channel)s, '', '', '', %(worker)s, question.now
          FROM question
     RETURNING id),
     ledger AS (
        INSERT INTO conversations_generation
               (site_id, message_id, attempt, endpoint_name, model, worker_id, status, error_code, finish_reason,
                vendor_request_id, prompt_messages, prompt_chars, tokens_source, queued_at)
        SELECT %(site)s, reply.id, %(attempt)s, '', '', %(worker)s, 'running', '', '', '', 0, 0,
               'estimated', question.now
          FROM reply, question),
     known AS (
        UPDATE conversations_idempotency_key
           SET conversation_id = %(chat)s, user_message_id = question.id, reply_id = reply.id
          FROM reply, question
         WHERE site_id = %(site)s AND membership_id = %(member)s AND key = %(key)s)
SELECT question.id, reply.id, question.now FROM question, reply
"""

_SEND = """
WITH question AS (
        INSERT INTO conversations_message
               (site_id, conversation_id, role, content, reasoning, status, error_code, version, channel,
                source_page, page_context, feedback, feedback_reason, created_at)
        VALUES (%(site)s, %(chat)s, 'user', %(content)s, '', 'complete', '', 1, %(channel)s, %(source_page)s,
                %(page_context)s, '', '', clock_timestamp())
     RETURNING id, created_at AS now),
     chat AS (
        UPDATE conversations_conversation
           SET title = %(title)s, last_message = %(preview)s, last_message_at = question.now,
               message_count = message_count + 2
          FROM question WHERE conversations_conversation.id = %(chat)s),
""" + _REPLY.format(version="1")

_REGENERATE = """
WITH question AS (
        SELECT id, clock_timestamp() AS now,
               (SELECT max(version) + 1 FROM conversations_message WHERE reply_to_id = %(question)s) AS version
          FROM conversations_message WHERE id = %(question)s AND site_id = %(site)s),
     chat AS (
        UPDATE conversations_conversation
           SET last_message_at = question.now, message_count = message_count + 1
          FROM question WHERE conversations_conversation.id = %(chat)s),
""" + _REPLY.format(version="question.version")


def insert_exchange(chat: OpenChat, send: Send, *, worker_id: int, channel: Channel = "chat") -> Started:
    """Store a question and its empty reply in a chat that is open and where none runs."""
    title = chat.title or shorten_title(send.content)
    question_id, reply_id, now = _insert(
        _SEND,
        {
            "worker": worker_id,
            "chat": chat.chat_id,
            "site": chat.site_id,
            "member": chat.membership_id,
            "key": send.idempotency_key,
            "channel": channel,
            "attempt": 1,
            "content": send.content,
            "source_page": send.source_page,
            "page_context": None if send.page_context is None else Jsonb(send.page_context),
            "title": title,
            "preview": send.content[:PREVIEW_CHARS],
        },
    )
    return _started(
        chat,
        question_id,
        reply_id,
        now,
        title=None if chat.title else title,
        has_page=bool(send.source_page or send.page_context),
        channel=channel,
    )


def insert_answer(
    chat: OpenChat,
    question_id: int,
    *,
    worker_id: int,
    key: str | None = None,
    channel: Channel = "chat",
    attempt: int = 1,
    has_page: bool = False,
) -> Started:
    """Store another empty reply to a question that is there, its version one higher than the last one's."""
    _, reply_id, now = _insert(
        _REGENERATE,
        {
            "worker": worker_id,
            "chat": chat.chat_id,
            "site": chat.site_id,
            "member": chat.membership_id,
            "key": key,
            "channel": channel,
            "attempt": attempt,
            "question": question_id,
        },
    )
    return _started(chat, question_id, reply_id, now, has_page=has_page, channel=channel, attempt=attempt)


def _insert(statement: str, values: dict[str, Any]) -> tuple[int, int, datetime]:
    """Return question, reply and time of what was inserted."""
    try:
        with prepared_cursor() as cursor:
            row = cursor.execute(statement, values).fetchone()
    except IntegrityError as error:
        # The partial unique index has the last word; the lock on the chat makes this all but impossible.
        raise Conflict("generating") from error
    assert row is not None, "INSERT … SELECT gives the row of its question"
    question_id, reply_id, now = row
    return question_id, reply_id, now


def _started(
    chat: OpenChat,
    question_id: int,
    reply_id: int,
    now: datetime,
    *,
    title: str | None = None,
    has_page: bool = False,
    channel: Channel = "chat",
    attempt: int = 1,
) -> Started:
    return Started(
        chat_id=chat.chat_id,
        site_id=chat.site_id,
        user_message_id=question_id,
        reply_id=reply_id,
        created_at=now,
        is_new=True,
        prompt=build_prompt(
            chat.site_settings,
            site_id=chat.site_id,
            chat_id=chat.chat_id,
            question_id=question_id,
            context_cleared_at=chat.context_cleared_at,
        ),
        title=title,
        is_ascii_stream=setting_of(chat.site_settings, "ascii_stream"),
        allows_stand_in=setting_of(chat.site_settings, "stand_in"),
        midstream_failover=setting_of(chat.site_settings, "midstream_failover"),
        keys=read_keys(chat.site_id, chat.membership_id)
        if setting_of(chat.site_settings, "member_keys")
        else None,
        tools=offered_tools(chat.site_settings),
        tool_rounds=setting_of(chat.site_settings, "tool_rounds"),
        searches_by_tool=setting_of(chat.site_settings, "knowledge") == "tool",
        wants_context=has_page or setting_of(chat.site_settings, "knowledge") == "before",
        channel=channel,
        attempt=attempt,
    )


def _find_earlier(chat: OpenChat, key: str, body_hash: str) -> Started | None:
    """Return what an earlier request with this key made; None when this one is the first.

    Of twenty at once one makes the messages, and nineteen wait for its commit and find them.
    """
    claimed = claim_key(chat.site_id, chat.membership_id, key, body_hash)
    if claimed is None:
        return None
    reply = (
        Message.objects.for_site(chat.site_id).filter(pk=claimed.reply_id, conversation_id=chat.chat_id).first()
    )
    if reply is None:
        raise NotAllowed("not_your_chat")
    return Started(
        chat_id=chat.chat_id,
        site_id=chat.site_id,
        user_message_id=claimed.user_message_id or 0,
        reply_id=reply.pk,
        created_at=reply.created_at,
        is_new=False,
        is_ascii_stream=setting_of(chat.site_settings, "ascii_stream"),
    )


def refuse_while_running(chat: OpenChat, *, worker_id: int, lease_seconds: float) -> None:
    """Return when a reply may begin here: none runs in this chat, and this worker has not been declared dead.

    The worker's row stays locked against that declaration until the transaction ends.
    """
    with prepared_cursor() as cursor:
        cursor.execute(
            "WITH me AS MATERIALIZED (SELECT id FROM conversations_worker"
            "                          WHERE id = %s AND NOT is_dead FOR KEY SHARE)"
            " SELECT (SELECT count(*) FROM me), running.id, running.worker_id,"
            "        coalesce(owner.is_dead"
            "                 OR owner.seen_at < clock_timestamp() - %s * interval '1 second', true)"
            "   FROM (SELECT 1) AS one"
            "   LEFT JOIN conversations_message running"
            "     ON running.conversation_id = %s AND running.status = 'streaming'"
            "   LEFT JOIN conversations_worker owner ON owner.id = running.worker_id",
            [worker_id, lease_seconds, chat.chat_id],
        )
        row = cursor.fetchone()
    assert row is not None, "one row, whatever is found"
    is_alive, running_id, owner_id, owner_is_gone = row
    if not is_alive:
        raise OwnerGone(worker_id)
    if running_id is not None and owner_is_gone:
        raise OwnerGone(owner_id)
    if running_id is not None:
        raise Conflict("generating", extra={"messageId": running_id})


def find_started(claims: Claims, reply_id: int | str) -> Started:
    """Return a reply of this member, to be read again.

    Raises: NotFound, also for another reply than a ticket was issued for; NotSignedIn and NotAllowed as for
    every call.
    """
    with tenant(claims.site_id):
        membership = approved_member_for(claims)
        reply = access_reply(membership, reply_id)
        if claims.message_id not in (None, reply.pk):
            raise NotFound
        return Started(
            chat_id=reply.conversation_id,
            site_id=reply.site_id,
            user_message_id=reply.reply_to_id or 0,
            reply_id=reply.pk,
            created_at=reply.created_at,
            is_new=False,
            is_ascii_stream=site_setting(membership.site, "ascii_stream"),
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a stop did: how the reply ended, how much of it is saved, and how fast upstream was closed."""

    message_id: int
    status: str
    saved_chars: int
    upstream_closed_ms: int | None


def read_receipt(claims: Claims, reply_id: int) -> Receipt:
    """Return the receipt of a reply that has ended, from its row and its ledger."""
    with tenant(claims.site_id):
        reply = access_reply(approved_member_for(claims), reply_id)
        attempt = (
            Generation.objects.for_site(claims.site_id).filter(message_id=reply.pk).order_by("-attempt").first()
        )
        closed_ms = None
        if attempt is not None and attempt.upstream_closed_at is not None and reply.stop_requested_at is not None:
            closed_ms = max(
                0, round((attempt.upstream_closed_at - reply.stop_requested_at).total_seconds() * 1000)
            )
        return Receipt(reply.pk, reply.status, len(reply.content), closed_ms)
