"""Tool runs as rows: messages of the role `tool` that hang on their reply. Sync, run through `db.unit`.

A row is written before its tool runs, with the status it is left with should this process die: interrupted.
While the reply is under way that reads as "started". All writes are fenced like the engine's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection

from conversations.db import tenant
from conversations.generation.buffer import ToolNote

ARGUMENTS_KEEP_CHARS = 4_000
RESULT_KEEP_CHARS = 4_000

_BEGIN = """
WITH me AS (SELECT id FROM conversations_worker WHERE id = %(worker)s AND NOT is_dead FOR KEY SHARE),
     reply AS (SELECT message.id, message.conversation_id, message.channel
                 FROM conversations_message message JOIN me ON me.id = message.worker_id
                WHERE message.site_id = %(site)s AND message.id = %(reply)s AND message.status = 'streaming')
INSERT INTO conversations_message
       (site_id, conversation_id, role, content, reasoning, status, error_code, reply_to_id, version,
        channel, source_page, feedback, feedback_reason, created_at)
SELECT %(site)s, reply.conversation_id, 'tool', call.content, '', 'interrupted', 'interrupted', reply.id, 1,
       reply.channel, '', '', '', clock_timestamp()
  FROM reply, unnest(%(contents)s::text[]) WITH ORDINALITY AS call (content, place)
 ORDER BY call.place
RETURNING id
"""

_END = """
WITH me AS (SELECT id FROM conversations_worker WHERE id = %(worker)s AND NOT is_dead FOR KEY SHARE)
UPDATE conversations_message message
   SET content = %(content)s, status = %(status)s, error_code = %(problem)s, finished_at = clock_timestamp()
  FROM me WHERE message.site_id = %(site)s AND message.id = %(row)s AND message.role = 'tool'
"""


def content_of(
    name: str,
    arguments: str,
    at: tuple[int, int],
    *,
    outcome: str | None = None,
    ms: int | None = None,
    problem: str = "",
    result: str = "",
) -> str:
    """Return what the row of a tool run says, as JSON of bounded length.

    `at` is where in the reply the model asked: characters of content and of reasoning.
    """
    said: dict[str, Any] = {"name": name, "arguments": arguments[:ARGUMENTS_KEEP_CHARS], "at": list(at)}
    if outcome is not None:
        said |= {"outcome": outcome, "ms": ms, "problem": problem, "result": result[:RESULT_KEEP_CHARS]}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def begin_runs(site_id: int, reply_id: int, *, worker_id: int, contents: Sequence[str]) -> list[int]:
    """Return the ids of new rows in the order of the calls; none when this worker may no longer write."""
    with tenant(site_id), connection.cursor() as cursor:
        cursor.execute(
            _BEGIN, {"site": site_id, "reply": reply_id, "worker": worker_id, "contents": list(contents)}
        )
        return sorted(row[0] for row in cursor.fetchall())


def end_run(site_id: int, row_id: int, *, worker_id: int, content: str, is_done: bool, problem: str = "") -> bool:
    """Store how a tool run ended; return whether it is stored."""
    with tenant(site_id), connection.cursor() as cursor:
        cursor.execute(
            _END,
            {
                "site": site_id,
                "row": row_id,
                "worker": worker_id,
                "content": content,
                "status": "complete" if is_done else "failed",
                "problem": problem,
            },
        )
        return bool(cursor.rowcount)


def notes_of(rows: Iterable[tuple[int, str, str]], *, is_running: bool) -> list[ToolNote]:
    """Return what readers are told of stored runs, (id, status, content) each, in their order.

    `is_running` says whether their reply is: a run without an end is under way then, otherwise it came to nothing.
    """
    notes = []
    for row_id, status, content in rows:
        said = json.loads(content)
        if status == "interrupted":
            state = "started" if is_running else "failed"
        else:
            state = "done" if status == "complete" else "failed"
        content_at, reasoning_at = said["at"]
        notes.append(
            ToolNote(row_id, (content_at, reasoning_at), said["name"], said["arguments"], state, said.get("ms"))  # type: ignore[arg-type]  # one of the three
        )
    return notes
