"""One answer to the platform: the reply relayed as it is committed, and what happens when its caller hangs up.

Knows nothing of HTTP: it is given a way to send, and is told when nobody is there any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from django.conf import settings

from conversations.errors import ChatError, NotFound
from conversations.events import FRAME_MAX_CHARS
from conversations.generation.actions import Started
from conversations.generation.buffer import Ending, ReplyBuffer
from conversations.generation.engine import engine
from conversations.generation.runs import Listener
from conversations.generation.store import DatabaseAway
from conversations.voice.callback import SpokenTurn
from conversations.voice.door import Room
from conversations.voice.turns import Superseded, begin_turn, hang_up

GRACE_SECONDS = 0.3
"""A call that was dropped before a word was delivered may come again at once: for as long its reply goes on."""
STALL_SECONDS = 60.0
"""A caller that takes nothing for this long has gone."""
LOST_SECONDS = 0.2
LOST_TRIES = 25

Say = Callable[[str], Awaitable[None]]


class Speech:
    """The answer to one call. `say` sends text, "" for a sign of life; what it has sent counts as heard."""

    def __init__(
        self,
        room: Room,
        turn: SpokenTurn,
        *,
        response_id: str,
        request_id: str,
        say: Say,
        gone: asyncio.Future[None],
    ) -> None:
        self._room = room
        self._turn = turn
        self._response_id = response_id
        self._request_id = request_id
        self._say = say
        self._gone = gone
        self._chars = 0
        self._task: asyncio.Task[object] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sent = time.monotonic()
        self._sending_since = 0.0
        self._is_beat_due = False
        self.started: Started | None = None

    async def run(self) -> Ending | None:
        """Return how the reply ended, when all of it has been said; None when its caller left before.

        Raises: ChatError, when no reply could be begun or this process has lost it.
        """
        # Work of the engine's own: a server may end our task when its client has gone.
        beginning = engine().detach(
            begin_turn(
                self._room,
                self._turn,
                response_id=self._response_id,
                request_id=self._request_id,
                is_gone=self._gone.done,
            )
        )
        try:
            self.started = started = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._leave_unheard)
            raise
        if (listener := engine().listener(started.reply_id)) is not None:
            listener.enter()
        ending: Ending | None = None
        try:
            ending = await self._relay(started)
            return ending
        finally:
            if ending is not None:
                if listener is not None:
                    listener.leave()
            else:
                await asyncio.shield(engine().detach(self._hang_up(started.reply_id, listener)))

    def _leave_unheard(self, beginning: asyncio.Task[Started]) -> None:
        if not beginning.cancelled() and beginning.exception() is None:
            engine().detach(self._hang_up(beginning.result().reply_id, None))

    async def _hang_up(self, reply_id: int, listener: Listener | None) -> None:
        try:
            await hang_up(
                self._room,
                reply_id,
                response_id=self._response_id,
                heard_chars=self._chars if self._turn.is_stream else 0,
                grace_seconds=GRACE_SECONDS,
            )
        finally:
            # Only now: a reply that has all been said waits for its listeners, and would end as if it was heard.
            if listener is not None:
                listener.leave()

    async def _relay(self, started: Started) -> Ending | None:
        """Say everything from the beginning; follow the reply when this process loses it.

        Raises: Superseded, when a longer turn has taken its place meanwhile.
        """
        self._task = asyncio.current_task()
        self._gone.add_done_callback(self._wake)
        timer = asyncio.get_running_loop().create_task(self._keep_time())
        try:
            for _ in range(LOST_TRIES):
                # The database may be away, or busy, for a moment: the turn is stored, and is found again.
                with suppress(*DatabaseAway):
                    async with engine().attach(started.reply_id) as buffer:
                        await self._follow(started, buffer)
                    if self._gone.done() or buffer.ending is not None:
                        return None if self._gone.done() else buffer.ending
                await asyncio.sleep(LOST_SECONDS)
        except NotFound as error:
            raise Superseded from error
        finally:
            timer.cancel()
            self._gone.remove_done_callback(self._wake)
        raise ChatError("interrupted")

    async def _follow(self, started: Started, buffer: ReplyBuffer) -> None:
        """Say what is committed as it comes, until the reply ends, is lost, or its caller goes."""
        await buffer.loaded()
        buffer.readers.append(self._wake)
        try:
            await self._say_all(buffer, engine().listener(started.reply_id))
        finally:
            buffer.readers.remove(self._wake)

    async def _say_all(self, buffer: ReplyBuffer, listener: Listener | None) -> None:
        while not self._gone.done():
            is_closed = listener is not None and listener.is_closed
            text = "" if is_closed else buffer.content.read(self._chars)[:FRAME_MAX_CHARS]
            if text:
                self._chars += len(text)
                if listener is not None and self._turn.is_stream:
                    listener.hear(self._chars)
                await self._send(text)
            elif buffer.ending is not None or buffer.is_lost:
                return
            elif self._is_beat_due:
                await self._send("")
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None

    def _wake(self, *_: object) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _send(self, text: str) -> None:
        self._sending_since = time.monotonic()
        await self._say(text)
        self._sent = time.monotonic()
        self._sending_since = 0.0
        self._is_beat_due = False

    async def _keep_time(self) -> None:
        """Show a sign of life when nothing is said for long, and let a caller go that takes nothing."""
        while True:
            await asyncio.sleep(settings.STREAM_HEARTBEAT_SECONDS / 2)
            now = time.monotonic()
            if self._sending_since and now - self._sending_since > STALL_SECONDS and self._task is not None:
                self._task.cancel()
            elif now - self._sent >= settings.STREAM_HEARTBEAT_SECONDS / 2:
                self._is_beat_due = True
                self._wake()
