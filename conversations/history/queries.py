"""Lists for one reader: conversations and messages, by page and by key, each in a fixed number of queries."""

from __future__ import annotations

import base64
import binascii
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import BooleanField, Exists, OuterRef, Q, QuerySet
from django.db.models.expressions import RawSQL

from conversations.errors import BadRequest, NotFound
from conversations.models import Conversation, Membership, Message

BIGINT_MAX = 2**63 - 1
HISTORY_ORDER = ("-is_pinned", "-last_message_at", "-id")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list. `total` counts all pages; `page` is None where a list was asked for by key."""

    items: Sequence[Any]
    total: int
    page: int | None
    page_size: int
    next_cursor: str | None = None


def history_page(
    membership: Membership,
    *,
    page: int = 1,
    page_size: int = 20,
    cursor: str | None = None,
    q: str = "",
    context_type: str | None = None,
    is_archived: bool = False,
) -> Page:
    """Return this member's conversations: pinned first, then newest activity; a cursor wins over a page.

    Each carries `is_generating`. Raises: BadRequest bad_cursor.
    """
    rows = Conversation.objects.visible_to(membership).filter(deleted_at__isnull=True, is_archived=is_archived)
    if context_type is not None:
        rows = rows.filter(context_type=context_type)
    if q:
        said = Message.objects.for_site(membership.site_id).filter(
            conversation=OuterRef("pk"), content__icontains=q
        )
        said = said.exclude(role=Message.Role.TOOL)
        rows = rows.filter(Q(title__icontains=q) | Exists(said))
    total = rows.count()
    if cursor is not None:
        ids = list(_after(rows, cursor).order_by(*HISTORY_ORDER).values_list("pk", flat=True)[: page_size + 1])
        has_more, ids = len(ids) > page_size, ids[:page_size]
    else:
        ids = _page_of_ids(rows, HISTORY_ORDER, page=page, page_size=page_size, total=total)
        has_more = page * page_size < total
    items = list(conversations_by_id(membership, ids))
    return Page(
        items=items,
        total=total,
        page=page,
        page_size=page_size,
        next_cursor=_cursor_of(items[-1]) if items and has_more else None,
    )


def conversations_by_id(membership: Membership, ids: Sequence[int]) -> QuerySet[Conversation]:
    """Return these conversations in the order of the history, each with `is_generating`."""
    running = Message.objects.for_site(membership.site_id).filter(
        conversation=OuterRef("pk"), status=Message.Status.STREAMING
    )
    rows: QuerySet[Conversation] = Conversation.objects.visible_to(membership).filter(pk__in=ids)
    return rows.annotate(is_generating=Exists(running)).order_by(*HISTORY_ORDER)


def is_generating(conversation: Conversation) -> bool:
    """Return whether a reply is under way in this conversation."""
    return _messages_of(conversation).filter(status=Message.Status.STREAMING).exists()


def message_page(conversation: Conversation, *, page: int = 1, page_size: int = 50) -> Page:
    """Return one page of a conversation's messages, oldest first: page 1 holds the oldest."""
    rows = _messages_of(conversation)
    total = rows.count()
    ids = _page_of_ids(rows, ("id",), page=page, page_size=page_size, total=total)
    items = list(rows.filter(pk__in=ids).order_by("id"))
    return Page(items=with_running_text(items), total=total, page=page, page_size=page_size)


def messages_before(conversation: Conversation, message_id: int, *, limit: int = 50) -> Page:
    """Return the messages just before this id, oldest first."""
    rows = _messages_of(conversation)
    items = list(rows.filter(pk__lt=min(message_id, BIGINT_MAX)).order_by("-id")[:limit])
    return _by_key(rows, items[::-1], limit)


def messages_after(conversation: Conversation, message_id: int, *, limit: int = 50) -> Page:
    """Return the messages just after this id, oldest first."""
    rows = _messages_of(conversation)
    return _by_key(rows, list(rows.filter(pk__gt=min(message_id, BIGINT_MAX)).order_by("id")[:limit]), limit)


