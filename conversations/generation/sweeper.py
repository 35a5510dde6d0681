"""What happens to the replies of a worker that is no more: sealed with all that was committed, as interrupted.

Sync, run through `db.unit` by any worker, and by any reader that meets such a reply. Nothing is restarted
by itself: the person decides.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from django.db import connection, transaction

from conversations.context.prompt import estimate_tokens
from conversations.generation import metrics
from conversations.models.conversations import PREVIEW_CHARS

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 5.0
"""A reply without a task is left alone for as long: its acceptance may be on its way."""
DELETED_KEEP_DAYS = 30
"""A conversation that its member deleted is hidden at once, and erased for good after this."""

HOUSEKEEPING = (
    "DELETE FROM conversations_idempotency_key WHERE created_at < clock_timestamp() - interval '24 hours'",
    "DELETE FROM conversations_stream_ticket WHERE expires_at < clock_timestamp()",
    "DELETE FROM conversations_login WHERE expires_at < clock_timestamp()",
    "DELETE FROM conversations_rate_window WHERE minute < floor(extract(epoch FROM clock_timestamp()) / 60) - 1",
    # As long as tenancy/internal.py says; rooms whose token has ended and that nobody ever entered.
    "DELETE FROM conversations_internal_nonce WHERE seen_at < clock_timestamp() - interval '900 seconds'",
    "DELETE FROM conversations_voice_session WHERE status = 'created'"
    " AND created_at < clock_timestamp() - interval '2 days'",
    "DELETE FROM conversations_worker_log log WHERE NOT EXISTS"
    " (SELECT 1 FROM conversations_worker worker WHERE worker.id = log.worker_id)",
    "DELETE FROM conversations_reply_chunk chunk USING conversations_message message"
    " WHERE message.id = chunk.message_id AND message.status <> 'streaming'",
    "DELETE FROM conversations_worker worker WHERE is_dead AND seen_at < clock_timestamp() - interval '1 day'"
    " AND NOT EXISTS (SELECT 1 FROM conversations_message message"
    "                  WHERE message.worker_id = worker.id AND message.status = 'streaming')",
)


def fold_entries(
    chunks: Iterable[tuple[int, str, int, str]], entries: Iterable[tuple[int, str, int, str]]
) -> tuple[str, str]:
    """Return content and reasoning put together from chunks and log entries, both in order of offset.

    Stretches may overlap; a gap cannot be, since whatever is committed was committed in order, but should
    the storage have lost something, what follows the hole is left out rather than glued to the wrong place.
    """
    content = reasoning = ""
    for content_offset, text, reasoning_offset, thought in (*chunks, *entries):
        if content_offset <= len(content):
            content += text[len(content) - content_offset :]
        if reasoning_offset <= len(reasoning):
            reasoning += thought[len(reasoning) - reasoning_offset :]
    return content, reasoning


def sweep_worker(worker_id: int, *, lease_seconds: float) -> int:
    """Declare a stale worker dead and seal its replies; return how many this call sealed.

    The worker's row is taken FOR UPDATE: its writer waits, and is fenced when it may go on. A worker that
    showed a sign of life in the meantime is left alone. One that was declared dead before is finished.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT is_dead OR seen_at < clock_timestamp() - %s * interval '1 second'"
            "  FROM conversations_worker WHERE id = %s FOR UPDATE",
            [lease_seconds, worker_id],
        )
        row = cursor.fetchone()
        if row is not None and not row[0]:
            return 0
        cursor.execute("UPDATE conversations_worker SET is_dead = true WHERE id = %s", [worker_id])
        sealed = _seal_replies(cursor, worker_id)
        cursor.execute("DELETE FROM conversations_worker_log WHERE worker_id = %s", [worker_id])
    metrics.SWEPT.inc(sealed)
    log.warning("worker_swept", extra={"worker": worker_id, "replies": sealed})
    return sealed


