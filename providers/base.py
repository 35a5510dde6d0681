"""The one thing every provider client is: a stream of deltas that ends once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from providers.types import ChatRequest, StreamItem

Tap = Callable[[str, str], bool]
"""Takes text and reasoning as they arrive; returns whether more may come without a pause. Must not raise."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The limits of one attempt (DESIGN 7).

    first_payload and idle count events that carry data: keep-alive comments re-arm neither (WIRE 4.3).
    Time during which the consumer does not pull counts only against total_seconds.
    """

    connect_seconds: float = 10.0
    first_payload_seconds: float = 60.0
    idle_seconds: float = 60.0
    total_seconds: float = 1800.0
    line_max_bytes: int = 8 * 1024 * 1024


@runtime_checkable
class ChatProvider(Protocol):
    """A client for one endpoint. Stateless between calls; one instance serves many streams at once."""

    def stream(self, request: ChatRequest, *, tap: Tap | None = None) -> AsyncGenerator[StreamItem, None]:
        """Yield Delta items as they arrive, then exactly one Finished; or raise a ProviderError.

        aclose(), or cancelling the task that iterates, closes the upstream socket at once. While the
        consumer does not pull, reading from the socket pauses. Deltas already yielded stay good when an
        error follows; a caller may try another endpoint only when none was yielded.

        With a tap, a client that can hands it deltas as they arrive, without waking the task that iterates,
        and goes back to yielding (first an empty Delta) when the tap returns False. Others only yield.
        """
        ...
