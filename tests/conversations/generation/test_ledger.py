"""The ledger of a reply that several endpoints wrote is whole, whatever comes between its attempts."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from conversations.context.prompt import estimate_tokens
from conversations.generation import sweeper
from conversations.generation.engine import Engine
from conversations.generation.store import Store
from conversations.models import Worker
from tests.conversations.generation.conftest import claims_of, in_unit, new_chat, running_engines, send
from tests.conversations.generation.test_engine import kill, stored
from tests.conversations.generation.test_midstream import ledger, play
from tests.world import World

BEGUN, REST = "从前有座山，山里有座庙，", "庙里有个老和尚。"


class Hanging(Store):
    """A store whose answer to the end of an attempt does not come, before or after it was committed."""

    def __init__(self, *, is_committed: bool) -> None:
        super().__init__()
        self.is_committed = is_committed
        self.is_asked = asyncio.Event()

    async def next_attempt(self, site_id: int, values: dict[str, Any]) -> None:
        """Hang the first time; then do as always."""
        is_first = not self.is_asked.is_set()
        if self.is_committed or not is_first:
            await super().next_attempt(site_id, values)
        self.is_asked.set()
        if is_first:
            await asyncio.sleep(30)


class Failing(Store):
    """A store whose connection breaks at the end of an attempt, before or after it was committed."""

    def __init__(self, *, is_committed: bool) -> None:
        super().__init__()
        self.is_committed, self.times = is_committed, 0

    async def next_attempt(self, site_id: int, values: dict[str, Any]) -> None:
        """Break the first time; then do as always."""
        self.times += 1
        if self.is_committed or self.times > 1:
            await super().next_attempt(site_id, values)
        if self.times == 1:
            raise psycopg.OperationalError


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_stop_between_two_attempts_leaves_no_row_running(people: World, is_committed: bool) -> None:
    await in_unit(play, people, "on", 甲=[{"text": BEGUN}, {"cut": True}], 乙=[{"text": REST}])
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    store = Hanging(is_committed=is_committed)
    engine = Engine(store=store)
    try:
        await engine.started()
        started = await send(engine, claims, chat, "讲个故事")
        await store.is_asked.wait()
        await engine.stop(started)
    finally:
        await engine.close()
    reply = await in_unit(stored, started.reply_id)
    assert (reply.content, reply.status) == (BEGUN, "stopped")
    rows = await ledger(reply, "endpoint_name", "status", "continued_from", "output_tokens")
    assert rows == [("甲", "failed", 0, estimate_tokens(BEGUN)), ("", "stopped", len(BEGUN), 0)]


@pytest.mark.parametrize("is_committed", [True, False])
async def test_an_attempt_that_the_database_did_not_note_is_noted_with_the_end(
    people: World, is_committed: bool
) -> None:
    scripts = {"甲": [{"cut": True}], "乙": [{"text": BEGUN}, {"cut": True}], "丙": [{"text": REST}]}
    await in_unit(play, people, "on", **scripts)
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    engine = Engine(store=Failing(is_committed=is_committed))
    try:
        await engine.started()
        started = await send(engine, claims, chat, "讲个故事")
        await engine.ended(started.reply_id)
    finally:
        await engine.close()
    reply = await in_unit(stored, started.reply_id)
    assert (reply.content, reply.status) == (BEGUN + REST, "complete")
    rows = await ledger(reply, "endpoint_name", "status", "continued_from")
    assert rows == [("甲", "failed", 0), ("乙", "failed", 0), ("丙", "complete", len(BEGUN))]
    assert all(closed is not None for (closed,) in await ledger(reply, "upstream_closed_at"))


async def test_a_stop_in_the_pause_before_the_retry_charges_nothing_twice(people: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("providers.pool.RETRY_PAUSE_SECONDS", 3)
    await in_unit(play, people, "on", 甲=[{"text": BEGUN}, {"cut": True}])
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "讲个故事")
        async with asyncio.timeout(5):
            while len(await ledger(await in_unit(stored, started.reply_id), "status")) < 2:
                await asyncio.sleep(0.02)
        await engine.stop(started)
    rows = await ledger(await in_unit(stored, started.reply_id), "status", "continued_from", "output_tokens")
    assert rows == [("failed", 0, estimate_tokens(BEGUN)), ("stopped", len(BEGUN), 0)]


async def test_a_swept_attempt_is_charged_for_its_own_part(people: World) -> None:
    scripts = {"甲": [{"text": BEGUN}, {"cut": True}], "乙": [{"text": REST}, {"sleep": 30}]}
    await in_unit(play, people, "on", **scripts)
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [victim, _other]:
        started = await send(victim, claims, chat, "讲个故事")
        async with victim.attach(started.reply_id) as buffer:
            while buffer.content.length < len(BEGUN + REST):
                await buffer.changed()
        kill(victim)
        await in_unit(Worker.objects.filter(pk=victim.worker_id).update, seen_at="2020-01-01T00:00Z")
        await in_unit(sweeper.sweep_worker, victim.worker_id, lease_seconds=5)
    reply = await in_unit(stored, started.reply_id)
    assert (reply.content, reply.status) == (BEGUN + REST, "interrupted")
    rows = await ledger(reply, "status", "output_tokens")
    assert rows == [("failed", estimate_tokens(BEGUN)), ("interrupted", estimate_tokens(REST))]
