"""The hot statements of the engine, as SQL, on one small asynchronous pool.

Append, fold, seal, and what a watcher reads. All of them are fenced by the worker's own row: it is read
`FOR KEY SHARE`, while whoever declares a worker dead takes it `FOR UPDATE`. So after that declaration no
write of the old incarnation can succeed, and every write that did succeed is seen by the sweeper.
Everything else goes through the ORM and `db.unit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

import psycopg
from django.conf import settings
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from providers.models import REGISTRY_CHANNEL

Connection = psycopg.AsyncConnection[TupleRow]
DatabaseAway = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, TimeoutError)
"""What is raised when the server is not there, went away in the middle, or does not answer."""
ANSWER_SECONDS = 5.0
"""A statement of the engine that takes longer is given up and repeated: none of them is slow by nature."""

FENCE = "SELECT id FROM conversations_worker WHERE id = %(worker)s AND NOT is_dead FOR KEY SHARE"

APPEND = f"""
WITH me AS ({FENCE}),
     ins AS (INSERT INTO conversations_worker_log (worker_id, sequence, payload)
             SELECT id, %(sequence)s, %(payload)s FROM me
             ON CONFLICT DO NOTHING)
SELECT (SELECT count(*) FROM me),
       ARRAY(SELECT id FROM conversations_message
              WHERE worker_id = %(worker)s AND status = 'streaming' AND stop_requested_at IS NOT NULL)
"""

STOPS = """
SELECT (SELECT count(*) FROM conversations_worker WHERE id = %(worker)s AND NOT is_dead),
       ARRAY(SELECT id FROM conversations_message
              WHERE worker_id = %(worker)s AND status = 'streaming' AND stop_requested_at IS NOT NULL)
"""

FOLD = f"""
WITH me AS ({FENCE}),
     part AS (SELECT * FROM unnest(%(ids)s::bigint[], %(content_offsets)s::int[], %(contents)s::text[],
                                   %(reasoning_offsets)s::int[], %(reasonings)s::text[])
                         AS part (message_id, content_offset, content, reasoning_offset, reasoning)),
     live AS (SELECT message.id, message.site_id FROM conversations_message message
               WHERE message.id = ANY(%(ids)s) AND message.status = 'streaming' FOR SHARE),
     ins AS (INSERT INTO conversations_reply_chunk
                    (message_id, site_id, content_offset, content, reasoning_offset, reasoning)
             SELECT part.message_id, live.site_id, part.content_offset, part.content,
                    part.reasoning_offset, part.reasoning
               FROM part JOIN live ON live.id = part.message_id, me
             ON CONFLICT (message_id, content_offset, reasoning_offset)
                DO UPDATE SET content = excluded.content, reasoning = excluded.reasoning
                WHERE length(excluded.content) >= length(conversations_reply_chunk.content)
                  AND length(excluded.reasoning) >= length(conversations_reply_chunk.reasoning)),
     purge AS (DELETE FROM conversations_worker_log log USING me
                WHERE log.worker_id = me.id AND log.sequence <= %(purge)s)
UPDATE conversations_worker SET folded_sequence = greatest(folded_sequence, %(purge)s)
 WHERE id = (SELECT id FROM me)
