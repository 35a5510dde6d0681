"""What a model is asked: the site's system prompt, then the newest messages that fit the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection

from conversations.models import Message
from conversations.models.site_settings import setting_of
from providers.types import ChatMessage, Role

MESSAGE_TOKENS = 4
"""What one message costs beside its text: role and separators, as OpenAI's models count."""
SPARE_ROWS = 8
USABLE = ("complete", "truncated", "stopped", "interrupted")


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text is: one for a CJK character, one for four others.

    An upper estimate for today's tokenizers on Chinese and English; used to trim prompts, and for the
    ledger when a provider does not count.
    """
    wide = sum(1 for character in text if character >= "\u2e80")
    return wide + (len(text) - wide + 3) // 4


def build_prompt(
    site_settings: Mapping[str, Any],
    *,
    site_id: int,
    chat_id: int,
    question_id: int,
    context_cleared_at: datetime | None = None,
    max_tokens: int | None = None,
) -> tuple[ChatMessage, ...]:
    """Return the prompt that ends with the question, oldest message first. One query, nearly always.

    Failed, running and empty replies are left out; of several versions of an answer the newest usable one
    counts. The window is a number of messages (a setting of the site, the question included) and a number
    of estimated tokens; the question itself and the system prompt are never trimmed.
    """
    budget = settings.PROMPT_MAX_TOKENS if max_tokens is None else max_tokens
    system = setting_of(site_settings, "system_prompt")
    limit = max(1, setting_of(site_settings, "history_messages"))
    # A few rows more than asked for, since earlier versions of answers are among them; many when they fill it.
    window = limit + SPARE_ROWS
    while True:
        rows = _read_window(site_id, chat_id, question_id, window, context_cleared_at)
        chosen = in_order(rows, question_id=question_id, limit=limit)
        if len(chosen) == limit or len(rows) < window:
            break
        window *= 4
    prompt: list[ChatMessage] = []
    if system:
        budget -= estimate_tokens(system) + MESSAGE_TOKENS
    for row in reversed(chosen):
        budget -= estimate_tokens(row.content) + MESSAGE_TOKENS
        if budget < 0 and prompt:
            break
        prompt.append(ChatMessage(row.role, row.content))
    if system:
        prompt.append(ChatMessage("system", system))
    return tuple(reversed(prompt))


class WindowRow(NamedTuple):
    """A message as the prompt needs it."""

    id: int
    role: Role
    content: str
    reply_to_id: int | None
    version: int


def in_order(rows: Iterable[WindowRow], *, question_id: int, limit: int) -> list[WindowRow]:
    """Return the newest `limit` of these rows with the question last, each answer once and after its question."""
    newest: dict[tuple[int, bool], WindowRow] = {}
    for row in rows:
        is_reply = row.role == "assistant"
        place = (row.reply_to_id or row.id, is_reply)
        known = newest.get(place)
        if known is None or known.version < row.version:
            newest[place] = row
    question = newest.pop((question_id, False))
    before = [row for _, row in sorted(newest.items())]
    return [*before[max(0, len(before) - limit + 1) :], question]


def _read_window(
    site_id: int, chat_id: int, question_id: int, limit: int, context_cleared_at: datetime | None
) -> list[WindowRow]:
    """Return the newest usable rows up to the question, and later answers to earlier questions.

    ORDER BY id DESC LIMIT n: 0.5 ms whatever the length of the conversation (DESIGN 6).
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, role, content, reply_to_id, version FROM conversations_message"
            " WHERE site_id = %s AND conversation_id = %s AND role IN ('user', 'assistant')"
            "   AND status = ANY(%s) AND content <> ''"
            "   AND (id <= %s OR (role = 'assistant' AND reply_to_id < %s))"
            "   AND created_at > coalesce(%s, '-infinity'::timestamptz)"
            " ORDER BY id DESC LIMIT %s",
            [site_id, chat_id, list(USABLE), question_id, question_id, context_cleared_at, limit],
        )
        rows = [WindowRow(*row) for row in cursor.fetchall()]
    if all(row.id != question_id for row in rows):
        rows += _read_question(site_id, question_id)
    return rows


def _read_question(site_id: int, question_id: int) -> list[WindowRow]:
    """Return the question alone, when it is so old that the window does not reach it."""
    rows = Message.objects.for_site(site_id).filter(pk=question_id)
    return [WindowRow(*row) for row in rows.values_list("id", "role", "content", "reply_to_id", "version")]
