"""What begins and repeats replies: one transaction each, sync, run through `db.unit` by the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from django.db import IntegrityError, connection
from django.db.models import F, Max

from conversations.context.prompt import build_prompt
from conversations.db import database_now, tenant
from conversations.errors import Conflict, Invalid, NotAllowed, NotFound
from conversations.events import is_storable
from conversations.history.actions import shorten_title
from conversations.history.idempotency import claim_key
from conversations.models import Conversation, Generation, IdempotencyKey, Membership, Message
from conversations.models.conversations import CONTENT_MAX_CHARS, PREVIEW_CHARS
from conversations.tenancy.access import access_chat_to_write, access_reply
from conversations.tenancy.resolve import approved_member_for
from conversations.tenancy.throttle import spend_send
from conversations.tenancy.tokens import Claims
from providers.types import ChatMessage


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

    Raises: NotAllowed, Conflict `generating` with the running reply's id, Invalid, Limited; OwnerGone.
    """
    with tenant(claims.site_id):
        membership = approved_member_for(claims)
        if send.idempotency_key:
            earlier = _find_earlier(membership, send.idempotency_key, send.body_hash)
            if earlier is not None:
                return earlier
        conversation = access_chat_to_write(membership, send.chat_id, lock=True)
        _refuse_while_running(conversation, lease_seconds=lease_seconds)
        spend_send(membership)
        now = database_now()
        question = Message.across_sites.create(
            site_id=conversation.site_id,
            conversation=conversation,
            role=Message.Role.USER,
            content=send.content,
            source_page=send.source_page,
            page_context=send.page_context,
            created_at=now,
        )
        title = conversation.title or shorten_title(send.content)
        started = _begin(
            membership, conversation, question, worker_id=worker_id, now=now, version=1, key=send.idempotency_key
        )
        Conversation.across_sites.filter(pk=conversation.pk).update(
            title=title,
            last_message=send.content[:PREVIEW_CHARS],
            last_message_at=now,
            message_count=F("message_count") + 2,
        )
        return started if conversation.title else replace(started, title=title)


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
        membership = approved_member_for(claims)
        if idempotency_key:
            earlier = _find_earlier(membership, idempotency_key, body_hash)
            if earlier is not None:
                return earlier
        reply = access_reply(membership, reply_id)
        if reply.reply_to_id is None:
            raise Invalid("not_a_reply")
        conversation = access_chat_to_write(membership, reply.conversation_id, lock=True)
        _refuse_while_running(conversation, lease_seconds=lease_seconds)
        spend_send(membership)
        question = Message.objects.visible_to(membership).get(pk=reply.reply_to_id)
        version = (
            Message.objects.visible_to(membership)
            .filter(reply_to_id=question.pk)
            .aggregate(last=Max("version"))["last"]
        )
        now = database_now()
        started = _begin(
            membership,
            conversation,
            question,
            worker_id=worker_id,
            now=now,
            version=version + 1,
            key=idempotency_key,
        )
        Conversation.across_sites.filter(pk=conversation.pk).update(
            last_message_at=now, message_count=F("message_count") + 1
        )
        return started


def _find_earlier(membership: Membership, key: str, body_hash: str) -> Started | None:
    """Return what an earlier request with this key made; None when this one is the first.

    Of twenty at once one makes the messages, and nineteen wait for its commit and find them.
    """
    row = claim_key(membership, key, body_hash)
    if row is None:
        return None
    replies = Message.objects.visible_to(membership).filter(conversation__deleted_at__isnull=True)
    reply = replies.filter(pk=row.reply_id).first()
    if reply is None:
        # The chat was deleted since: whoever repeats the request may not write there any more.
        raise NotAllowed("not_your_chat")
    return Started(
        chat_id=reply.conversation_id,
        site_id=reply.site_id,
        user_message_id=row.user_message_id or 0,
        reply_id=reply.pk,
        created_at=reply.created_at,
        is_new=False,
    )


def _refuse_while_running(conversation: Conversation, *, lease_seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT message.id, message.worker_id,"
            "       coalesce(worker.is_dead"
            "                OR worker.seen_at < clock_timestamp() - %s * interval '1 second', true)"
            "  FROM conversations_message message"
            "  LEFT JOIN conversations_worker worker ON worker.id = message.worker_id"
            " WHERE message.conversation_id = %s AND message.status = 'streaming'",
            [lease_seconds, conversation.pk],
        )
        row = cursor.fetchone()
    if row is None:
        return
    if row[2]:
        raise OwnerGone(row[1])
    raise Conflict("generating", extra={"messageId": row[0]})


def _begin(
    membership: Membership,
    conversation: Conversation,
    question: Message,
    *,
    worker_id: int,
    now: Any,
    version: int,
    key: str | None,
) -> Started:
    """Insert the empty reply and its first ledger row, and return them with the prompt."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM conversations_worker WHERE id = %s AND NOT is_dead FOR KEY SHARE", [worker_id]
        )
        if cursor.fetchone() is None:
            raise OwnerGone(worker_id)
    try:
        reply = Message.across_sites.create(
            site_id=conversation.site_id,
            conversation=conversation,
            role=Message.Role.ASSISTANT,
            status=Message.Status.STREAMING,
            reply_to=question,
            version=version,
            worker_id=worker_id,
            created_at=now,
        )
    except IntegrityError as error:
        # The partial unique index has the last word; the lock on the chat makes this all but impossible.
        raise Conflict("generating") from error
    Generation.across_sites.create(
        site_id=conversation.site_id, message_id=reply.pk, attempt=1, worker_id=worker_id, queued_at=now
    )
    if key is not None:
        IdempotencyKey.objects.visible_to(membership).filter(key=key).update(
            conversation_id=conversation.pk, user_message_id=question.pk, reply_id=reply.pk
        )
    return Started(
        chat_id=conversation.pk,
        site_id=conversation.site_id,
        user_message_id=question.pk,
        reply_id=reply.pk,
        created_at=now,
        is_new=True,
        prompt=build_prompt(membership.site, conversation, question_id=question.pk),
    )


def find_started(claims: Claims, reply_id: int | str) -> Started:
    """Return a reply of this member, to be read again.

    Raises: NotFound, also for another reply than a ticket was issued for; NotSignedIn and NotAllowed as for
    every call.
    """
    with tenant(claims.site_id):
        reply = access_reply(approved_member_for(claims), reply_id)
        if claims.message_id not in (None, reply.pk):
            raise NotFound
        return Started(
            chat_id=reply.conversation_id,
            site_id=reply.site_id,
            user_message_id=reply.reply_to_id or 0,
            reply_id=reply.pk,
            created_at=reply.created_at,
            is_new=False,
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
