"""Following replies that another worker makes: one query per owner and tenth of a second, however many.

A mirror begins with what is folded and logged, then tails the owner's log. Everything is placed by offset,
so reading something twice does no harm, and a hole is seen and read again from the chunks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import orjson

from conversations.generation.buffer import Ending, ReplyBuffer
from conversations.generation.store import DatabaseAway, Glance, Store, StoredReply
from conversations.generation.tool_rows import notes_of

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
EAGER_SECONDS = 0.01
"""A newly watched reply is read this soon, so that many that come at once share one look."""


def ending_of(stored: StoredReply) -> Ending:
    """Return how a stored reply ended."""
    return Ending(
        status=stored.status,  # type: ignore[arg-type]  # a check constraint holds the closed set
        finish_reason=stored.finish_reason,
        error_code=stored.error_code,
        usage=stored.usage,
        reference_card=stored.reference_card,
    )


def fill(buffer: ReplyBuffer, stored: StoredReply) -> None:
    """Make a buffer whole from the sealed row: what it has already shown is the beginning of that."""
    buffer.content.append(stored.content[buffer.content.length :])
    buffer.reasoning.append(stored.reasoning[buffer.reasoning.length :])
    buffer.end(ending_of(stored))


class OwnerTail:
    """Mirrors the watched replies of one other worker until they end or nobody watches."""

    def __init__(
        self,
        store: Store,
        owner: int,
        *,
        lease_seconds: float,
        on_owner_gone: Callable[[int], Awaitable[object]],
    ) -> None:
        self._store = store
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._on_owner_gone = on_owner_gone
        self._mirrors: dict[int, ReplyBuffer] = {}
        self._fresh: set[int] = set()
        self._readers: dict[int, int] = {}
        self._sequence = 0
        self._look = asyncio.Event()

    def watch(self, buffer: ReplyBuffer) -> ReplyBuffer:
        """Return the mirror of this reply, the given one unless there is one already; pair with `unwatch`."""
        message_id = buffer.message_id
        if message_id not in self._mirrors:
            self._mirrors[message_id] = buffer
            self._fresh.add(message_id)
            self._look.set()
        self._readers[message_id] = self._readers.get(message_id, 0) + 1
        return self._mirrors[message_id]

    def unwatch(self, message_id: int) -> None:
        """One reader less; the last one takes the mirror along."""
        left = self._readers.get(message_id, 0) - 1
        if left > 0:
            self._readers[message_id] = left
            return
        self._readers.pop(message_id, None)
        self._mirrors.pop(message_id, None)
        self._fresh.discard(message_id)

    def let_go(self) -> None:
        """Send every reader away: this process ends, and they go on reading on another worker."""
        for mirror in self._mirrors.values():
            mirror.lose()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to watch."""
        return not self._mirrors

    async def run(self) -> None:
        """Look until nothing is left to watch."""
        while self._mirrors:
            fresh = set(self._fresh)
            self._look.clear()
            try:
                async with asyncio.timeout(5):
                    glance = await self._store.glance(
                        worker=self._owner,
                        after=0 if fresh else self._sequence,
                        watched=list(self._mirrors),
                        fresh=list(fresh),
                        with_tools=[key for key, mirror in self._mirrors.items() if mirror.wants_tools],
                        lease=self._lease_seconds,
                    )
            except DatabaseAway as error:
                log.warning("glance_failed", extra={"owner": self._owner, "error": type(error).__name__})
                await asyncio.sleep(POLL_SECONDS)
                continue
            self._fresh -= fresh
            self._apply(glance, fresh)
            if glance.owner_is_gone and self._mirrors:
                await self._on_owner_gone(self._owner)
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._look.wait()
                await asyncio.sleep(EAGER_SECONDS)
            except TimeoutError:
                pass

    def _apply(self, glance: Glance, fresh: set[int]) -> None:
        if self._sequence < glance.folded_sequence and not fresh:
            # Rows were forgotten that we have not read: they are in the chunks.
            self._fresh.update(self._mirrors)
        for message_id, content_offset, content, reasoning_offset, reasoning in glance.chunks:
            buffer = self._mirrors.get(message_id)
            if buffer is not None and not buffer.apply(content_offset, content, reasoning_offset, reasoning):
                self._fresh.add(message_id)
        for sequence, payload in glance.log:
            self._sequence = max(self._sequence, sequence)
            for entry in orjson.loads(payload):
                buffer = self._mirrors.get(entry[0])
                if buffer is None:
                    continue
                reasoning_offset, reasoning = (entry[3], entry[4]) if len(entry) == 5 else (0, "")
                if not buffer.apply(entry[1], entry[2], reasoning_offset, reasoning):
                    self._fresh.add(entry[0])
        self._sequence = max(self._sequence, glance.folded_sequence)
        for message_id in fresh:
            if (mirror := self._mirrors.get(message_id)) is not None and message_id not in self._fresh:
                mirror.is_loaded = True
                mirror.wake()
        ended = {stored.message_id for stored in glance.ended}
        for message_id, row_id, status, content in glance.tools:
            if (mirror := self._mirrors.get(message_id)) is not None:
                for note in notes_of([(row_id, status, content)], is_running=message_id not in ended):
                    mirror.note_tool(note)
        for message_id in glance.gone:
            self._fresh.discard(message_id)
            if (mirror := self._mirrors.pop(message_id, None)) is not None:
                mirror.lose()
        for stored in glance.ended:
            buffer = self._mirrors.pop(stored.message_id, None)
            self._fresh.discard(stored.message_id)
            if buffer is not None:
                fill(buffer, stored)