"""

# The ledger's endpoint, unless it was deleted meanwhile: then the row keeps its name and model.
USED = "SELECT id FROM providers_endpoint WHERE id = %(endpoint)s FOR KEY SHARE"

SEAL = f"""
WITH me AS ({FENCE}),
     used AS ({USED}),
     sealed AS (
        UPDATE conversations_message message
           SET content = %(content)s, reasoning = %(reasoning)s, status = %(status)s,
               finish_reason = %(finish_reason)s, error_code = %(error_code)s, usage = %(usage)s,
               reference_card = %(reference_card)s, finished_at = clock_timestamp()
          FROM me
         WHERE message.id = %(message)s AND message.worker_id = me.id AND message.status = 'streaming'
     RETURNING message.id, message.conversation_id, message.finished_at),
     chat AS (
        UPDATE conversations_conversation chat
           SET last_message_at = sealed.finished_at,
               last_message = coalesce(nullif(%(preview)s, ''), chat.last_message)
          FROM sealed WHERE chat.id = sealed.conversation_id),
     ledger AS (
        UPDATE conversations_generation attempt
           SET status = %(attempt_status)s, error_code = %(attempt_error_code)s,
               finish_reason = coalesce(%(finish_reason)s, ''),
               vendor_request_id = %(request_id)s, input_tokens = %(input_tokens)s,
               output_tokens = %(output_tokens)s, tokens_source = %(tokens_source)s,
               cost_micros = %(cost_micros)s, tools = %(tools)s,
               prompt_messages = %(prompt_messages)s, prompt_chars = %(prompt_chars)s,
               continued_from = %(continued_from)s,
               endpoint_id = (SELECT id FROM used), endpoint_name = %(endpoint_name)s, model = %(model)s,
               credential = %(credential)s,
               called_at = clock_timestamp() - %(called_ago)s * interval '1 second',
               first_token_at = clock_timestamp() - %(first_token_ago)s * interval '1 second',
               last_token_at = clock_timestamp() - %(last_token_ago)s * interval '1 second',
               upstream_closed_at = clock_timestamp() - %(closed_ago)s * interval '1 second',
               finished_at = clock_timestamp()
          FROM sealed WHERE attempt.message_id = sealed.id AND attempt.attempt = %(attempt)s),
     chunks AS (
        DELETE FROM conversations_reply_chunk chunk USING sealed WHERE chunk.message_id = sealed.id)
SELECT (SELECT count(*) FROM me), (SELECT count(*) FROM sealed)
"""

NEXT_ATTEMPT = f"""
WITH me AS ({FENCE}),
     used AS ({USED}),
     ended AS (
        UPDATE conversations_generation attempt
           SET status = %(attempt_status)s, error_code = %(error_code)s, vendor_request_id = %(request_id)s,
               finish_reason = %(finish_reason)s, tokens_source = %(tokens_source)s, tools = %(tools)s,
               endpoint_id = (SELECT id FROM used), endpoint_name = %(endpoint_name)s, model = %(model)s,
               credential = %(credential)s,
               prompt_messages = %(prompt_messages)s, prompt_chars = %(prompt_chars)s,
               continued_from = %(continued_from)s,
               input_tokens = %(input_tokens)s, output_tokens = %(output_tokens)s, cost_micros = %(cost_micros)s,
               called_at = clock_timestamp() - %(called_ago)s * interval '1 second',
               first_token_at = clock_timestamp() - %(first_token_ago)s * interval '1 second',
               last_token_at = clock_timestamp() - %(last_token_ago)s * interval '1 second',
               upstream_closed_at = clock_timestamp() - %(closed_ago)s * interval '1 second',
               finished_at = clock_timestamp()
          FROM me WHERE attempt.message_id = %(message)s AND attempt.attempt = %(attempt)s
     RETURNING attempt.site_id,
               CASE WHEN %(attempt_status)s = 'complete' THEN clock_timestamp() ELSE attempt.queued_at END
                   AS queued_at)
INSERT INTO conversations_generation
       (site_id, message_id, attempt, endpoint_name, model, worker_id, status, error_code, finish_reason,
        vendor_request_id, prompt_messages, prompt_chars, continued_from, tokens_source, queued_at)
SELECT site_id, %(message)s, %(attempt)s + 1, '', '', %(worker)s, 'running', '', '', '', 0, 0, %(next_from)s,
       'estimated', queued_at
  FROM ended
