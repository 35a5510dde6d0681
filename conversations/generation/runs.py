"""A reply under way in this process, and its attempts: values that the engine's rooms hand to each other."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from conversations.generation.actions import Started
from conversations.generation.buffer import Ending, ReplyBuffer
from providers.errors import ProviderError
from providers.registry import EndpointConfig
from providers.types import Finished

Interruption = Literal["stop", "drain", "database", "fenced"]


@dataclass(slots=True)
class Attempt:
    """One try at one endpoint, with its times on this process's monotonic clock; 0 means not yet."""

    number: int
    endpoint: EndpointConfig | None = None
    called: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    closed: float = 0.0
    began_at: tuple[int, int] = (0, 0)
    finished: Finished | None = None
    error: ProviderError | None = None
    asked_tokens: int = 0
    """Our estimate of what the endpoint was sent."""
    unshown: list[str] = field(default_factory=list)
    """What it said that is not in the reply: a run-up, or thoughts about going on."""


@dataclass(slots=True)
class Run:
    """A reply under way in this process."""

    started: Started
    worker_id: int
    buffer: ReplyBuffer
    accepted: float
    attempt: Attempt
    request_id: str = ""
    task: asyncio.Task[None] | None = None
    has_begun: bool = False
    interruption: Interruption | None = None
    chars: int = 0
    spent: tuple[int, int] = (0, 0)
    """Tokens in and out of the attempts that are over, as the ledger has them."""
    untold: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """Ends of attempts that the ledger may not have yet, each with its moment."""
    card: dict[str, Any] | None = None
    """What the reply leans on, as far as it is known before the model has answered."""
    is_sealing: bool = False
    logged: float = field(default_factory=time.monotonic)

    def trace(self) -> dict[str, Any]:
        """Return what every log line about this reply says."""
        return {
            "reply": self.started.reply_id,
            "site": self.started.site_id,
            "chat": self.started.chat_id,
            "request_id": self.request_id,
        }


def ending_of_interruption(why: Interruption) -> Ending:
    """Return how a reply ends that was ended from outside."""
    if why == "stop":
        return Ending("stopped")
    return Ending("interrupted", error_code="interrupted")
