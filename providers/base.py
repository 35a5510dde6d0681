"""The one thing every provider client is: a stream of deltas that ends once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from providers.types import ChatRequest, StreamItem


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

    def stream(self, request: ChatRequest) -> AsyncGenerator[StreamItem, None]:
        """Yield Delta items as they arrive, then exactly one Finished; or raise a ProviderError.

        aclose(), or cancelling the task that iterates, closes the upstream socket at once. While the
        consumer does not pull, reading from the socket pauses. Deltas already yielded stay good when an
        error follows; a caller may try another endpoint only when none was yielded.
        """
        ...