def messages_around(conversation: Conversation, message_id: int, *, limit: int = 50) -> Page:
    """Return one message with its neighbours on both sides, oldest first.

    Raises: NotFound, when the message is not in this conversation.
    """
    rows = _messages_of(conversation)
    until = list(rows.filter(pk__lte=min(message_id, BIGINT_MAX)).order_by("-id")[: limit - limit // 2])
    if not until or until[0].pk != message_id:
        raise NotFound
    after = list(rows.filter(pk__gt=message_id).order_by("id")[: limit // 2])
    return _by_key(rows, until[::-1] + after, limit)


def running_text(message: Message) -> tuple[str, str]:
    """Return content and reasoning of a reply as far as they are committed; the stored text once it is sealed."""
    return running_texts(message.site_id, [message.pk]).get(message.pk, ("", ""))


def running_texts(site_id: int, message_ids: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Return message id → (content, reasoning) as far as they are committed.

    One statement, so one snapshot: a reply that is folded or sealed at this moment is read before or after,
    never in between, where its text would be in neither place.
    """
    ids = list(message_ids)
    if not ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH wanted AS (
                SELECT id, worker_id, status, content, reasoning FROM conversations_message
                WHERE site_id = %s AND id = ANY(%s)
            )
            SELECT id, 0, content, 0, reasoning, NULL FROM wanted
            UNION ALL
            SELECT chunk.message_id, content_offset, chunk.content, reasoning_offset, chunk.reasoning, NULL
            FROM conversations_reply_chunk AS chunk JOIN wanted ON wanted.id = chunk.message_id
            WHERE chunk.site_id = %s
            UNION ALL
            SELECT NULL, NULL, NULL, NULL, NULL, payload FROM conversations_worker_log
            WHERE worker_id IN (SELECT worker_id FROM wanted WHERE status = 'streaming')
            """,
            [site_id, ids, site_id],
        )
        rows = cursor.fetchall()
    contents: dict[int, list[tuple[int, str]]] = {message_id: [] for message_id in ids}
    reasonings: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for message_id, offset, content, reasoning_offset, reasoning, payload in rows:
        pieces = (
            [[message_id, offset, content, reasoning_offset, reasoning]]
            if payload is None
            else json.loads(payload)
        )
        for piece in pieces:
            if piece[0] in contents:
                contents[piece[0]].append((piece[1], piece[2]))
                if len(piece) > 3:
                    reasonings[piece[0]].append((piece[3], piece[4]))
    return {key: (fold(pieces), fold(reasonings[key])) for key, pieces in contents.items()}


def fold(pieces: Iterable[tuple[int, str]]) -> str:
    """Return the text that pieces at code point offsets make up to the first gap; they may overlap."""
    parts: list[str] = []
    length = 0
    for offset, text in sorted(pieces):
        if offset > length:
            break
        if offset + len(text) > length:
            parts.append(text[length - offset :])
            length = offset + len(text)
    return "".join(parts)


def with_running_text(messages: list[Message]) -> list[Message]:
    """Return the same messages; those under way now hold, in memory, what is committed so far."""
    running = [message for message in messages if message.status == Message.Status.STREAMING]
    if running:
        texts = running_texts(running[0].site_id, [message.pk for message in running])
        for message in running:
            message.content, message.reasoning = texts[message.pk]
    return messages


def _messages_of(conversation: Conversation) -> QuerySet[Message]:
    """Return what was said; runs of tools are kept for staff, and no part of the history."""
    rows: QuerySet[Message] = Message.objects.for_site(conversation.site_id).filter(conversation=conversation)
    return rows.exclude(role=Message.Role.TOOL)


def _by_key(rows: QuerySet[Message], items: list[Message], limit: int) -> Page:
    return Page(items=with_running_text(items), total=rows.count(), page=None, page_size=limit)


def _page_of_ids(rows: QuerySet[Any], order: Sequence[str], *, page: int, page_size: int, total: int) -> list[int]:
    """Return the ids of one page, walked to from the nearer end; only ids, so that only the index is read."""
    start = (page - 1) * page_size
    if start >= total:
        return []
    end = min(start + page_size, total)
    rows = rows.order_by(*order)
    if start <= total - end:
        return list(rows.values_list("pk", flat=True)[start:end])
    return list(rows.reverse().values_list("pk", flat=True)[total - end : total - start])[::-1]


def _cursor_of(conversation: Conversation) -> str:
    key = [int(conversation.is_pinned), conversation.last_message_at.isoformat(), conversation.pk]
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def _after(rows: QuerySet[Conversation], cursor: str) -> QuerySet[Conversation]:
    try:
        if len(cursor) > 200:
            raise ValueError("too long")
        decoded = base64.b64decode(
            cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True
        )
        is_pinned, at, row_id = json.loads(decoded)
        last_message_at = datetime.fromisoformat(at)
        if (
            is_pinned not in (0, 1)
            or type(row_id) is not int
            or not 0 < row_id <= BIGINT_MAX
            or last_message_at.tzinfo is None
            or not 1970 <= last_message_at.year < 9000
        ):
            raise ValueError("out of range")
    except (ValueError, TypeError, RecursionError, binascii.Error) as error:
        raise BadRequest("bad_cursor") from error
    # One row comparison: the index walks to it directly, which a chain of ORs would not let it do.
    before = RawSQL(
        "(conversations_conversation.is_pinned, conversations_conversation.last_message_at,"
        " conversations_conversation.id) < (%s, %s, %s)",
        [bool(is_pinned), last_message_at, row_id],
        output_field=BooleanField(),
    )
    return rows.filter(before)
