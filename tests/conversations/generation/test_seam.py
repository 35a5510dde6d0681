"""A reply that one endpoint begins and another ends has no seam: nothing twice, nothing missing."""

from __future__ import annotations

import pytest

from conversations.generation.seam import INSTRUCTION, Seam, continuation
from conversations.models import Generation, Site
from providers.models import Endpoint
from providers.types import ChatMessage
from tests.conversations.generation.conftest import claims_of, in_unit, new_chat, running_engines, send
from tests.conversations.generation.test_engine import read_to_end, stored
from tests.world import World

PROMPT = (ChatMessage("user", "讲个故事"),)


def test_the_continuation_shows_the_text_so_far() -> None:
    begun = (*PROMPT, ChatMessage("assistant", "从前"))
    assert continuation(PROMPT, "", "prefix") == PROMPT
    assert continuation(PROMPT, "从前", "prefix") == begun
    assert continuation(PROMPT, "从前", "instruction") == (*begun, ChatMessage("user", INSTRUCTION))


@pytest.mark.parametrize(
    ("so_far", "pieces", "shown"),
    [
        ("从前有座山，山里有座庙", ["，庙里", "有个和尚"], "，庙里有个和尚"),
        ("从前有座山，山里有座庙", ["前有座山，山里", "有座庙，庙里", "有个和尚"], "，庙里有个和尚"),
        ("哈哈", ["哈", "哈！"], "哈哈！"),
        ("一二三四五六七八九十", ["一二三四五六七八九十"], ""),
        ("", ["开头"], "开头"),
    ],
)
def test_a_run_up_is_dropped_and_nothing_else(so_far: str, pieces: list[str], shown: str) -> None:
    seam = Seam(so_far)
    assert "".join([seam.feed(piece) for piece in pieces] + [seam.close()]) == shown


def make_endpoints(site_id: int, way: str) -> None:
    Site.objects.filter(pk=site_id).update(settings={"midstream_failover": way})
    Endpoint.objects.create(
        name="甲",
        dialect="scripted",
        is_active=True,
        priority=1,
        params={"script": [{"text": "从前有座山，"}, {"text": "山里"}, {"cut": True}]},
    )
    Endpoint.objects.create(
        name="乙",
        dialect="scripted",
        is_active=True,
        priority=2,
        params={"script": [{"text": "有座庙，"}, {"text": "庙里有个老和尚。"}, {"finish": "stop"}]},
    )


@pytest.mark.parametrize("way", ["off", "prefix", "instruction"])
async def test_another_endpoint_goes_on_where_the_first_one_failed(people: World, way: str) -> None:
    await in_unit(make_endpoints, people.alice.site_id, way)
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(2) as [owner, other]:
        started = await send(owner, claims, chat, "讲个故事")
        text, status = await read_to_end(other, started.reply_id)
    reply = await in_unit(stored, started.reply_id)
    attempts = await in_unit(
        list,
        Generation.across_sites.filter(message_id=reply.pk)
        .order_by("attempt")
        .values_list("endpoint_name", "status", "error_code", "output_tokens"),
    )
    if way == "off":
        assert (text, status, reply.error_code) == ("从前有座山，山里", "failed", "provider_unavailable")
        assert attempts == [("甲", "failed", "stream_cut", 8)]
        return
    assert (text, status, reply.finish_reason) == ("从前有座山，山里有座庙，庙里有个老和尚。", "complete", "stop")
    assert reply.content == text
    assert [row[:3] for row in attempts] == [("甲", "failed", "stream_cut"), ("乙", "complete", "")]
    assert attempts[0][3] == 8


def make_three(site_id: int) -> None:
    make_endpoints(site_id, "instruction")
    Endpoint.objects.filter(name="乙").update(params={"script": [{"text": "前有座山，"}, {"cut": True}]})
    Endpoint.objects.create(
        name="丙", dialect="scripted", priority=3, params={"script": [{"text": "有座庙。"}, {"finish": "stop"}]}
    )


async def test_a_run_up_that_is_cut_off_is_not_shown(people: World) -> None:
    await in_unit(make_three, people.alice.site_id)
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "讲个故事")
        assert await read_to_end(engine, started.reply_id) == ("从前有座山，山里有座庙。", "complete")


async def test_too_many_bytes_without_a_character_are_noise_and_another_endpoint_answers(people: World) -> None:
    def make() -> None:
        noise, reply = [{"error": "reply_too_long"}], [{"text": "你好"}, {"finish": "stop"}]
        for priority, (name, script) in enumerate((("甲", noise), ("乙", reply))):
            Endpoint.objects.create(name=name, dialect="scripted", priority=priority, params={"script": script})

    await in_unit(make)
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines(1) as [engine]:
        started = await send(engine, claims, chat, "在吗")
        assert await read_to_end(engine, started.reply_id) == ("你好", "complete")
