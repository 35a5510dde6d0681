"""A reply under way in this process, and its attempts: values that the engine's rooms hand to each other."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from conversations.context.tools import Toolbox
from conversations.generation.actions import Started
from conversations.generation.buffer import Ending, ReplyBuffer
from providers.errors import ProviderError
from providers.registry import EndpointConfig
from providers.types import ChatMessage, Finished

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
    has_tools: bool = False
    """Whether tools were on offer in this call."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """How the tools went that this call asked for, for the ledger."""


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
    toolbox: Toolbox | None = None
    round: int = 1
    """Counts the calls of the model that go on from tools; a second endpoint for the same call is no new round."""
    round_at: tuple[int, int] = (0, 0)
    round_chars: int = 0
    endpoint: EndpointConfig | None = None
    """Which endpoint answered the last round: the next one is its own first."""
    card: dict[str, Any] | None = None
    """What the reply leans on, as far as it is known before the model has answered."""
    tool_chars: int = 0
    """What tools have told the model in this reply."""
    has_searched: bool = False
    """What the site knows was searched for an endpoint that cannot do so by itself."""
    is_sealing: bool = False
    logged: float = field(default_factory=time.monotonic)

    @property
    def said_chars(self) -> int:
        """How much this round has said: after the first character another endpoint cannot simply take over."""
        return self.chars - self.round_chars

    def position(self) -> tuple[int, int]:
        """Return where the reply is, committed or not: characters of content and of reasoning."""
        content, reasoning = self.buffer.final_text()
        return len(content), len(reasoning)

    def next_round(self, prompt: tuple[ChatMessage, ...]) -> None:
        """Go on with this prompt, which holds all that was said and given so far."""
        self.started = replace(self.started, prompt=prompt)
        self.round += 1
        self.round_at = self.position()
        self.round_chars = self.chars

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
