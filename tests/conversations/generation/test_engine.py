"""The life of a reply, against real PostgreSQL: begun, read, stopped, lost, swept and found again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from django.db import OperationalError

from conversations.db import database_now
from conversations.errors import Conflict, Invalid, NotAllowed, NotFound, Unavailable
from conversations.generation import actions, sweeper
from conversations.generation.actions import Send, Started
from conversations.generation.engine import Engine
from conversations.generation.store import conninfo
from conversations.models import Generation, IdempotencyKey, Message, ReplyChunk, Site, Worker, WorkerLog
from providers.models import Endpoint
from tests.conversations.generation.conftest import claims_of, eventually, in_unit, new_chat, running_engines, send
from tests.world import World


def stored(message_id: int) -> Message:
    return Message.across_sites.get(pk=message_id)


async def read_to_end(engine: Engine, message_id: int) -> tuple[str, str]:
    """Return the text a subscriber reads, piece by piece, and the status it ends with."""
    pieces, position = [], 0
    async with engine.attach(message_id) as buffer:
        while True:
            piece = buffer.content.read(position)
            if piece:
                pieces.append(piece)
                position += len(piece)
            elif buffer.ending is not None:
                return "".join(pieces), buffer.ending.status
            else:
                assert not buffer.is_lost, "the process lost the reply"
                await buffer.changed()


def kill(engine: Engine) -> None:
    """Make an engine fall silent as `kill -9` does: nothing is sealed, nothing is said."""
    for task in list(engine._tasks):
        task.cancel()
    engine._runs.clear()
    engine._idle.set()


def is_born_again(engine: Engine, before: int) -> Callable[[], Awaitable[bool]]:
    """Return the question whether this engine works under a new id."""

    async def ask() -> bool:
        return engine.worker_id != before and engine._ready.is_set()

    return ask


async def test_a_reply_is_read_as_it_is_stored(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "你好 [[n=50 rate=400]]")
        text, status = await read_to_end(engine, started.reply_id)
        reply = await in_unit(stored, started.reply_id)
    assert (reply.content, reply.status, status) == (text, "complete", "complete")
    assert reply.finish_reason == "stop"
    attempt = await in_unit(Generation.across_sites.get, message_id=reply.pk)
    assert (attempt.status, attempt.attempt, attempt.endpoint_name) == ("complete", 1, "stand-in")
    assert attempt.called_at <= attempt.first_token_at <= attempt.last_token_at <= attempt.finished_at


async def test_a_reader_on_another_worker_reads_the_same(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [owner, other]:
        started = await send(owner, claims, chat, "问 [[n=60 rate=100 reasoning=3]]")
        (here, _), (there, status) = await asyncio.gather(
            read_to_end(owner, started.reply_id), read_to_end(other, started.reply_id)
        )
        late, _ = await read_to_end(other, started.reply_id)
    reply = await in_unit(stored, started.reply_id)
    assert here == there == late == reply.content != ""
    assert status == "complete"
    assert reply.reasoning != ""


async def test_a_mirror_survives_folds_of_the_owners_log(people: World, settings: object) -> None:
    settings.ENGINE_FOLD_SECONDS = 0.2  # type: ignore[attr-defined]
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [owner, other]:
        started = await send(owner, claims, chat, "[[n=240 rate=80]]")
        of_reply = ReplyChunk.across_sites.filter(message_id=started.reply_id)
        assert await eventually(lambda: in_unit(of_reply.exists))
        there, status = await read_to_end(other, started.reply_id)

        async def is_forgotten() -> bool:
            return not await in_unit(WorkerLog.objects.exists) and not await in_unit(
                ReplyChunk.across_sites.exists
            )

        assert await eventually(is_forgotten)
    assert (there, status) == ((await in_unit(stored, started.reply_id)).content, "complete")


async def test_stop_on_another_worker_keeps_what_was_said(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [owner, other]:
        started = await send(owner, claims, chat, "[[n=1000 rate=100]]")
        await asyncio.sleep(0.3)
        await other.stop(started)
        text, status = await read_to_end(owner, started.reply_id)
        reply = await in_unit(stored, started.reply_id)
        with pytest.raises(Conflict, match="already_finished"):
            await other.stop(started)
    assert status == reply.status == "stopped"
    assert text == reply.content != ""


async def test_stop_is_heard_without_listen(people: World, settings: object) -> None:
    settings.DB_LISTEN = False  # type: ignore[attr-defined]
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [owner, other]:
        started = await send(owner, claims, chat, "[[n=5 ttft=5000]]")
        async with asyncio.timeout(1):
            await other.stop(started)
    assert (await in_unit(stored, started.reply_id)).status == "stopped"


async def test_one_reply_at_a_time_in_a_chat(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [one, two]:
        started = await send(one, claims, chat, "[[n=30 rate=100]]")
        with pytest.raises(Conflict) as refused:
            await send(two, claims, chat, "再问")
        assert refused.value.extra == {"messageId": started.reply_id}
        await read_to_end(one, started.reply_id)
        await read_to_end(two, (await send(two, claims, chat, "再问 [[n=1]]")).reply_id)
    assert await in_unit(Message.across_sites.count) == 4


async def test_twenty_sends_with_one_key_make_one_reply(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as engines:
        sends = [
            send(engines[n % 2], claims, chat, "[[n=20 rate=100]]", idempotency_key="key-0001", body_hash="same")
            for n in range(20)
        ]
        started = await asyncio.gather(*sends)
        texts = await asyncio.gather(*(read_to_end(engines[n % 2], one.reply_id) for n, one in enumerate(started)))
        with pytest.raises(Invalid, match="idempotency_mismatch"):
            await send(engines[0], claims, chat, "别的", idempotency_key="key-0001", body_hash="other")
    assert len({one.reply_id for one in started}) == len(set(texts)) == 1
    assert sum(one.is_new for one in started) == 1
    assert await in_unit(Message.across_sites.count) == 2


async def test_nobody_sends_into_anothers_chat(people: World) -> None:
    chat, carol = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.carol)
    async with running_engines() as [engine]:
        with pytest.raises(NotAllowed, match="not_your_chat"):
            await send(engine, carol, chat, "借过")
    assert await in_unit(Message.across_sites.count) == 0


async def test_the_replies_of_a_dead_worker_are_sealed_with_what_was_committed(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [victim, other]:
        started = await send(victim, claims, chat, "[[n=2000 rate=100]]")
        async with victim.attach(started.reply_id) as buffer:
            while buffer.content.length < 30:
                await buffer.changed()
            kill(victim)
            seen = buffer.content.whole()
        await in_unit(Worker.objects.filter(pk=victim.worker_id).update, seen_at="2020-01-01T00:00Z")
        sealed = await in_unit(sweeper.sweep_worker, victim.worker_id, lease_seconds=5)
        reply = await in_unit(stored, started.reply_id)
        text, status = await read_to_end(other, started.reply_id)
        follow_up = await send(other, claims, chat, "继续 [[n=1]]")
        await read_to_end(other, follow_up.reply_id)
    assert sealed == 1
    assert (reply.status, status) == ("interrupted", "interrupted")
    assert reply.content == text
    assert text.startswith(seen)
    assert not await in_unit(WorkerLog.objects.filter(worker_id=victim.worker_id).exists)


async def test_a_new_worker_sweeps_a_dead_one_at_once(people: World, settings: object) -> None:
    settings.LEASE_SECONDS = 3  # type: ignore[attr-defined]
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [dead]:
        started = await send(dead, claims, chat, "[[n=5000 rate=200]]")
        await eventually(lambda: dead.store.has_outlived(lease=3))
        async with dead.attach(started.reply_id) as buffer:
            while buffer.content.length < 30:
                await buffer.changed()
            kill(dead)
        await in_unit(Worker.objects.filter(pk=dead.worker_id).update, seen_at="2020-01-01T00:00Z")
        async with running_engines() as [fresh], asyncio.timeout(2):
            text, status = await read_to_end(fresh, started.reply_id)
    assert (status, (await in_unit(stored, started.reply_id)).content) == ("interrupted", text)
    assert text


async def test_a_worker_declared_dead_writes_nothing_and_begins_anew(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [paused, _other]:
        started = await send(paused, claims, chat, "[[n=5000 rate=200]]")
        await asyncio.sleep(0.3)
        before = paused.worker_id
        await in_unit(Worker.objects.filter(pk=before).update, seen_at="2020-01-01T00:00Z")
        await in_unit(sweeper.sweep_worker, before, lease_seconds=5)
        sealed = await in_unit(stored, started.reply_id)
        await eventually(is_born_again(paused, before))
        await asyncio.sleep(0.2)
        again = await in_unit(stored, started.reply_id)
        assert (sealed.status, sealed.content) == ("interrupted", again.content)
        assert not await in_unit(WorkerLog.objects.filter(worker_id=before).exists)
        text, status = await read_to_end(paused, (await send(paused, claims, chat, "[[n=3]]")).reply_id)
        assert status == "complete"
        assert text


async def test_a_drain_seals_what_does_not_end_in_time(people: World, settings: object) -> None:
    settings.DRAIN_SECONDS = 0.5  # type: ignore[attr-defined]
    first, second = await in_unit(new_chat, people.alice), await in_unit(new_chat, people.alice)
    claims = await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        short = await send(engine, claims, first, "[[n=20 rate=100]]")
        long = await send(engine, claims, second, "[[n=5000 rate=100]]")
        reading = [asyncio.create_task(read_to_end(engine, one.reply_id)) for one in (short, long)]
        await asyncio.sleep(0.1)
        await engine.drain()
        (_, short_status), (text, long_status) = await asyncio.gather(*reading)
    assert (short_status, long_status) == ("complete", "interrupted")
    assert (await in_unit(stored, long.reply_id)).content == text != ""


async def test_a_draining_worker_finds_what_was_begun_and_begins_nothing(people: World) -> None:
    chats = [await in_unit(new_chat, people.alice) for _ in range(2)]
    claims = await in_unit(claims_of, people.alice)
    keys = [{"idempotency_key": f"key-000{number}", "body_hash": "same"} for number in range(3)]
    async with running_engines() as [engine]:
        done = await send(engine, claims, chats[0], "[[n=3]]", **keys[0])
        text, _ = await read_to_end(engine, done.reply_id)
        running = await send(engine, claims, chats[1], "[[n=500 rate=100]]", **keys[1])
        draining = engine.drain()
        for chat, begun, key in ((chats[0], done, keys[0]), (chats[1], running, keys[1])):
            found = await send(engine, claims, chat, "再来", **key)
            assert (found.reply_id, found.is_new) == (begun.reply_id, False)
        assert await read_to_end(engine, done.reply_id) == (text, "complete")
        for chat in chats:
            for key in ({}, keys[2]):
                with pytest.raises(Unavailable):
                    await send(engine, claims, chat, "新的", **key)
        engine._interrupt(running.reply_id, "stop")
        await draining
    kept = await in_unit(lambda: set(IdempotencyKey.across_sites.values_list("key", flat=True)))
    assert kept == {"key-0000", "key-0001"}, "a refused question may be asked again with its key"


async def test_a_site_may_refuse_the_stand_in(people: World) -> None:
    await in_unit(Site.objects.filter(pk=people.alice.site_id).update, settings={"stand_in": False})
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "你好")
        assert await read_to_end(engine, started.reply_id) == ("", "failed")
    assert (await in_unit(stored, started.reply_id)).error_code == "no_model"


async def test_a_site_may_ask_for_ascii_streams(people: World) -> None:
    await in_unit(Site.objects.filter(pk=people.alice.site_id).update, settings={"ascii_stream": True})
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        first, again = [
            await send(engine, claims, chat, "[[n=3]]", idempotency_key="key-0001", body_hash="same")
            for _ in range(2)
        ]
        found = await in_unit(actions.find_started, claims, first.reply_id)
        await read_to_end(engine, first.reply_id)
    assert [one.is_ascii_stream for one in (first, again, found)] == [True, True, True]


async def test_the_ledger_keeps_the_inner_word_for_every_attempt(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "[[n=0 fail=rate_limited]]")
        assert await read_to_end(engine, started.reply_id) == ("", "failed")
    attempts = Generation.across_sites.filter(message_id=started.reply_id).order_by("attempt")
    assert await in_unit(list, attempts.values_list("attempt", "error_code")) == [
        (1, "rate_limited"),
        (2, "rate_limited"),
    ]
    assert (await in_unit(stored, started.reply_id)).error_code == "provider_rate_limited"


async def test_a_reply_interrupted_before_its_first_step_is_sealed(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await in_unit(
            actions.start_reply,
            claims,
            Send(chat.pk, "[[n=50 rate=50]]"),
            worker_id=engine.worker_id,
            lease_seconds=5,
        )
        engine._launch(started, engine.worker_id, "")
        engine._interrupt(started.reply_id, "drain")
        async with asyncio.timeout(2):
            text, status = await read_to_end(engine, started.reply_id)
        assert not engine._runs
    assert (text, status) == ("", "interrupted")
    assert (await in_unit(stored, started.reply_id)).status == "interrupted"


async def test_a_drain_waits_for_a_reply_that_is_just_being_accepted(people: World, settings: object) -> None:
    settings.DRAIN_SECONDS = 0.5  # type: ignore[attr-defined]
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)

    def start_slowly(*args: Any, **kwargs: Any) -> Started:
        time.sleep(0.3)
        return actions.start_reply(*args, **kwargs)

    async with running_engines() as [engine]:
        accepting = asyncio.create_task(engine.accept(start_slowly, claims, Send(chat.pk, "[[n=5000 rate=100]]")))
        await asyncio.sleep(0.1)
        await engine.drain()
        started = await accepting
        reply = await in_unit(stored, started.reply_id)
    assert reply.status == "interrupted"


async def test_a_seal_of_an_earlier_incarnation_does_not_end_the_present_one(people: World) -> None:
    chats = [await in_unit(new_chat, people.alice) for _ in range(2)]
    claims = await in_unit(claims_of, people.alice)
    async with running_engines() as [engine], await psycopg.AsyncConnection.connect(conninfo()) as sweeping:
        before = engine.worker_id
        old = await send(engine, claims, chats[0], "[[n=1 ttft=200]]")
        run = engine._runs[old.reply_id]
        await sweeping.execute("SELECT 1 FROM conversations_worker WHERE id = %s FOR UPDATE", [before])
        await sweeping.execute("UPDATE conversations_worker SET is_dead = true WHERE id = %s", [before])
        while not run.is_sealing:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        engine._fenced()
        await eventually(is_born_again(engine, before))
        young = await send(engine, claims, chats[1], "[[n=40 rate=100]]")
        now = engine.worker_id
        await sweeping.commit()
        text, status = await read_to_end(engine, young.reply_id)
        assert run.task is not None
        await run.task
    assert (engine.worker_id, status) == (now, "complete")
    assert text


async def test_a_worker_whose_lease_ran_out_unseen_keeps_its_replies(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "[[n=60 rate=50]]")
        await in_unit(Worker.objects.filter(pk=engine.worker_id).update, seen_at="2020-01-01T00:00Z")
        before = engine.worker_id
        with pytest.raises(Conflict, match="generating"):
            await send(engine, claims, chat, "还在吗")
        text, status = await read_to_end(engine, started.reply_id)
    assert (engine.worker_id, status) == (before, "complete")
    assert text


async def test_a_reader_who_knows_more_than_the_mirror_is_believed(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [owner, other]:
        started = await send(owner, claims, chat, "[[n=200 rate=200]]")
        async with owner.attach(started.reply_id) as original, other.attach(started.reply_id) as mirror:
            await mirror.loaded()
            while original.content.length < mirror.content.length + 5:
                await original.changed()
            assert await mirror.reaches(original.content.length, 0)
            assert not await mirror.reaches(100_000, 0)


async def test_a_stop_returns_when_the_reply_has_ended_not_when_this_process_loses_it(
    people: World, settings: object
) -> None:
    settings.LEASE_SECONDS = 1  # type: ignore[attr-defined]
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine], await psycopg.AsyncConnection.connect(conninfo()) as sweeping:
        before = engine.worker_id
        started = await send(engine, claims, chat, "[[n=5 ttft=5000]]")
        await sweeping.execute("SELECT 1 FROM conversations_worker WHERE id = %s FOR UPDATE", [before])
        await sweeping.execute("UPDATE conversations_worker SET is_dead = true WHERE id = %s", [before])
        stopping = asyncio.create_task(engine.stop(started))
        await asyncio.sleep(0.3)
        engine._fenced()
        await sweeping.commit()
        async with asyncio.timeout(8):
            await stopping
        assert (await in_unit(stored, started.reply_id)).status == "interrupted"


async def test_a_heart_goes_on_beating_whatever_the_registry_holds(people: World, settings: object) -> None:
    settings.LEASE_SECONDS = 1  # type: ignore[attr-defined]
    async with running_engines() as [engine]:
        await eventually(lambda: in_unit(lambda: engine.has_registry))
        await in_unit(Endpoint.objects.create, name="坏的", dialect="scripted", model="m", params=[1])
        await asyncio.sleep(2.5)
        seen = await in_unit(lambda: Worker.objects.get(pk=engine.worker_id).seen_at)
        assert (await in_unit(database_now) - seen).total_seconds() < 2


async def test_a_worker_whose_writer_fails_begins_anew(people: World) -> None:
    chats = [await in_unit(new_chat, people.alice) for _ in range(2)]
    claims = await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        before = engine.worker_id
        started = await send(engine, claims, chats[0], "[[n=500 rate=50]]")
        async with engine.attach(started.reply_id) as buffer:
            buffer.add("\ud800")  # no provider gives this: no JSON can hold it
            assert await buffer.wait_ended() is None
        await eventually(is_born_again(engine, before))
        _, status = await read_to_end(engine, (await send(engine, claims, chats[1], "[[n=3]]")).reply_id)
    assert status == "complete"


async def test_a_reply_whose_acceptance_was_never_heard_of_is_sealed_in_seconds(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    begun: list[Started] = []

    def start_unheard(*args: Any, **kwargs: Any) -> Started:
        begun.append(actions.start_reply(*args, **kwargs))
        raise OperationalError("the answer to COMMIT was lost")

    async with running_engines() as [engine]:
        with pytest.raises(OperationalError):
            await engine.accept(start_unheard, claims, Send(chat.pk, "在吗"))

        async def is_sealed() -> bool:
            return bool((await in_unit(stored, begun[0].reply_id)).status == "interrupted")

        await eventually(is_sealed, seconds=9)
        _, status = await read_to_end(engine, (await send(engine, claims, chat, "再来 [[n=1]]")).reply_id)
    assert status == "complete"


async def test_upstream_is_given_up_when_the_database_hangs_for_longer_than_its_grace(
    people: World, settings: object
) -> None:
    settings.ENGINE_DATABASE_GRACE_SECONDS = 1  # type: ignore[attr-defined]
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine], await psycopg.AsyncConnection.connect(conninfo()) as hanging:
        started = await send(engine, claims, chat, "[[n=5000 rate=100]]")
        run = engine._runs[started.reply_id]
        lock = "SELECT 1 FROM conversations_worker WHERE id = %s FOR UPDATE"
        await hanging.execute(lock, [engine.worker_id])

        async def is_given_up() -> bool:
            return run.interruption == "database"

        await eventually(is_given_up, seconds=4)
        await hanging.rollback()
        text, status = await read_to_end(engine, started.reply_id)
        reply = await in_unit(stored, started.reply_id)
    assert (status, reply.content) == ("interrupted", text)


async def test_a_reader_on_another_worker_of_a_reply_that_is_no_more_is_let_go(people: World) -> None:
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [owner, other]:
        started = await send(owner, claims, chat, "[[n=1000 rate=100]]")
        async with other.attach(started.reply_id) as mirror:
            await mirror.loaded()
            await owner.stop_reply(started.reply_id)
            await in_unit(Message.across_sites.filter(pk=started.reply_id).delete)
            await asyncio.wait_for(mirror.wait_ended(), 3)
        with pytest.raises(NotFound):
            await other.ended(started.reply_id)