def sweep_orphans(*, lease_seconds: float) -> int:
    """Seal the replies whose worker is dead or gone; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT message.worker_id FROM conversations_message message"
            " WHERE message.status = 'streaming' AND NOT EXISTS (SELECT 1 FROM conversations_worker worker"
            "       WHERE worker.id = message.worker_id AND NOT worker.is_dead)"
        )
        owners = [row[0] for row in cursor.fetchall()]
    return sum(sweep_worker(owner, lease_seconds=lease_seconds) for owner in owners)


def seal_abandoned(worker_id: int, running: Callable[[], list[int] | None]) -> bool:
    """Seal replies that say they are ours and are not: begun, and lost before their task was made.

    `running` gives those that have a task, None when it cannot be said; then nothing is done, and the answer
    is False. It is asked at the last moment, so that a reply made since is too young to be taken for abandoned.
    """
    known = running()
    if known is None:
        return False
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM conversations_worker WHERE id = %s AND NOT is_dead FOR KEY SHARE", [worker_id]
        )
        if cursor.fetchone() is not None:
            _seal_replies(cursor, worker_id, keep=known, older_than_seconds=ABANDONED_SECONDS)
    return True


def keep_house() -> None:
    """Forget what has run out: keys, tickets, sign-ins, counters, traces of workers long dead, deleted chats."""
    for statement in HOUSEKEEPING:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    erase_conversations()


def erase_conversations(*, at_most: int = 200) -> int:
    """Erase conversations whose time is over, with all that hangs on them; return how many.

    Those their member deleted, after DELETED_KEEP_DAYS; and, in sites with `retention_days`, those that
    nobody has touched for as long. A few at a time: the rest waits for the next round.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT chat.id, chat.site_id FROM conversations_conversation chat"
            "  JOIN conversations_site site ON site.id = chat.site_id"
            " WHERE (chat.deleted_at < clock_timestamp() - %s * interval '1 day'"
            "        OR (coalesce((site.settings->>'retention_days')::int, 0) > 0 AND chat.last_message_at <"
            "            clock_timestamp() - (site.settings->>'retention_days')::int * interval '1 day'))"
            "   AND NOT EXISTS (SELECT 1 FROM conversations_message message"
            "                    WHERE message.conversation_id = chat.id AND message.status = 'streaming')"
            " LIMIT %s FOR UPDATE OF chat SKIP LOCKED",
            [DELETED_KEEP_DAYS, at_most],
        )
        chats = cursor.fetchall()
        for chat_id, site_id in chats:
            cursor.execute("SELECT set_config('app.site_id', %s, true)", [str(site_id)])
            # Messages, ledger and chunks go with it: the keys of migration 0002 cascade in the database.
            cursor.execute("DELETE FROM conversations_conversation WHERE id = %s", [chat_id])
    if chats:
        log.info("conversations_erased", extra={"conversations": len(chats)})
    return len(chats)


def _seal_replies(
    cursor: Any, worker_id: int, *, keep: list[int] | None = None, older_than_seconds: float = 0
) -> int:
    cursor.execute(
        "SELECT id, conversation_id, site_id FROM conversations_message"
        " WHERE worker_id = %s AND status = 'streaming' AND NOT (id = ANY(%s))"
        "   AND created_at <= clock_timestamp() - %s * interval '1 second'",
        [worker_id, keep or [], older_than_seconds],
    )
    replies = cursor.fetchall()
    if not replies:
        return 0
    ids = [reply[0] for reply in replies]
    chunks: dict[int, list[tuple[int, str, int, str]]] = defaultdict(list)
    cursor.execute(
        "SELECT message_id, content_offset, content, reasoning_offset, reasoning FROM conversations_reply_chunk"
        " WHERE message_id = ANY(%s) ORDER BY message_id, content_offset, reasoning_offset",
        [ids],
    )
    for message_id, *chunk in cursor.fetchall():
        chunks[message_id].append(tuple(chunk))
    entries = _log_entries(cursor, worker_id, frozenset(ids))
    sealed = 0
    for message_id, conversation_id, site_id in replies:
        content, reasoning = fold_entries(chunks[message_id], entries[message_id])
        cursor.execute("SELECT set_config('app.site_id', %s, true)", [str(site_id)])
        cursor.execute(
            "UPDATE conversations_message SET content = %s, reasoning = %s, status = 'interrupted',"
            " error_code = 'interrupted', finished_at = clock_timestamp() WHERE id = %s AND status = 'streaming'",
            [content, reasoning, message_id],
        )
        sealed += cursor.rowcount
        cursor.execute(
            "UPDATE conversations_conversation SET last_message_at = clock_timestamp(),"
            " last_message = coalesce(nullif(%s, ''), last_message) WHERE id = %s",
            [content[:PREVIEW_CHARS], conversation_id],
        )
        cursor.execute(
            "SELECT id, continued_from FROM conversations_generation WHERE message_id = %s AND status = 'running'",
            [message_id],
        )
        for attempt_id, continued_from in cursor.fetchall():
            cursor.execute(
                "UPDATE conversations_generation SET status = 'interrupted', error_code = 'interrupted',"
                " output_tokens = %s, tokens_source = 'estimated', finished_at = clock_timestamp() WHERE id = %s",
                [estimate_tokens(content[continued_from:]), attempt_id],
            )
        cursor.execute("DELETE FROM conversations_reply_chunk WHERE message_id = %s", [message_id])
        log.warning(
            "reply_swept",
            extra={"reply": message_id, "site": site_id, "worker": worker_id, "saved_chars": len(content)},
        )
    return sealed


def _log_entries(
    cursor: Any, worker_id: int, wanted: frozenset[int]
) -> dict[int, list[tuple[int, str, int, str]]]:
    entries: dict[int, list[tuple[int, str, int, str]]] = defaultdict(list)
    cursor.execute(
        "SELECT payload FROM conversations_worker_log WHERE worker_id = %s ORDER BY sequence", [worker_id]
    )
    for (payload,) in cursor.fetchall():
        for entry in orjson.loads(payload):
            if entry[0] in wanted:
                reasoning_offset, reasoning = (entry[3], entry[4]) if len(entry) == 5 else (0, "")
                entries[entry[0]].append((entry[1], entry[2], reasoning_offset, reasoning))
    return entries
