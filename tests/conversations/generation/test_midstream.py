"""A reply that one endpoint begins and others end: the text has no seam, and the ledger tells who wrote what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest

from conversations.context.prompt import estimate_tokens
from conversations.generation.engine import Engine
from conversations.models import Generation, Message, Site, VendorSession
from providers import registry
from providers.models import Endpoint
from tests.conversations.generation.conftest import claims_of, in_unit, new_chat, running_engines, send
from tests.conversations.generation.test_engine import read_to_end, stored
from tests.fakes.provider import FakeProvider, expected_text, start_fake_provider
from tests.world import World

Trio = dict[str, FakeProvider]


@pytest.fixture(scope="module")
def trio() -> Iterator[Trio]:
    """Three providers that misbehave by name, each a process."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(start_fake_provider("--name", name)) for name in "ABC"}


@pytest.fixture
def providers(trio: Trio, settings: Any) -> Trio:
    """The three, with their counters at zero and their addresses allowed."""
    for fake in trio.values():
        fake.reset()
    settings.PROVIDER_ALLOWED_ADDRESSES = [fake.address for fake in trio.values()]
    return trio


def connect(people: World, providers: Trio, way: str, **fields: Any) -> None:
    """Save an endpoint for each, in their order; `fields` are those of all."""
    Site.objects.filter(pk=people.alice.site_id).update(settings={"midstream_failover": way})
    for priority, (name, fake) in enumerate(providers.items()):
        Endpoint.objects.create(
            name=name,
            base_url=fake.base_url,
            model="m",
            priority=priority,
            **{"first_seconds": 2.0, "idle_seconds": 0.3, **fields},
        )
    registry.refresh()


def play(people: World, way: str, **scripts: list[dict[str, Any]]) -> None:
    """Save scripted endpoints, in their order."""
    Site.objects.filter(pk=people.alice.site_id).update(settings={"midstream_failover": way})
    for priority, (name, script) in enumerate(scripts.items()):
        Endpoint.objects.create(name=name, dialect="scripted", priority=priority, params={"script": script})
    registry.refresh()


async def answered(people: World, content: str, *, engines: int = 1) -> tuple[Message, dict[str, Any] | None]:
    """Return the reply as it is stored, and the usage its readers were told; what they read is what is stored."""
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(engines) as all_engines:
        started = await send(all_engines[0], claims, chat, content)
        text, _ = await read_to_end(all_engines[-1], started.reply_id)
        _, ending = await all_engines[-1].ended(started.reply_id)
    reply: Message = await in_unit(stored, started.reply_id)
    assert reply.content == text
    return reply, ending.usage


async def ledger(reply: Message, *fields: str) -> list[tuple[Any, ...]]:
    """Return these fields of each attempt."""
    rows = Generation.across_sites.filter(message_id=reply.pk).order_by("attempt")
    return await in_unit(list, rows.values_list(*fields))


FAULTS = ["reset", "cut", "halfclose", "stall", "keepalive", "drip", "error", "errorstring"]
BEFORE_A_WORD = ["400", "401", "404", "429", "500", "503", "quota", "html", "hangup", "nothing", "jsonerror"]


@pytest.mark.parametrize("way", ["prefix", "instruction"])
@pytest.mark.parametrize(
    ("first", "second", "after"),
    [
        *((fault, FAULTS[number - 3], "5,11") for number, fault in enumerate(FAULTS)),
        *(("cut", fault, "5,0") for fault in BEFORE_A_WORD),
    ],
)
async def test_the_third_goes_on_where_the_second_failed(
    people: World, providers: Trio, way: str, first: str, second: str, after: str
) -> None:
    await in_unit(connect, people, providers, way)
    words = f"n=20 rate=300 seed=7 runup=30 at=A,B after={after} fault={first},{second}"
    reply, _ = await answered(people, f"讲个故事 [[{words}]]")
    assert (reply.content, reply.status, reply.finish_reason) == (expected_text(7, 20), "complete", "stop")
    offsets = [0, len(expected_text(7, 5)), len(expected_text(7, 11 if after == "5,11" else 5))]
    rows = await ledger(reply, "endpoint_name", "status", "continued_from", "finish_reason")
    assert rows == [
        ("A", "failed", offsets[0], ""),
        ("B", "failed", offsets[1], ""),
        ("C", "complete", offsets[2], "stop"),
    ]