ON CONFLICT (message_id, attempt) DO NOTHING
"""

# A vendor's session is good while it has seen everything: no reply has ended since that another endpoint gave, or
# that failed or was stopped; the context was not cleared, the endpoint not changed, and this is no second answer.
READ_VENDOR_SESSION = """
SELECT (SELECT kept.session
          FROM conversations_vendor_session kept
          JOIN providers_endpoint endpoint
            ON endpoint.id = kept.endpoint_id AND endpoint.updated_at < kept.updated_at
         WHERE kept.site_id = chat.site_id AND kept.conversation_id = chat.id AND kept.endpoint_id = %(endpoint)s
           AND kept.updated_at > coalesce(chat.context_cleared_at, '-infinity')
           AND kept.updated_at > coalesce(
               (SELECT coalesce(earlier.finished_at, 'infinity') FROM conversations_message earlier
                 WHERE earlier.site_id = chat.site_id AND earlier.conversation_id = chat.id
                   AND earlier.role = 'assistant' AND earlier.id < %(message)s
                 ORDER BY earlier.id DESC LIMIT 1), '-infinity')
           AND NOT EXISTS (SELECT 1 FROM conversations_message other
                            WHERE other.reply_to_id = %(question)s AND other.id <> %(message)s)),
       member.user_id, member.role, member.nickname
  FROM conversations_conversation chat
  JOIN conversations_membership member ON member.site_id = chat.site_id AND member.id = chat.membership_id
 WHERE chat.site_id = %(site)s AND chat.id = %(chat)s
"""

KEEP_VENDOR_SESSION = f"""
INSERT INTO conversations_vendor_session (site_id, conversation_id, endpoint_id, session, updated_at)
SELECT chat.site_id, chat.id, used.id, %(session)s, clock_timestamp()
  FROM conversations_conversation chat, ({USED}) used
 WHERE chat.site_id = %(site)s AND chat.id = %(chat)s
ON CONFLICT (site_id, conversation_id, endpoint_id)
   DO UPDATE SET session = excluded.session, updated_at = excluded.updated_at
"""

HEARD = """
SELECT coalesce(heard_chars, 0) FROM conversations_voice_turn WHERE site_id = %(site)s AND reply_id = %(message)s
"""

HEARTBEAT = """
WITH alive AS (
    UPDATE conversations_worker
       SET seen_at = clock_timestamp(), live_replies = %(live)s,
           registry_revision = greatest(registry_revision, %(revision)s),
           is_draining = %(draining)s, live_endpoints = %(endpoints)s
     WHERE id = %(worker)s AND NOT is_dead
 RETURNING id)
SELECT (SELECT count(*) FROM alive),
       ARRAY(SELECT id FROM conversations_worker
              WHERE id <> %(worker)s AND NOT is_dead
                AND seen_at < clock_timestamp() - %(lease)s * interval '1 second'),
       (SELECT revision FROM providers_registry_revision WHERE id = 1),
       EXISTS (SELECT 1 FROM conversations_message message
                WHERE message.status = 'streaming'
                  AND NOT EXISTS (SELECT 1 FROM conversations_worker worker
                                   WHERE worker.id = message.worker_id AND NOT worker.is_dead)),
       (SELECT count(*) FROM conversations_worker
         WHERE NOT is_dead AND NOT is_draining
           AND seen_at >= clock_timestamp() - %(lease)s * interval '1 second')
"""

REPLY = """
SELECT id, site_id, status, content, reasoning, finish_reason, error_code, usage, reference_card, worker_id,
       created_at
  FROM conversations_message WHERE id = ANY(%(ids)s)
"""
CHUNKS = """
SELECT message_id, content_offset, content, reasoning_offset, reasoning
  FROM conversations_reply_chunk WHERE message_id = ANY(%(ids)s)
 ORDER BY message_id, content_offset, reasoning_offset
"""
LOG = """
SELECT sequence, payload FROM conversations_worker_log
 WHERE worker_id = %(worker)s AND sequence > %(after)s ORDER BY sequence
"""
OWNER = """
SELECT is_dead, seen_at < clock_timestamp() - %(lease)s * interval '1 second', folded_sequence
  FROM conversations_worker WHERE id = %(worker)s
"""
# Those that are there no more, too: what was begun for half a spoken sentence is replaced.
ENDED = """
SELECT wanted.id, message.site_id, message.status, message.content, message.reasoning, message.finish_reason,
       message.error_code, message.usage, message.reference_card, message.worker_id, message.created_at
  FROM unnest(%(ids)s::bigint[]) AS wanted (id)
  LEFT JOIN conversations_message message ON message.id = wanted.id
 WHERE message.status IS DISTINCT FROM 'streaming'
