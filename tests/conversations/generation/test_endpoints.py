"""Endpoints that change while replies run: nobody is disturbed, every worker follows, limits and prices hold."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from conversations.api.models import access_model
from conversations.db import database_now
from conversations.generation import endpoints
from conversations.generation.engine import Engine
from conversations.generation.store import Store
from conversations.models import EndpointGrant, Generation, Message, Site, Worker
from providers import registry
from providers.models import Endpoint, EndpointRevision, restore_revision
from tests.conversations.generation.conftest import claims_of, eventually, in_unit, new_chat, running_engines, send
from tests.world import World

LONG = [{"text": "一"}, {"sleep": 0.2}, {"text": "二"}, {"sleep": 0.2}, {"text": "三"}]


def make(name: str = "甲", **fields: Any) -> Endpoint:
    return Endpoint.objects.create(**{"name": name, "dialect": "scripted", "params": {"script": LONG}, **fields})


def revision() -> int:
    return endpoints.standing().revision


def all_follow() -> bool:
    now = endpoints.standing()
    return now.followed_by == len(now.workers) > 0


def stored(message_id: int) -> tuple[str, str, str]:
    reply = Message.across_sites.get(pk=message_id)
    return reply.content, reply.status, reply.error_code


def attempt_of(message_id: int) -> Generation:
    return Generation.across_sites.get(message_id=message_id)


def in_use(endpoint_id: int) -> Callable[[], Awaitable[Any]]:
    async def ask() -> Any:
        return await in_unit(endpoints.live_replies_on, endpoint_id)

    return ask


@pytest.mark.parametrize("is_listening", [True, False])
async def test_every_worker_acknowledges_a_change(people: World, settings: Any, is_listening: bool) -> None:
    settings.DB_LISTEN = is_listening
    async with running_engines(2):
        await asyncio.sleep(0.1)  # until both listen
        waits = []
        for number in range(8 if is_listening else 2):
            await in_unit(make, f"第{number}个")
            changed = time.monotonic()
            await eventually(lambda: in_unit(all_follow))
            waits.append(time.monotonic() - changed)
    assert max(waits) < (1.0 if is_listening else 5.0), waits


async def test_a_reply_keeps_its_endpoint_through_changes_and_deletion(people: World) -> None:
    row = await in_unit(make, input_micros_per_million=1_000_000, output_micros_per_million=2_000_000)
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "你好")
        await in_unit(Endpoint.objects.filter(pk=row.pk).update, model="另一个", weight=7)
        await in_unit(row.delete)  # even past the rule that it is in use
        await eventually(lambda: in_unit(all_follow))
        await engine.ended(started.reply_id)
    assert await in_unit(stored, started.reply_id) == ("一二三", "complete", "")
    attempt = await in_unit(attempt_of, started.reply_id)
    assert (attempt.endpoint_id, attempt.endpoint_name, attempt.status) == (None, "甲", "complete")
    assert attempt.cost_micros == attempt.input_tokens + 2 * attempt.output_tokens > 0


async def test_an_endpoint_in_use_is_not_removed_and_drains_when_told_to(people: World) -> None:
    # Longer than a heartbeat, which tells who uses it.
    row = await in_unit(make, params={"script": [{"text": "一"}, {"sleep": 1.6}, {"text": "二三"}]})
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "你好")
        await eventually(in_use(row.pk))
        assert await in_unit(endpoints.remove_endpoint, row) == "in use"
        assert await in_unit(endpoints.remove_endpoint, row, drain=True) == "draining"
        await eventually(lambda: in_unit(all_follow))
        assert [endpoint.name for endpoint in registry.current().endpoints] == ["stand-in"]
        await engine.ended(started.reply_id)

        async def is_gone() -> bool:
            await in_unit(endpoints.remove_drained)
            return not await in_unit(Endpoint.objects.filter(pk=row.pk).exists)

        await eventually(is_gone)
    assert await in_unit(stored, started.reply_id) == ("一二三", "complete", "")


async def test_over_all_limits_a_reply_is_told_so(people: World) -> None:
    await in_unit(make, concurrency_max=1)
    claims = await in_unit(claims_of, people.alice)
    chats = [await in_unit(new_chat, people.alice) for _ in range(3)]
    async with running_engines() as [engine]:
        first, second, third = [await send(engine, claims, chat, "问题") for chat in chats]
        for started in (first, second, third):
            await engine.ended(started.reply_id)
        again = await send(engine, claims, await in_unit(new_chat, people.alice), "再问")
        await engine.ended(again.reply_id)
    for started in (second, third):
        assert await in_unit(stored, started.reply_id) == ("", "failed", "provider_rate_limited")
    for started in (first, again):
        assert await in_unit(stored, started.reply_id) == ("一二三", "complete", "")


async def test_without_the_stand_in_there_is_no_model(people: World, settings: Any) -> None:
    settings.STAND_IN = False
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "你好")
        await engine.ended(started.reply_id)
    assert await in_unit(stored, started.reply_id) == ("", "failed", "no_model")


async def test_a_site_without_the_stand_in_is_told_no_model_not_to_wait(people: World) -> None:
    await in_unit(Site.objects.filter(pk=people.acorn.pk).update, settings={"stand_in": False})
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "你好")
        await engine.ended(started.reply_id)
    assert (await in_unit(stored, started.reply_id))[2] == "no_model"


@pytest.mark.django_db
def test_only_workers_within_their_lease_count() -> None:
    now = database_now()
    for host, unseen, is_dead in (("新", 0, False), ("旧", 60, False), ("死", 0, True)):
        seen_at = now - timedelta(seconds=unseen)
        Worker.objects.create(host=host, pid=1, started_at=now, seen_at=seen_at, is_dead=is_dead)
    assert [worker.host for worker in endpoints.live_workers()] == ["新"]


def everything() -> list[dict[str, Any]]:
    return list(
        Endpoint.objects.order_by("pk").values("pk", "name", "model", "weight", "params", "api_key_encrypted")
    )


@pytest.mark.django_db
def test_an_earlier_revision_comes_back_whole_with_exchanged_names_and_keys() -> None:
    first, second = make("甲"), make("乙", weight=3)
    first.set_api_key("sk-canary-0123456789")
    first.save()
    before, then = everything(), revision()
    Endpoint.objects.filter(pk=first.pk).update(name="丙", params={"temperature": 1})
    Endpoint.objects.filter(pk=second.pk).update(name="甲")
    first.delete()
    make("乙", weight=9)
    later, later_revision = everything(), revision()
    assert restore_revision(then) == revision() == later_revision + 1
    assert everything() == before
    assert Endpoint.objects.get(name="甲").api_key().reveal() == "sk-canary-0123456789"
    restore_revision(later_revision)
    assert everything() == later


@pytest.mark.django_db
def test_twenty_revisions_are_kept_and_none_holds_a_key() -> None:
    row = make("甲")
    for number in range(25):
        row.set_api_key(f"sk-canary-{number:010}")
        row.save()
    kept = list(EndpointRevision.objects.values_list("revision", flat=True))
    assert kept == list(range(revision(), revision() - 20, -1))
    assert "canary" not in str(list(EndpointRevision.objects.values_list("endpoints", flat=True)))
    with pytest.raises(EndpointRevision.DoesNotExist):
        restore_revision(kept[-1] - 1)


async def test_a_change_and_a_restore_at_once_wait_for_each_other_in_one_order(people: World) -> None:
    row = await in_unit(make)
    then = await in_unit(revision)
    is_locked = threading.Event()

    def change() -> None:
        with transaction.atomic():
            found = access_model(str(row.pk), to_change=True)
            is_locked.set()
            time.sleep(0.3)
            found.weight = 7
            found.save()

    def restore() -> None:
        assert is_locked.wait(5)
        restore_revision(then)

    await asyncio.gather(in_unit(change), in_unit(restore))
    assert await in_unit(revision) == then + 2
    assert (await in_unit(Endpoint.objects.get)).weight == 1


async def test_a_removal_and_a_change_of_a_grant_at_once_wait_for_each_other_in_one_order(people: World) -> None:
    row = await in_unit(make)
    await in_unit(EndpointGrant.across_sites.create, site=people.acorn, endpoint=row)
    is_locked = threading.Event()

    def change() -> None:
        with transaction.atomic():
            access_model(str(row.pk), to_change=True)
            is_locked.set()
            time.sleep(0.3)
            EndpointGrant.across_sites.get().save()

    def remove() -> None:
        assert is_locked.wait(5)
        row.delete()

    await asyncio.gather(in_unit(change), in_unit(remove))
    assert not await in_unit(EndpointGrant.across_sites.exists)


class SlowLedger(Store):
    """A store of a busy database: closing the row of a failed attempt takes a while."""

    async def next_attempt(self, site_id: int, values: dict[str, Any]) -> None:
        """Do as always, later."""
        await asyncio.sleep(0.3)
        await super().next_attempt(site_id, values)


async def test_replies_that_move_on_together_keep_to_the_limit_of_the_next(people: World) -> None:
    await in_unit(make, "甲", priority=1, params={"script": [{"cut": True}]})
    await in_unit(make, "乙", priority=2, concurrency_max=1)
    await in_unit(make, "丙", priority=3)
    claims = await in_unit(claims_of, people.alice)
    chats = [await in_unit(new_chat, people.alice) for _ in range(4)]
    engine = Engine(store=SlowLedger())
    try:
        await engine.started()
        for started in [await send(engine, claims, chat, "问题") for chat in chats]:
            await engine.ended(started.reply_id)
    finally:
        await engine.close()
    complete = Generation.across_sites.filter(status="complete").values_list("endpoint_name", flat=True)
    assert sorted(await in_unit(list, complete)) == ["丙", "丙", "丙", "乙"]


async def test_a_late_heartbeat_does_not_take_back_an_acknowledged_revision(people: World) -> None:
    async with running_engines() as [engine]:
        for revision in (7, 6):  # the second one set out first, and was overtaken
            await engine.store.heartbeat(
                worker=engine.worker_id, live=0, endpoints={}, revision=revision, draining=False, lease=5
            )
            row = await in_unit(Worker.objects.get, pk=engine.worker_id)
            assert row.registry_revision == 7