async def test_each_attempt_has_the_tokens_and_the_cost_of_its_own_part(people: World, providers: Trio) -> None:
    prices = {"input_micros_per_million": 2_000_000, "output_micros_per_million": 3_000_000}
    await in_unit(connect, people, providers, "prefix", **prices)
    question = "[[n=20 seed=7 at=A,B after=5,11 fault=cut]]"
    reply, told = await answered(people, question, engines=2)
    parts = [expected_text(7, 5), expected_text(7, 11)[len(expected_text(7, 5)) :]]
    asked = [estimate_tokens(question), estimate_tokens(question) + estimate_tokens(parts[0])]
    said = [estimate_tokens(part) for part in parts]
    rows = await ledger(reply, "tokens_source", "input_tokens", "output_tokens", "cost_micros")
    assert rows == [
        *(("estimated", a, s, 2 * a + 3 * s) for a, s in zip(asked, said, strict=True)),
        ("provider", 10, 9, 47),
    ]
    assert reply.usage == told == {"inputTokens": sum(asked) + 10, "outputTokens": sum(said) + 9}


async def test_the_log_tells_from_where_another_went_on(people: World, caplog: pytest.LogCaptureFixture) -> None:
    await in_unit(play, people, "on", 甲=[{"text": "从前有座山，"}, {"cut": True}], 乙=[{"text": "山里有座庙。"}])
    with caplog.at_level(logging.INFO, "conversations.generation.answering"):
        await answered(people, "讲个故事")
    calls = [vars(record) for record in caplog.records if record.message == "provider_called"]
    assert [(one["endpoint"], one["continued_from"], one["asking"]) for one in calls] == [
        ("甲", 0, ""),
        ("乙", 6, "instruction"),
    ]


@pytest.mark.parametrize("way", ["off", "on", "prefix", "instruction"])
async def test_a_site_decides_whether_another_goes_on(people: World, way: str) -> None:
    await in_unit(
        play,
        people,
        way,
        甲=[{"text": "从前有座山，"}, {"text": "山里"}, {"cut": True}],
        乙=[{"text": "有座庙，"}, {"text": "庙里有个老和尚。"}, {"finish": "length"}],
    )
    reply, _ = await answered(people, "讲个故事", engines=2)
    if way == "off":
        assert (reply.content, reply.status) == ("从前有座山，山里", "failed")
        assert await ledger(reply, "endpoint_name", "error_code") == [("甲", "stream_cut")]
        return
    assert reply.content == "从前有座山，山里有座庙，庙里有个老和尚。"
    assert (reply.status, reply.finish_reason) == ("truncated", "length"), "what the last one said"


async def test_a_run_up_that_is_cut_off_is_not_shown(people: World) -> None:
    await in_unit(
        play,
        people,
        "on",
        甲=[{"text": "从前有座山，山里"}, {"cut": True}],
        乙=[{"text": "前有座山，"}, {"cut": True}],
        丙=[{"text": "有座庙。"}],
    )
    reply, _ = await answered(people, "讲个故事")
    assert (reply.content, reply.status) == ("从前有座山，山里有座庙。", "complete")
    rows = await ledger(reply, "continued_from", "output_tokens")
    assert rows[:2] == [(0, 8), (8, 5)], "it was paid for all the same"


async def test_another_answer_is_not_put_behind_the_first(people: World) -> None:
    begun = "从前有座山，山里有座庙，庙里有个老和尚在给小和尚讲故事。"
    await in_unit(
        play,
        people,
        "prefix",
        甲=[{"text": begun}, {"cut": True}],
        乙=[{"text": begun[:25]}, {"text": "念经。"}, {"text": "完。"}],
        丙=[{"text": begun}, {"text": "他说："}],
    )
    reply, _ = await answered(people, "讲个故事")
    assert (reply.content, reply.status) == (begun + "他说：", "complete")
    assert [code for (code,) in await ledger(reply, "error_code")] == ["stream_cut", "started_over", ""]


async def test_who_cannot_go_on_is_asked_only_for_what_has_no_text(people: World) -> None:
    await in_unit(
        play, people, "on", 甲=[{"text": "从前"}, {"cut": True}], 乙=[{"text": "你好"}], 丙=[{"text": "有座山"}]
    )
    await in_unit(Endpoint.objects.filter(name="乙").update, continues="none")
    await in_unit(registry.refresh)
    reply, _ = await answered(people, "讲个故事")
    assert (reply.content, await ledger(reply, "endpoint_name")) == ("从前有座山", [("甲",), ("丙",)])
    await in_unit(Endpoint.objects.filter(name="甲").update, params={"script": [{"cut": True}]})
    await in_unit(registry.refresh)
    reply, _ = await answered(people, "讲个故事")
    assert (reply.content, await ledger(reply, "endpoint_name")) == ("你好", [("甲",), ("乙",)])


