"""The one writer of this process: it commits the new text of all live replies as one log row per tick.

Self-clocked: the next row leaves when the last one is durable, at least one tick after it began; a first
token does not wait. Nothing else writes to the log, so sequences have no gaps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import orjson
import psycopg

from conversations.generation import metrics
from conversations.generation.buffer import ReplyBuffer
from conversations.generation.store import DatabaseAway, Store

log = logging.getLogger(__name__)

STOPS_SECONDS = 0.25
"""While replies run and none says a word, requests to stop are asked for this often."""
RETRY_SECONDS = 0.1


class Writer:
    """Commits what buffers hold, brings back requests to stop, and folds the log so that it stays short."""

    def __init__(
        self,
        store: Store,
        *,
        worker: int,
        tick_seconds: float,
        fold_seconds: float,
        on_stop: Callable[[int], None],
        on_fenced: Callable[[], None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._tick_seconds = tick_seconds
        self._fold_seconds = fold_seconds
        self._on_stop = on_stop
        self._on_fenced = on_fenced
        self._live: dict[int, ReplyBuffer] = {}
        self._dirty: dict[int, ReplyBuffer] = {}
        self._folded: dict[int, tuple[int, int]] = {}
        self._work = asyncio.Event()
        self._committed = asyncio.Event()
        self._has_first = False
        self._sequence = 0
        self._writing_since = 0.0

    def follow(self, buffer: ReplyBuffer) -> None:
        """Write for this reply from now on."""
        self._live[buffer.message_id] = buffer
        self._folded[buffer.message_id] = (0, 0)
        buffer.on_fresh = self._mark
        self._work.set()

    def leave(self, buffer: ReplyBuffer) -> None:
        """Write no more for this reply: it is sealed, or lost."""
        buffer.on_fresh = None
        self._live.pop(buffer.message_id, None)
        self._dirty.pop(buffer.message_id, None)
        self._folded.pop(buffer.message_id, None)

    @property
    def stalled_seconds(self) -> float:
        """For how long the write on its way has been waiting for the database."""
        return time.monotonic() - self._writing_since if self._writing_since else 0.0

    async def room(self, buffer: ReplyBuffer, most_chars: int) -> None:
        """Wait until the log has taken so much that at most `most_chars` are waiting."""
        while buffer.waiting_chars > most_chars and buffer.message_id in self._live:
            self._committed.clear()
            await self._committed.wait()

    def _mark(self, buffer: ReplyBuffer) -> None:
        if not self._dirty:
            self._work.set()
        self._dirty[buffer.message_id] = buffer
        if not buffer.first_commit_at and not self._has_first:
            self._has_first = True
            self._work.set()

    async def run(self) -> None:
        """Write until cancelled or fenced."""
        began = 0.0
        while True:
            await self._wait_for_work(began)
            began = time.monotonic()
            entries, taken = [], []
            dirty, self._dirty = self._dirty, {}
            self._has_first = False
            self._work.clear()
            for buffer in dirty.values():
                entry = buffer.take()
                if entry is not None:
                    entries.append(entry)
                    taken.append(buffer)
            if not entries and not self._live:
                continue
            self._writing_since = began
            is_alive, stops = await self._write(orjson.dumps(entries).decode() if entries else "")
            self._writing_since = 0.0
            if not is_alive:
                self._on_fenced()
                return
            for buffer in taken:
                buffer.commit()
            self._committed.set()
            if entries:
                metrics.TICK_SECONDS.observe(time.monotonic() - began)
            for message_id in stops:
                self._on_stop(message_id)

    async def _wait_for_work(self, began: float) -> None:
        loop = asyncio.get_running_loop()
        if not self._dirty:
            self._work.clear()
            timer = loop.call_later(STOPS_SECONDS, self._work.set) if self._live else None
            await self._work.wait()
            if timer is not None:
                timer.cancel()
        # The tick is a floor between beginnings; a first token cuts the wait short.
        while not self._has_first and (rest := began + self._tick_seconds - time.monotonic()) > 0:
            self._work.clear()
            timer = loop.call_later(rest, self._work.set)
            await self._work.wait()
            timer.cancel()

    async def _write(self, payload: str) -> tuple[bool, list[int]]:
        """Write one row, for as long as it takes; the row stays the same, so a repetition doubles nothing."""
        if payload:
            self._sequence += 1
        while True:
            try:
                if payload:
                    return await self._store.append(worker=self._worker, sequence=self._sequence, payload=payload)
                return await self._store.stops(worker=self._worker)
            except DatabaseAway as error:
                metrics.DATABASE_AWAY.inc()
                log.warning("log_write_failed", extra={"worker": self._worker, "error": type(error).__name__})
                await asyncio.sleep(RETRY_SECONDS)
            except psycopg.Error as error:
                # Not an outage: this row can never be written. Give up the incarnation rather than the rule.
                log.error("log_write_refused", extra={"worker": self._worker, "error": type(error).__name__})
                return False, []

    async def run_folds(self) -> None:
        """Fold every few seconds until cancelled: log rows become chunks per reply, and are forgotten.

        A row is forgotten one fold later than it is folded, so that a watcher that polls ten times a
        second has long read it.
        """
        folded_sequence = purged_sequence = 0
        while True:
            await asyncio.sleep(self._fold_seconds)
            sequence = self._sequence if not self._writing_since else self._sequence - 1
            parts, ends = [], {}
            for message_id, buffer in self._live.items():
                content_offset, reasoning_offset = self._folded[message_id]
                content, reasoning = buffer.content.read(content_offset), buffer.reasoning.read(reasoning_offset)
                if content or reasoning:
                    parts.append((message_id, content_offset, content, reasoning_offset, reasoning))
                    ends[message_id] = (buffer.content.length, buffer.reasoning.length)
            if not parts and purged_sequence >= sequence:
                continue
            try:
                async with asyncio.timeout(30):
                    await self._store.fold(worker=self._worker, parts=parts, purge=folded_sequence)
                    sealed_meanwhile = [message_id for message_id in ends if message_id not in self._live]
                    if sealed_meanwhile:
                        await self._store.forget_chunks(sealed_meanwhile)
            except (psycopg.Error, *DatabaseAway) as error:
                log.warning("fold_failed", extra={"worker": self._worker, "error": type(error).__name__})
                continue
            purged_sequence, folded_sequence = folded_sequence, sequence
            for message_id, end in ends.items():
                if message_id in self._folded:
                    self._folded[message_id] = end