"""
TOOLS = """
SELECT reply_to_id, id, status, content FROM conversations_message
 WHERE reply_to_id = ANY(%(ids)s) AND role = 'tool' ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply's row, as a watcher or a late reader needs it."""

    message_id: int
    site_id: int
    status: str
    content: str
    reasoning: str
    finish_reason: str | None
    error_code: str
    usage: dict[str, Any] | None
    reference_card: dict[str, Any] | None
    worker_id: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Glance:
    """What one look at another worker's log brought."""

    ended: list[StoredReply]
    gone: list[int]
    chunks: list[tuple[int, int, str, int, str]]
    log: list[tuple[int, str]]
    owner_is_gone: bool
    folded_sequence: int
    tools: list[tuple[int, int, str, str]]
    """Runs of tools: reply, id, status, content."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a heartbeat brought: whether we are alive, who is not, and what to do about it."""

    is_alive: bool
    stale_workers: list[int]
    registry_revision: int
    has_orphans: bool
    workers: int
    """How many workers take new replies, as the last heartbeats said."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a worker is told by NOTIFY: a reply to stop, or a new revision of the registry."""

    kind: Literal["stop", "revision"]
    number: int


def conninfo() -> str:
    """Return the connection string of the default database."""
    database = settings.DATABASES["default"]
    options = {name: value for name, value in database.get("OPTIONS", {}).items() if name != "pool"}
    return psycopg.conninfo.make_conninfo(
        "",
        dbname=database["NAME"],
        user=database["USER"] or None,
        password=database["PASSWORD"] or None,
        host=database["HOST"] or None,
        port=database["PORT"] or None,
        application_name="chat-engine",
        **options,
    )


