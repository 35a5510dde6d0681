"""One running reply in memory: what came from upstream, what of it is committed, and who waits for more.

Only committed text can be read here; that is the whole of "commit before deliver". Subscribers own a
position and nothing else: several tokens committed together are read as one stretch. All of this runs on
one event loop and takes no locks.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

CATCH_UP_SECONDS = 1.0
TerminalStatus = Literal["complete", "truncated", "stopped", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a reply ended, as it was sealed; everything the terminal event needs."""

    status: TerminalStatus
    finish_reason: str | None = None
    error_code: str = ""
    usage: dict[str, Any] | None = None
    reference_card: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolNote:
    """What readers who ask for it are told of one run of a tool; `at` is where in the reply it was asked for.

    The id is that of its row: it was stored before it can be read.
    """

    id: int
    at: tuple[int, int]
    name: str
    arguments: str
    status: Literal["started", "done", "failed"]
    ms: int | None = None


class Stretches:
    """A text that only grows, kept in the pieces it was committed in; offsets are code points."""

    __slots__ = ("_pieces", "_starts", "length")

    def __init__(self, text: str = "") -> None:
        self._pieces: list[str] = []
        self._starts: list[int] = []
        self.length = 0
        self.append(text)

    def append(self, text: str) -> None:
        """Add text at the end."""
        if text:
            self._starts.append(self.length)
            self._pieces.append(text)
            self.length += len(text)

    def read(self, offset: int) -> str:
        """Return everything from `offset` on."""
        if offset >= self.length:
            return ""
        if offset == self._starts[-1]:
            return self._pieces[-1]
        index = bisect_right(self._starts, offset) - 1
        first = self._pieces[index][offset - self._starts[index] :]
        return first if index == len(self._pieces) - 1 else first + "".join(self._pieces[index + 1 :])

    def whole(self) -> str:
        """Return the whole text, and keep it as one piece from now on."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
            self._starts = [0]
        return self._pieces[0] if self._pieces else ""


class ReplyBuffer:
    """The committed text of one reply, and the text on its way to the log.

    On the worker that generates, `add` takes deltas, the writer calls `take` and then `commit`. On another
    worker the same class mirrors the owner's log through `apply`, and nothing is ever pending.
    """

    __slots__ = (
        "_fresh",
        "_fresh_reasoning",
        "_taken",
        "_taken_reasoning",
        "_waiters",
        "content",
        "created_at",
        "ending",
        "first_commit_at",
        "is_loaded",
        "is_lost",
        "message_id",
        "on_fresh",
        "readers",
        "reasoning",
        "site_id",
        "tools",
        "waiting_chars",
        "wants_tools",
    )

    def __init__(self, message_id: int, *, site_id: int, created_at: str) -> None:
        self.message_id = message_id
        self.site_id = site_id
        self.created_at = created_at
        self.content = Stretches()
        self.reasoning = Stretches()
        self.ending: Ending | None = None
        self.is_loaded = True
        """False for a mirror that has not yet seen the owner's log: only then may a position be ahead of it."""
        self.is_lost = False
        """This process can no longer follow the reply: subscribers leave without a word, and resume."""
        self.first_commit_at = 0.0
        self.waiting_chars = 0
        """Code points that upstream has said and the log does not yet hold."""
        self.tools: dict[int, ToolNote] = {}
        """Runs of tools by id, in the order in which they were asked for."""
        self.wants_tools = False
        """A reader of this mirror wants to hear of tools."""
        self.on_fresh: Callable[[ReplyBuffer], None] | None = None
        self.readers: list[Callable[[], None]] = []
        """Called after each commit, in the commit itself: they must be quick and must not raise."""
        self._fresh: list[str] = []
        self._fresh_reasoning: list[str] = []
        self._taken = ""
        self._taken_reasoning = ""
        self._waiters: list[asyncio.Future[None]] = []

    # --- the writing side ---

    def add(self, text: str, reasoning: str = "") -> None:
        """Take what upstream said; it becomes readable when the writer has committed it."""
        if text:
            self._fresh.append(text)
        if reasoning:
            self._fresh_reasoning.append(reasoning)
        self.waiting_chars += len(text) + len(reasoning)
        if self.on_fresh is not None:
            self.on_fresh(self)

    def take(self) -> list[Any] | None:
        """Return the log entry for everything that came since the last commit, or None; WorkerLog says its shape.

        What was taken stays apart until `commit`, so that text arriving meanwhile is not taken for durable.
        """
        assert not self._taken and not self._taken_reasoning, "the last entry is still on its way"
        self._taken, self._taken_reasoning = self._join_fresh()
        if self._taken_reasoning:
            return [
                self.message_id,
                self.content.length,
                self._taken,
                self.reasoning.length,
                self._taken_reasoning,
            ]
        return [self.message_id, self.content.length, self._taken] if self._taken else None

    def commit(self) -> None:
        """Make what was taken readable: it is durable now."""
        if not self._taken and not self._taken_reasoning:
            return
        if not self.first_commit_at:
            self.first_commit_at = time.monotonic()
        self.waiting_chars -= len(self._taken) + len(self._taken_reasoning)
        self.content.append(self._taken)
        if self._taken_reasoning:
            self.reasoning.append(self._taken_reasoning)
        self._taken = self._taken_reasoning = ""
        self.wake()

    def final_text(self) -> tuple[str, str]:
        """Return the whole content and reasoning, committed or not: what the seal will store."""
        text, reasoning = "".join(self._fresh), "".join(self._fresh_reasoning)
        return (
            self.content.whole() + self._taken + text,
            self.reasoning.whole() + self._taken_reasoning + reasoning,
        )

    def end(self, ending: Ending, *, kept_chars: int | None = None) -> None:
        """The reply is sealed with everything in it, or that much: let subscribers read the rest and the end."""
        text, reasoning = self._join_fresh()
        text = self._taken + text
        self.content.append(text if kept_chars is None else text[: max(0, kept_chars - self.content.length)])
        self.reasoning.append(self._taken_reasoning + reasoning)
        self._taken = self._taken_reasoning = ""
        self.waiting_chars = 0
        self.ending = ending
        self.wake()

    def _join_fresh(self) -> tuple[str, str]:
        fresh, reasoning = self._fresh, ""
        text = fresh[0] if len(fresh) == 1 else "".join(fresh)
        fresh.clear()
        if self._fresh_reasoning:
            reasoning = "".join(self._fresh_reasoning)
            self._fresh_reasoning.clear()
        return text, reasoning

    def note_tool(self, note: ToolNote) -> None:
        """Let readers know of a run of a tool, or how it went; what is said twice wakes nobody."""
        if self.tools.get(note.id) != note:
            self.tools[note.id] = note
            self.wake()

    def lose(self) -> None:
        """Let every subscriber go without a terminal event; each resumes elsewhere by its position."""
        self.is_lost = True
        self.wake()

    # --- the mirroring side ---

    def apply(self, offset: int, text: str, reasoning_offset: int = 0, reasoning: str = "") -> bool:
        """Add what another worker committed; return False when something before it is missing."""
        if offset > self.content.length or reasoning_offset > self.reasoning.length:
            return False
        before = self.content.length + self.reasoning.length
        self.content.append(text[self.content.length - offset :])
        self.reasoning.append(reasoning[self.reasoning.length - reasoning_offset :])
        if self.content.length + self.reasoning.length > before:
            self.wake()
        return True

    # --- the reading side ---

    @property
    def is_followed(self) -> bool:
        """Whether anybody waits here right now."""
        return bool(self._waiters or self.readers)

    def wake(self) -> None:
        """Let everybody who waits look again."""
        if self.readers:
            for reader in tuple(self.readers):
                reader()
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def changed(self) -> asyncio.Future[None]:
        """Return a future that is done when there is more to read.

        Look first, then wait: nothing is missed, because nothing is committed between the two on one loop.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    async def loaded(self) -> None:
        """Return when positions can be judged: at once, but for a mirror before its first look."""
        while not self.is_loaded and not self.is_lost and self.ending is None:
            await self.changed()

    async def reaches(self, content: int, reasoning: int) -> bool:
        """Return whether the reply has come as far as these offsets.

        A reader may know more than this process for a moment: a mirror is a tenth of a second behind the
        owner's log, and the log is ahead of the owner until it has heard that a write is durable.
        """
        await self.loaded()
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_SECONDS):
                while not self._has(content, reasoning) and self.ending is None and not self.is_lost:
                    await self.changed()
        return self._has(content, reasoning)

    def _has(self, content: int, reasoning: int) -> bool:
        return content <= self.content.length and reasoning <= self.reasoning.length

    async def wait_ended(self) -> Ending | None:
        """Return how the reply ended, when it has; None if this process lost it."""
        while self.ending is None and not self.is_lost:
            await self.changed()
        return self.ending