async def test_alone_it_does_not_go_on_with_itself_when_it_cannot(people: World) -> None:
    await in_unit(play, people, "on", 甲=[{"text": "从前"}, {"cut": True}])
    await in_unit(Endpoint.objects.update, continues="none")
    await in_unit(registry.refresh)
    reply, _ = await answered(people, "讲个故事")
    assert (reply.content, reply.status, len(await ledger(reply, "pk"))) == ("从前", "failed", 1)


async def positions(engine: Engine, message_id: int) -> list[tuple[int, int]]:
    """Return the offsets of text and thoughts as a reader meets them."""
    seen = []
    async with engine.attach(message_id) as buffer:
        while True:
            now = (buffer.content.length, buffer.reasoning.length)
            if not seen or seen[-1] != now:
                seen.append(now)
            if buffer.ending is not None:
                return seen
            await buffer.changed()


@pytest.mark.parametrize("after", ["0", "3"])
async def test_thoughts_are_shown_of_the_attempt_that_began_the_reply(
    people: World, providers: Trio, after: str
) -> None:
    await in_unit(connect, people, providers, "prefix")
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        content = f"[[n=8 rate=100 think=3 at=A after={after} fault=cut]]"
        started = await send(engine, claims, chat, content)
        met = await positions(engine, started.reply_id)
    reply = await in_unit(stored, started.reply_id)
    assert (reply.content, reply.reasoning) == (expected_text(1, 8), "A想0A想1A想2")
    assert met == sorted(met) and met[-1] == (len(reply.content), 9)
    assert all(later[1] >= earlier[1] for earlier, later in pairwise(met))


async def test_thoughts_are_the_next_ones_when_the_first_had_none(people: World, providers: Trio) -> None:
    await in_unit(connect, people, providers, "on")
    reply, _ = await answered(people, "[[n=8 think=2 at=A fault=500]]")
    assert (reply.content, reply.reasoning) == (expected_text(1, 8), "B想0B想1")


async def test_what_is_held_back_to_the_end_counts_against_the_limit(people: World, settings: Any) -> None:
    settings.REPLY_MAX_CHARS = 12
    await in_unit(
        play,
        people,
        "on",
        甲=[{"text": "从前有座山，山里有"}, {"cut": True}],
        乙=[{"text": "有座山，"}, {"finish": "stop"}],  # may be a run-up until it ends
    )
    reply, _ = await answered(people, "讲个故事")
    assert (reply.content, reply.status) == ("从前有座山，山里有有座山", "failed")
    assert reply.error_code == "reply_too_long"


async def test_who_stops_a_reply_keeps_what_was_held_back(people: World) -> None:
    await in_unit(
        play,
        people,
        "on",
        甲=[{"text": "从前有座山，山里有"}, {"cut": True}],
        乙=[{"text": "有座山"}, {"sleep": 30}],
    )
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "讲个故事")
        await asyncio.sleep(0.3)
        await engine.stop(started)
    reply = await in_unit(stored, started.reply_id)
    assert (reply.content, reply.status) == ("从前有座山，山里有有座山", "stopped")


async def test_an_application_that_goes_on_knows_the_member_and_gets_the_history_without_a_session(
    people: World, providers: Trio
) -> None:
    def make() -> None:
        connect(people, {"A": providers["A"]}, "on")
        Endpoint.objects.create(
            name="百炼",
            dialect="dashscope_app",
            base_url=f"http://{providers['B'].address}",
            model="app-1",
            priority=5,
        )
        registry.refresh()

    await in_unit(make)
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        for content in ("[[fault=500]]", "[[n=8 after=5 fault=cut]]", "[[fault=500]]"):
            started = await send(engine, claims, chat, content)
            await engine.ended(started.reply_id)
            if "cut" in content:
                reply = await in_unit(stored, started.reply_id)
                sessions = await in_unit(VendorSession.across_sites.count)
    first, going_on, last = [body["input"] for body in providers["B"].stats()["bodies"]]
    member = {"User_ID": str(people.alice.user_id), "Role": "member", "Nickname": "爱丽丝"}
    assert [one["biz_params"] for one in (first, going_on, last)] == [member] * 3
    assert "session_id" not in going_on and "prompt" not in going_on
    assert [m["role"] for m in going_on["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    # It answers anew from the beginning, which is dropped.
    assert (reply.content, reply.status, sessions) == (expected_text(1, 8), "complete", 1)
    assert "session_id" not in last, "the session has seen our instruction instead of the answer"


async def test_too_many_bytes_without_a_character_are_noise_and_another_endpoint_answers(people: World) -> None:
    await in_unit(play, people, "off", 甲=[{"error": "reply_too_long"}], 乙=[{"text": "你好"}])
    reply, _ = await answered(people, "在吗")
    assert (reply.content, reply.status) == ("你好", "complete")
