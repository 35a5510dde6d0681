"""Search in what one member said and was told: a plain substring for now."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from conversations.history.queries import Page
from conversations.models import Membership, Message

EXCERPT_CHARS = 120
LEAD_CHARS = 30
HIGHLIGHTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Found:
    """One message that matches. Highlights are [start, end) in code points of the excerpt: nobody needs HTML."""

    message_id: int
    chat_id: int
    title: str
    role: str
    excerpt: str
    highlights: list[tuple[int, int]]
    created_at: datetime


def search_messages(membership: Membership, *, q: str, page: int = 1, page_size: int = 20) -> Page:
    """Return this member's messages that contain `q`, newest first; %, _ and \\ mean themselves."""
    rows = (
        Message.objects.visible_to(membership)
        .filter(
            conversation__deleted_at__isnull=True,
            role__in=[Message.Role.USER, Message.Role.ASSISTANT],
            content__icontains=q,
        )
        .select_related("conversation")
        .order_by("-id")
    )
    total = rows.count()
    start = (page - 1) * page_size
    messages = rows[start : start + page_size] if start < total else []
    return Page(items=[_found(message, q) for message in messages], total=total, page=page, page_size=page_size)


def _found(message: Message, q: str) -> Found:
    excerpt, highlights = excerpt_of(message.content, q)
    return Found(
        message_id=message.pk,
        chat_id=message.conversation_id,
        title=message.conversation.title,
        role=message.role,
        excerpt=excerpt,
        highlights=highlights,
        created_at=message.created_at,
    )


def excerpt_of(content: str, q: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a stretch of the content around the first match, and where the matches are in it."""
    pattern = re.compile(re.escape(q), re.IGNORECASE)
    first = pattern.search(content)
    start = max(0, first.start() - LEAD_CHARS) if first else 0
    end = min(len(content), max(start + EXCERPT_CHARS, first.end() if first else 0))
    head, tail = "…" if start else "", "…" if end < len(content) else ""
    excerpt = head + content[start:end] + tail
    matches = pattern.finditer(excerpt, len(head), len(excerpt) - len(tail))
    return excerpt, [match.span() for match, _ in zip(matches, range(HIGHLIGHTS_MAX), strict=False)]
