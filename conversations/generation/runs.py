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


LISTEN_SECONDS = 60.0
"""A caller who takes nothing for this long, after all has been said, is not waited for."""


class Listener:
    """How far the callers have come for whom alone a reply is made: what they have not got, was not said."""

    __slots__ = ("_callers", "_moved", "heard_chars", "is_closed")

    def __init__(self) -> None:
        self.heard_chars = 0
        self.is_closed = False
        """The reply was broken off: nothing more of it may be sent."""
        self._callers: int | None = None
        self._moved = asyncio.Event()

    def enter(self) -> None:
        """One caller more: the same turn may come again while it is still being answered."""
        self._callers = (self._callers or 0) + 1

    def hear(self, chars: int) -> None:
        """A caller is being sent the reply up to here: said in the same step in which it is written."""
        self.heard_chars = max(self.heard_chars, chars)
        self._moved.set()

    def leave(self) -> None:
        """One caller less; when nobody is left, nobody is waited for."""
        self._callers = (self._callers or 1) - 1
        self._moved.set()

    async def reaches(self, chars: int) -> None:
        """Return when the reply has been delivered up to here, or nobody is there to take it."""
        while self.heard_chars < chars and self._callers != 0:
            self._moved.clear()
            try:
                async with asyncio.timeout(LISTEN_SECONDS):
                    await self._moved.wait()
            except TimeoutError:
                return


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
    listener: Listener | None = None
    kept_chars: int | None = None
    """How much of the reply is kept, of one that was broken off in mid-speech; None: everything."""
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

    def kept_text(self) -> tuple[str, str]:
        """Return content and reasoning as they are stored."""
        content, reasoning = self.buffer.final_text()
        return content[: self.kept_chars], reasoning


def ending_of_interruption(why: Interruption) -> Ending:
    """Return how a reply ends that was ended from outside."""
    if why == "stop":
        return Ending("stopped")
    return Ending("interrupted", error_code="interrupted")
