"""A fake provider process for this room's tests, and one way to ask it something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pytest
import uvloop

from providers.base import Clocks
from providers.clients.openai_chat import OpenAIChatProvider
from providers.errors import ProviderError
from providers.http import HttpPolicy, new_client
from providers.types import ChatMessage, ChatRequest, Delta, Finished
from tests.fakes.provider import FakeProvider, start_fake_provider

Transport = Literal["fast", "stock"]


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeProvider]:
    """One fake provider process for all tests."""
    with start_fake_provider() as running:
        yield running


@pytest.fixture(params=["fast", "stock"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Each of the two transports: both pass the same tests."""
    return cast(Transport, request.param)


@dataclass
class Answer:
    """What a stream gave: its deltas, and exactly one end."""

    deltas: list[Delta] = field(default_factory=list)
    finished: Finished | None = None
    error: ProviderError | None = None
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """All text."""
        return "".join(delta.text for delta in self.deltas)

    @property
    def reasoning(self) -> str:
        """All reasoning."""
        return "".join(delta.reasoning for delta in self.deltas)


async def collect(provider: Any, question: str, *, is_tapped: bool = False, **request: Any) -> Answer:
    """Return everything that a provider streams for this question; tapped, it also comes without waiting."""
    answer = Answer()
    began = time.monotonic()

    def tap(text: str, reasoning: str) -> bool:
        answer.deltas.append(Delta(text, reasoning))
        return len(answer.deltas) % 3 != 0  # now and then ask for a pause, after which it goes on

    asked = ChatRequest((ChatMessage("user", question),), **request)
    stream = provider.stream(asked, tap=tap) if is_tapped else provider.stream(asked)
    async with aclosing(stream):
        try:
            async for item in stream:
                assert answer.finished is None, "nothing follows Finished"
                if isinstance(item, Finished):
                    answer.finished = item
                elif item.text or item.reasoning:
                    answer.deltas.append(item)
                else:
                    assert is_tapped
        except ProviderError as error:
            answer.error = error
    answer.seconds = time.monotonic() - began
    assert (answer.finished is None) != (answer.error is None)
    return answer


@pytest.fixture(params=["fast", "fast, tapped", "stock", "stock, tapped"])
def ask(fake: FakeProvider, request: pytest.FixtureRequest) -> Callable[..., Answer]:
    """Return a function that asks the fake provider one question, over both transports, with a tap and without."""
    transport = cast(Transport, request.param.partition(",")[0])
    is_tapped = "tapped" in request.param

    def ask_fake(question: str, **clocks: Any) -> Answer:
        async def go() -> Answer:
            policy = HttpPolicy(allowed_addresses=frozenset({fake.address}), transport=transport)
            async with new_client(policy) as client:
                provider = OpenAIChatProvider(
                    base_url=fake.base_url, model="fake", clocks=Clocks(**clocks), client=lambda: client
                )
                return await collect(provider, question, is_tapped=is_tapped)

        # The fast transport on the loop of production, here; on asyncio's own in test_http.py.
        return uvloop.run(go()) if transport == "fast" else asyncio.run(go())

    return ask_fake