class Store:
    """The engine's own door to PostgreSQL. One per process and event loop."""

    def __init__(self) -> None:
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo(),
            min_size=1,
            max_size=settings.DB_ENGINE_POOL_SIZE,
            open=False,
            timeout=2,
            reconnect_timeout=1,
            max_idle=300,
            kwargs={"autocommit": True, "connect_timeout": 5, "prepare_threshold": prepare_threshold(5)},
            # One round trip more for what is not hot, so that a restart of the server is not felt.
            check=AsyncConnectionPool.check_connection,
        )
        self._writer: Connection | None = None

    async def open(self) -> None:
        """Open the pool; returns at once, connections follow."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
        await self._pool.close()

    async def _writer_connection(self) -> Connection:
        if self._writer is None or self._writer.closed:
            self._writer = await psycopg.AsyncConnection.connect(
                conninfo(), autocommit=True, connect_timeout=5, prepare_threshold=prepare_threshold(1)
            )
        return self._writer

    async def append(self, *, worker: int, sequence: int, payload: str) -> tuple[bool, list[int]]:
        """Commit one log row; return whether this worker may still write, and which replies to stop.

        Repeating a sequence is harmless: the row that is there already holds the same payload.
        """
        return await self._write(APPEND, {"worker": worker, "sequence": sequence, "payload": payload})

    async def stops(self, *, worker: int) -> tuple[bool, list[int]]:
        """Return the same as `append` without writing: for times when no token comes."""
        return await self._write(STOPS, {"worker": worker})

    async def _write(self, statement: str, values: dict[str, Any]) -> tuple[bool, list[int]]:
        connection = await self._writer_connection()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                cursor = await connection.execute(statement, values)
                row = await cursor.fetchone()
        except BaseException:
            # Also when cancelled: a connection with an answer on its way is of no use to the next tick.
            self._writer = None
            await connection.close()
            raise
        assert row is not None
        return bool(row[0]), row[1]

    async def fold(self, *, worker: int, parts: Sequence[tuple[int, int, str, int, str]], purge: int) -> None:
        """Write the stretches into ReplyChunk and forget log rows up to `purge`, in one transaction."""
        columns: list[list[Any]] = [list(column) for column in zip(*parts, strict=True)] if parts else [[]] * 5
        ids, content_offsets, contents, reasoning_offsets, reasonings = columns
        async with self._pool.connection() as connection:
            await connection.execute(
                FOLD,
                {
                    "worker": worker,
                    "purge": purge,
                    "ids": ids,
                    "content_offsets": content_offsets,
                    "contents": contents,
                    "reasoning_offsets": reasoning_offsets,
                    "reasonings": reasonings,
                },
            )

    async def forget_chunks(self, message_ids: Sequence[int]) -> None:
        """Delete chunks of replies that were sealed while a fold was on its way."""
        async with self._pool.connection() as connection:
            await connection.execute(
                "DELETE FROM conversations_reply_chunk chunk USING conversations_message message"
                " WHERE message.id = chunk.message_id AND message.status <> 'streaming'"
                "   AND chunk.message_id = ANY(%s)",
                [list(message_ids)],
            )

    async def seal(self, site_id: int, values: dict[str, Any]) -> tuple[bool, bool]:
        """End a reply for good; return whether this worker may still write, and whether it was the sealer."""
        values = {
            **values,
            **{
                name: None if values[name] is None else Jsonb(values[name])
                for name in ("usage", "reference_card", "tools")
            },
        }
        async with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute("SELECT set_config('app.site_id', %s, true)", [str(site_id)])
            cursor = await connection.execute(SEAL, values)
            row = await cursor.fetchone()
        assert row is not None
        return bool(row[0]), bool(row[1])

    async def read_heard_chars(self, site_id: int, message_id: int) -> int:
        """Return how much of a spoken reply was delivered, as its callers on other workers have noted."""
        async with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute("SELECT set_config('app.site_id', %s, true)", [str(site_id)])
            cursor = await connection.execute(HEARD, {"site": site_id, "message": message_id})
            row = await cursor.fetchone()
        return 0 if row is None else int(row[0])

    async def read_vendor_session(self, site_id: int, values: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
        """Return the vendor's session for this reply, None when it has to begin one, and who the member is."""
        async with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute("SELECT set_config('app.site_id', %s, true)", [str(site_id)])
            cursor = await connection.execute(READ_VENDOR_SESSION, {**values, "site": site_id})
            row = await cursor.fetchone()
        if row is None:
            return None, {}
        session, user_id, role, nickname = row
        return session, {"User_ID": str(user_id), "Role": role, "Nickname": nickname}

    async def keep_vendor_session(self, site_id: int, values: dict[str, Any]) -> None:
        """Keep the vendor's session after a reply is sealed, unless the endpoint or the chat is gone."""
        async with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute("SELECT set_config('app.site_id', %s, true)", [str(site_id)])
            await connection.execute(KEEP_VENDOR_SESSION, {**values, "site": site_id})

    async def next_attempt(self, site_id: int, values: dict[str, Any]) -> None:
        """Close the ledger row of an attempt that failed, or asked for tools, and open the next one."""
        values = {**values, "tools": None if values["tools"] is None else Jsonb(values["tools"])}
        async with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute("SELECT set_config('app.site_id', %s, true)", [str(site_id)])
            await connection.execute(NEXT_ATTEMPT, values)

    async def register(self, *, host: str, pid: int) -> int:
        """Return the id of a new incarnation of this process."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "INSERT INTO conversations_worker (host, pid, started_at, seen_at, is_dead, is_draining,"
                " registry_revision, live_replies, live_endpoints, folded_sequence)"
                " VALUES (%s, %s, clock_timestamp(), clock_timestamp(), false, false, 0, 0, '{}', 0)"
                " RETURNING id",
                [host[:200], pid],
            )
            return int(cast(TupleRow, await cursor.fetchone())[0])

    async def has_outlived(self, *, lease: float) -> bool:
        """Return whether the server has been up for a whole lease: then an old sign of life means a death."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT pg_postmaster_start_time() < clock_timestamp() - %s * interval '1 second'", [lease]
            )
            return bool(cast(TupleRow, await cursor.fetchone())[0])

    async def heartbeat(
        self,
        *,
        worker: int,
        live: int,
        endpoints: dict[str, int],
        revision: int,
        draining: bool,
        lease: float,
    ) -> Pulse:
        """Renew the lease by the database's clock and return the state of the house.

        `endpoints` are the replies under way on each endpoint.
        """
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                HEARTBEAT,
                {
                    "worker": worker,
                    "live": live,
                    "endpoints": Jsonb(endpoints),
                    "revision": revision,
                    "draining": draining,
                    "lease": lease,
                },
            )
            row = cast(TupleRow, await cursor.fetchone())
        return Pulse(bool(row[0]), list(row[1]), int(row[2] or 0), bool(row[3]), max(1, int(row[4])))

    async def retire(self, worker: int) -> None:
        """Declare ourselves dead, at the end of an orderly shutdown."""
        async with self._pool.connection() as connection:
            await connection.execute("UPDATE conversations_worker SET is_dead = true WHERE id = %s", [worker])

    async def read_reply(self, message_id: int) -> StoredReply | None:
        """Return one reply as stored; a running one has no content in its row yet."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(REPLY, {"ids": [message_id]})
            row = await cursor.fetchone()
        return None if row is None else StoredReply(*row)

    async def read_tools(self, message_id: int) -> list[tuple[int, str, str]]:
        """Return the runs of tools of one reply as stored: id, status, content."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(TOOLS, {"ids": [message_id]})
            return [(row[1], row[2], row[3]) for row in await cursor.fetchall()]

    async def glance(
        self,
        *,
        worker: int,
        after: int,
        watched: Sequence[int],
        fresh: Sequence[int],
        with_tools: Sequence[int],
        lease: float,
    ) -> Glance:
        """Return, in one snapshot, what the owner logged since `after`, and which watched replies ended.

        For replies in `fresh` the folded chunks come along; the caller asks with `after=0` then. Tools come
        along only for replies whose readers ask for them.
        """
        async with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            owner = await connection.execute(OWNER, {"worker": worker, "lease": lease})
            ended = await connection.execute(ENDED, {"ids": list(watched)})
            log = await connection.execute(LOG, {"worker": worker, "after": after})
            chunks = await connection.execute(CHUNKS, {"ids": list(fresh)})
            tools = await connection.execute(TOOLS, {"ids": list(with_tools)}) if with_tools else None
            state = await owner.fetchone()
            ends = await ended.fetchall()
            return Glance(
                ended=[StoredReply(*row) for row in ends if row[2] is not None],
                gone=[row[0] for row in ends if row[2] is None],
                chunks=cast(Any, await chunks.fetchall()),
                log=cast(Any, await log.fetchall()),
                owner_is_gone=state is None or bool(state[0]) or bool(state[1]),
                folded_sequence=0 if state is None else int(state[2]),
                tools=cast(Any, await tools.fetchall()) if tools is not None else [],
            )

    async def request_stop(self, message_id: int, *, owner: int) -> None:
        """Ask the owner of a reply to stop it; it learns by NOTIFY, or by its own next write."""
        async with self._pool.connection() as connection:
            await connection.execute(
                "UPDATE conversations_message"
                "   SET stop_requested_at = coalesce(stop_requested_at, clock_timestamp())"
                " WHERE id = %s AND status = 'streaming'",
                [message_id],
            )
            await connection.execute("SELECT pg_notify(%s, %s)", [channel(owner), str(message_id)])

    async def listen(self, worker: int) -> AsyncGenerator[Notice, None]:
        """Yield what this worker is told: replies to stop, and that the registry has changed."""
        connection = await psycopg.AsyncConnection.connect(conninfo(), autocommit=True, connect_timeout=5)
        try:
            await connection.execute(f'LISTEN "{channel(worker)}"')
            await connection.execute(f'LISTEN "{REGISTRY_CHANNEL}"')
            async for notice in connection.notifies():
                if notice.payload.isdigit():
                    is_registry = notice.channel == REGISTRY_CHANNEL
                    yield Notice("revision" if is_registry else "stop", int(notice.payload))
        finally:
            await asyncio.shield(connection.close())


def prepare_threshold(uses: int) -> int | None:
    """Return after how many uses a statement is prepared; never behind a pooler that cannot LISTEN either."""
    return uses if settings.DB_LISTEN else None


def channel(worker: int) -> str:
    """Return the NOTIFY channel of one worker."""
    return f"chat_worker_{worker}"
