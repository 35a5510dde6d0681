"""What a model is asked: the site's system prompt, then the newest messages that fit the budget."""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings

from conversations.models import Conversation, Message, Site, site_setting
from providers.types import ChatMessage, Role

MESSAGE_TOKENS = 4
"""What one message costs beside its text: role and separators, as OpenAI's models count."""
USABLE = ("complete", "truncated", "stopped", "interrupted")


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text is: one for a CJK character, one for four others.

    An upper estimate for today's tokenizers on Chinese and English; used to trim prompts, and for the
    ledger when a provider does not count.
    """
    wide = sum(1 for character in text if character >= "\u2e80")
    return wide + (len(text) - wide + 3) // 4


def build_prompt(
    site: Site, conversation: Conversation, *, question_id: int, max_tokens: int | None = None
) -> tuple[ChatMessage, ...]:
    """Return the prompt that ends with the question, oldest message first.

    Failed, running and empty replies are left out; of several versions of an answer the newest usable one
    counts. The window is a number of messages (a setting of the site, the question included) and a number
    of estimated tokens; the question itself and the system prompt are never trimmed.
    """
    budget = settings.PROMPT_MAX_TOKENS if max_tokens is None else max_tokens
    system = site_setting(site, "system_prompt")
    rows = _window(conversation, question_id=question_id, limit=max(1, site_setting(site, "history_messages")))
    prompt: list[ChatMessage] = []
    if system:
        budget -= estimate_tokens(system) + MESSAGE_TOKENS
    for message in reversed(rows):
        budget -= estimate_tokens(message.content) + MESSAGE_TOKENS
        if budget < 0 and prompt:
            break
        role: Role = "user" if message.role == Message.Role.USER else "assistant"
        prompt.append(ChatMessage(role, message.content))
    if system:
        prompt.append(ChatMessage("system", system))
    return tuple(reversed(prompt))


def _window(conversation: Conversation, *, question_id: int, limit: int) -> Sequence[Message]:
    """Return the newest `limit` usable messages up to the question, oldest first.

    ORDER BY id DESC LIMIT n: 0.5 ms whatever the length of the conversation (DESIGN 6). A few rows more are
    read than asked for, since earlier versions of answers are among them.
    """
    rows = (
        Message.objects.for_site(conversation.site_id)
        .filter(conversation_id=conversation.pk, role__in=["user", "assistant"], status__in=USABLE)
        .exclude(content="")
        .only("id", "role", "content", "reply_to_id", "version")
        .order_by("-id")
    )
    if conversation.context_cleared_at is not None:
        rows = rows.filter(created_at__gt=conversation.context_cleared_at)
    question = list(rows.filter(pk=question_id))
    # An answer to an earlier question may have been made after this one was asked: it still stands before it.
    before = [
        message for message in rows.filter(pk__gt=question_id).filter(reply_to_id__lt=question_id)[:limit]
    ] + list(rows.filter(pk__lt=question_id)[: limit + 8])
    newest: dict[int, Message] = {}
    for message in before:
        place = message.reply_to_id or message.pk
        if message.role == Message.Role.ASSISTANT:
            known = newest.get(-place)
            if known is None or known.version < message.version:
                newest[-place] = message
        else:
            newest[place] = message
    ordered = sorted(newest.values(), key=lambda message: (message.reply_to_id or message.pk, message.pk))
    return [*ordered[len(ordered) - (limit - 1) :], *question] if limit > 1 else question
