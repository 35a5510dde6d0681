"""What a member does to their conversations: begin, find, name, pin, archive, delete, rate.

Every function takes rows that came through `tenancy/access.py`, inside `tenant(site)`.
"""

from __future__ import annotations

import unicodedata
from datetime import timedelta
from typing import Literal

from django.db import connection
from django.db.models.functions import Now

from conversations.errors import Invalid
from conversations.models import Conversation, Membership, Message
from conversations.models.conversations import TITLE_CHARS
from conversations.models.site_settings import FOR_EVER, reuse_seconds

DEFAULT_CONTEXT_TYPE = "general"
DEFAULT_CONTEXT_ID = "0"
SHORT_TITLE_CHARS = 30

_JOINER = "\u200d"
_SENTENCE_ENDS = "。！？!?；;\n"


def create_conversation(
    membership: Membership,
    *,
    context_type: str = DEFAULT_CONTEXT_TYPE,
    context_id: str = DEFAULT_CONTEXT_ID,
    title: str = "",
) -> Conversation:
    """Return a new, empty conversation; its times are the database's."""
    conversation = Conversation.across_sites.create(
        site_id=membership.site_id,
        membership=membership,
        context_type=context_type,
        context_id=context_id,
        title=title.strip()[:TITLE_CHARS],
        last_message_at=Now(),
    )
    conversation.refresh_from_db(fields=["last_message_at"])
    return conversation


def find_or_create_for_context(
    membership: Membership, *, context_type: str, context_id: str
) -> tuple[Conversation, bool]:
    """Return the conversation of this context, and whether it is new; the reuse rules are the site's.

    Race-free: parallel first calls wait for one another, and all get the one that the first made.
    """
    reuse = reuse_seconds(membership.site.settings, context_type)
    if reuse == 0:
        return create_conversation(membership, context_type=context_type, context_id=context_id), True
    _lock_context(membership, context_type, context_id)
    rows = Conversation.objects.visible_to(membership).filter(
        context_type=context_type, context_id=context_id, deleted_at__isnull=True
    )
    if reuse != FOR_EVER:
        rows = rows.filter(last_message_at__gte=Now() - timedelta(seconds=reuse))
    found: Conversation | None = rows.order_by("-last_message_at", "-id").first()
    if found is not None:
        return found, False
    return create_conversation(membership, context_type=context_type, context_id=context_id), True


def begin_conversation(
    membership: Membership, *, context_type: str, context_id: str, title: str
) -> tuple[Conversation, bool]:
    """Return a conversation that the member asked for, and whether it is new.

    It is new, unless the context has one conversation for ever (a task): then it is that one.
    """
    if reuse_seconds(membership.site.settings, context_type) == FOR_EVER:
        conversation, is_new = find_or_create_for_context(
            membership, context_type=context_type, context_id=context_id
        )
        if is_new and title.strip():
            rename_conversation(conversation, title=title)
        return conversation, is_new
    return (
        create_conversation(membership, context_type=context_type, context_id=context_id, title=title),
        True,
    )


def rename_conversation(conversation: Conversation, *, title: str) -> None:
    """Give the conversation a title; a blank one takes it away."""
    conversation.title = title.strip()[:TITLE_CHARS]
    conversation.save(update_fields=["title"])


def pin_conversation(conversation: Conversation, *, is_pinned: bool) -> None:
    """Keep the conversation above the others, or let it go."""
    conversation.is_pinned = is_pinned
    conversation.save(update_fields=["is_pinned"])


def archive_conversation(conversation: Conversation, *, is_archived: bool) -> None:
    """Move the conversation out of the usual history, or back."""
    conversation.is_archived = is_archived
    conversation.save(update_fields=["is_archived"])


def delete_conversation(conversation: Conversation) -> None:
    """Hide the conversation at once and ask its running reply to stop; retention erases it later."""
    rows = Conversation.objects.for_site(conversation.site_id)
    rows.filter(pk=conversation.pk, deleted_at__isnull=True).update(deleted_at=Now())
    Message.objects.for_site(conversation.site_id).filter(
        conversation=conversation, status=Message.Status.STREAMING, stop_requested_at__isnull=True
    ).update(stop_requested_at=Now())


def set_feedback(message: Message, *, rating: Literal["up", "down"] | None, reason: str = "") -> None:
    """Store what the member thinks of a reply; None takes it back.

    Raises: Invalid not_a_reply.
    """
    if message.role != Message.Role.ASSISTANT:
        raise Invalid("not_a_reply")
    message.feedback = rating or ""
    message.feedback_reason = reason.strip() if rating else ""
    # Only these columns: the reply may still be written by its worker.
    message.save(update_fields=["feedback", "feedback_reason"])


def shorten_title(text: str, *, max_chars: int = SHORT_TITLE_CHARS) -> str:
    """Return a title made from a first question: one line, at most `max_chars` characters and an ellipsis.

    Cuts after the first sentence when it is short, never inside a character that is made of several code
    points (an emoji of a family, a letter with marks), and at a space in languages that have them.
    """
    line = " ".join(text.strip().split())
    for index, char in enumerate(line[:max_chars]):
        following = line[index + 1 : index + 2]
        if char in _SENTENCE_ENDS and index >= 3 and (ord(char) > 127 or following in {"", " "}):
            return line[: index + 1].rstrip("。；;")
    if len(line) <= max_chars:
        return line
    cut = max_chars
    while cut > 0 and _belongs_together(line[cut - 1], line[cut]):
        cut -= 1
    cut = cut or max_chars
    space = line.rfind(" ", max_chars * 2 // 3, cut + 1)
    if space > 0 and line[cut - 1].isascii() and line[cut].isascii():
        cut = space
    return line[:cut].rstrip() + "…"


def _belongs_together(before: str, after: str) -> bool:
    """Return whether two code points are parts of one visible character (a useful part of UAX 29)."""
    return (
        unicodedata.category(after) in {"Mn", "Me", "Mc"}
        or after == _JOINER
        or before == _JOINER
        or 0x1F3FB <= ord(after) <= 0x1F3FF  # skin tones
        or (0x1F1E6 <= ord(before) <= 0x1F1FF and 0x1F1E6 <= ord(after) <= 0x1F1FF)  # flags
    )


def _lock_context(membership: Membership, context_type: str, context_id: str) -> None:
    """Hold one context of one member until the end of the transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            [f"context:{membership.pk}:{len(context_type)}:{context_type}:{context_id}"],
        )
