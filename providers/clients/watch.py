"""The clocks of one attempt, on one timer."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from providers.base import Clocks

# Once the finish reason is known only usage and [DONE] can follow, and not every server sends them.
_AFTER_FINISH_SECONDS = 5.0


class TotalTimeOut(Exception):
    """The whole-reply clock ran out while the consumer was not pulling."""


class Watch:
    """The clocks of one attempt on one timer that is re-armed when it fires early, never per token.

    The task that reads is cancelled when a clock runs out, and timed_out() tells that cancellation from any
    other, in the manner of asyncio.timeout().
    """

    __slots__ = (
        "_cancelling",
        "_clocks",
        "_end",
        "_limit",
        "_loop",
        "_phase",
        "_since",
        "_task",
        "_timer",
        "expired",
    )

    def __init__(self, clocks: Clocks) -> None:
        self._loop = asyncio.get_running_loop()
        self._clocks = clocks
        self._since = self._loop.time()
        self._end = self._since + clocks.total_seconds
        self._phase: Literal["first", "idle"] = "first"
        self._limit = clocks.first_payload_seconds
        self._task: asyncio.Task[Any] | None = None  # the reader, while it reads
        self._cancelling = 0
        self.expired: Literal["first", "idle", "total"] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arm(min(self._since + self._limit, self._end))

    def begin(self) -> None:
        """Say that this task waits for the provider from now on."""
        if self.expired is not None:
            raise TotalTimeOut
        task = self._task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()

    def payload(self) -> None:
        """Say that data came."""
        self._since = self._loop.time()
        if self._phase == "first":
            self.limit("idle", self._clocks.idle_seconds)

    def finishing(self) -> None:
        """Say that only the formalities of the end are missing."""
        self.limit("idle", min(self._clocks.idle_seconds, _AFTER_FINISH_SECONDS))

    def limit(self, phase: Literal["first", "idle"], seconds: float) -> None:
        """Set the clock that runs now."""
        self._phase, self._limit = phase, seconds
        deadline = min(self._since + seconds, self._end)
        if self._timer is not None and deadline < self._timer.when():
            self._timer.cancel()
            self._arm(deadline)

    def pause(self) -> None:
        """Say that the consumer has the turn."""
        self._task = None

    def resume(self) -> None:
        """Say that the consumer came back."""
        self._since = self._loop.time()

    def stop(self) -> None:
        """Stop all clocks."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def timed_out(self) -> Literal["first", "idle", "total"] | None:
        """Return the clock that caused the CancelledError just caught, None when somebody else did."""
        if self.expired is None or self._task is None:
            return None
        return self.expired if self._task.uncancel() <= self._cancelling else None

    def _arm(self, deadline: float) -> None:
        self._timer = self._loop.call_at(deadline, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if now >= self._end:
            self.expired = "total"
        elif self._task is None:
            self._arm(min(now + self._limit, self._end))
            return
        elif now >= self._since + self._limit:
            self.expired = self._phase
        else:
            self._arm(min(self._since + self._limit, self._end))
            return
        self._timer = None
        if self._task is not None:
            self._task.cancel()
