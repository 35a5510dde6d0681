"""An engine per test, with a scripted endpoint that says what the question tells it to."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conversations import db
from conversations.generation import actions
from conversations.generation.actions import Send, Started
from conversations.generation.engine import Engine
from conversations.models import Conversation, Membership
from conversations.tenancy.tokens import Claims, read_access
from providers import registry
from tests.world import World, make_conversation, make_tokens, make_world


@pytest.fixture
def people(transactional_db: None) -> Iterator[World]:
    """The people of world.py, committed, so that other connections see them."""
    registry.forget()
    yield make_world()
    registry.forget()


def claims_of(membership: Membership) -> Claims:
    """Return the claims of a fresh sign-in."""
    return read_access(make_tokens(membership).access)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:
    """Run async tests on a loop of their own, with the fixtures they ask for."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@asynccontextmanager
async def running_engines(count: int = 1) -> Any:
    """Yield engines of as many workers, all in this process; closed at the end."""
    engines = [Engine() for _ in range(count)]
    try:
        for engine in engines:
            await engine.started()
        yield engines
    finally:
        for engine in engines:
            await engine.close()


async def send(engine: Engine, claims: Claims, chat: Conversation, content: str, **more: Any) -> Started:
    """Send a message as this member through this worker."""
    return await engine.accept(actions.start_reply, claims, Send(chat.pk, content, **more))


async def in_unit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run ORM code from an async test."""
    return await db.unit(function, *args, **kwargs)


async def eventually(condition: Callable[[], Awaitable[Any]], *, seconds: float = 5) -> Any:
    """Return the first true answer of the condition."""
    async with asyncio.timeout(seconds):
        while not (answer := await condition()):
            await asyncio.sleep(0.02)
        return answer


def new_chat(membership: Membership) -> Conversation:
    """Return an empty conversation."""
    return make_conversation(membership)
