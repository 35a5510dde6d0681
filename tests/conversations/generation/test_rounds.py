"""The rounds of a reply, against real PostgreSQL: tools asked for by a real provider process, and run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from conversations.generation import sweeper
from conversations.generation.engine import Engine
from conversations.generation.rounds import ENOUGH, in_words
from conversations.models import Conversation, Generation, Message, Site, SiteTool
from conversations.tenancy.tokens import Claims
from providers import registry
from providers.models import Endpoint
from providers.types import ChatMessage, ToolCall
from tests.conversations.context.test_knowledge import know
from tests.conversations.generation.conftest import claims_of, eventually, in_unit, new_chat, running_engines, send
from tests.conversations.generation.test_engine import kill, read_to_end, stored
from tests.fakes.backend import start_backend
from tests.fakes.provider import FakeProvider, expected_text, start_fake_provider
from tests.world import World


@pytest.fixture
def provider(settings: Any) -> Iterator[FakeProvider]:
    """A fake provider in a process of its own: what it was asked is this test's."""
    with start_fake_provider() as fake:
        settings.PROVIDER_ALLOWED_ADDRESSES = [fake.address]
        yield fake


def connect(fake: FakeProvider, name: str = "主力", **fields: Any) -> Endpoint:
    """Return a saved endpoint that speaks to the fake provider."""
    fields = {"base_url": f"http://{fake.address}", "model": "fake-1", "priority": 1, **fields}
    row = Endpoint(name=name, dialect=fields.pop("dialect", "openai"), **fields)
    row.set_api_key("sk-test-1234567890")
    row.save()
    registry.refresh()
    return row


def switch_on(site: Site, *names: str, **settings: Any) -> None:
    """Let a site offer these tools."""
    site.settings = {"tools": list(names), **settings}
    site.save()


def tool_rows(reply_id: int) -> list[dict[str, Any]]:
    """Return what is stored of the tools of a reply, in their order."""
    rows = Message.across_sites.filter(reply_to_id=reply_id, role="tool").order_by("pk")
    return [{**json.loads(row.content), "status": row.status} for row in rows]


def ledger(reply_id: int) -> list[Generation]:
    """Return the calls of the model for a reply."""
    return list(Generation.across_sites.filter(message_id=reply_id).order_by("attempt"))


async def opened(people: World) -> tuple[Conversation, Claims]:
    """Return an empty chat of Alice, and her claims."""
    return await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)


async def answered(engine: Engine, claims: Claims, chat: Conversation, content: str) -> Message:
    """Return the sealed reply to this."""
    started = await send(engine, claims, chat, content)
    async with asyncio.timeout(20):
        await engine.ended(started.reply_id)
    reply: Message = await in_unit(stored, started.reply_id)
    return reply


def messages_of(fake: FakeProvider, number: int) -> list[dict[str, Any]]:
    """Return the messages of one request, the first being number 0."""
    return list(fake.stats()["bodies"][number]["messages"])


async def test_a_tool_runs_and_its_result_goes_back(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider, input_micros_per_million=1_000_000, output_micros_per_million=2_000_000)
    await in_unit(switch_on, people.acorn, "current_time", "page_text")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, "现在几点？ [[n=5 say=3 tool=current_time]]")
    assert (reply.status, reply.finish_reason) == ("complete", "stop")
    assert reply.content == expected_text(1, 3) + expected_text(1, 5)
    assert reply.usage == {"inputTokens": 20, "outputTokens": 8}
    first, second = provider.stats()["bodies"]
    assert [tool["function"]["name"] for tool in first["tools"]] == ["current_time", "page_text"]
    assert first["tool_choice"] == "auto"
    question, asked, result = second["messages"]
    assert question["role"] == "user"
    assert (asked["role"], asked["content"]) == ("assistant", expected_text(1, 3))
    assert asked["tool_calls"][0]["id"] == result["tool_call_id"] == "call_0_0"
    assert result["content"].startswith("现在是") and "Asia/Shanghai" in result["content"]
    rows = await in_unit(ledger, reply.pk)
    assert [(r.attempt, r.status, r.finish_reason, r.output_tokens) for r in rows] == [
        (1, "complete", "tool_calls", 3),
        (2, "complete", "stop", 5),
    ]
    assert [r.cost_micros for r in rows] == [10 + 6, 10 + 10]
    assert [(t["name"], t["outcome"]) for t in rows[0].tools] == [("current_time", "done")]
    assert rows[1].tools is None and rows[0].finished_at <= rows[1].queued_at
    [run] = await in_unit(tool_rows, reply.pk)
    assert (run["name"], run["outcome"], run["status"], run["at"]) == (
        "current_time",
        "done",
        "complete",
        [len(expected_text(1, 3)), 0],
    )
    conversation = await in_unit(Conversation.across_sites.get, pk=chat.pk)
    assert conversation.message_count == 2


async def test_several_at_once_and_what_cannot_be_run_is_told_in_words(
    people: World, provider: FakeProvider
) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "current_time")
    chat, claims = await opened(people)
    names = ",".join(["current_time", "drop_table", *["current_time"] * 8])
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, f"[[n=2 ids=0 tool={names} args={{}}]]")
    results = [message["content"] for message in messages_of(provider, 1) if message["role"] == "tool"]
    assert reply.content == expected_text(1, 2)
    assert results[0].startswith("现在是")
    assert results[1] == "没有名为“drop_table”的工具。可用的工具：current_time。"
    assert "一次最多调用 8 个工具" in results[8] and "一次最多调用 8 个工具" in results[9]
    assert [run["problem"] for run in await in_unit(tool_rows, reply.pk)] == [
        "",
        "unknown_tool",
        *[""] * 6,
        *["too_many"] * 2,
    ]


async def test_calls_without_measure_leave_rows_and_prompts_of_a_bounded_size(
    people: World, provider: FakeProvider
) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "current_time")
    chat, claims = await opened(people)
    names = ",".join(["很长的名字" * 100, *["current_time"] * 60])
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, f"[[n=2 tool={names}]]")
    rows = await in_unit(tool_rows, reply.pk)
    assert (reply.status, len(rows), len(rows[0]["name"])) == ("complete", 32, 64)
    asked = next(message for message in messages_of(provider, 1) if message.get("tool_calls"))
    assert len(asked["tool_calls"]) == len([m for m in messages_of(provider, 1) if m["role"] == "tool"]) == 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{坏", "不是合法的 JSON"),
        ('{"城市":"北京"}', "参数不符合要求"),
        ("7", "必须是一个 JSON 对象"),
        ("NaN", "不是合法的 JSON"),
    ],
)
async def test_bad_arguments_are_told_to_the_model(
    people: World, provider: FakeProvider, arguments: str, words: str
) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "current_time")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, f"[[n=2 tool=current_time args={arguments}]]")
    assert reply.status == "complete"
    assert words in messages_of(provider, 1)[-1]["content"]
    [run] = await in_unit(tool_rows, reply.pk)
    assert (run["problem"], run["status"], run["arguments"]) == ("bad_arguments", "failed", arguments)


async def test_an_endless_loop_ends_with_an_answer_in_words(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "current_time", tool_rounds=3)
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, "[[n=4 tool=current_time rounds=99]]")
    bodies = provider.stats()["bodies"]
    assert [("tools" in body) for body in bodies] == [True, True, True, False]
    assert bodies[-1]["messages"][-1]["content"].endswith(ENOUGH)
    assert not any("tool_calls" in message or message["role"] == "tool" for message in bodies[-1]["messages"])
    assert (reply.status, len(await in_unit(ledger, reply.pk))) == ("complete", 4)


async def test_a_model_that_asks_for_tools_without_any_is_truncated(people: World, settings: Any) -> None:
    script = [{"text": "查一下"}, {"tool_calls": [{"name": "current_time"}]}]
    await in_unit(
        Endpoint(name="剧本", dialect="scripted", priority=1, params={"script": script, "step_seconds": 0}).save
    )
    await in_unit(registry.refresh)
    await in_unit(switch_on, people.acorn, "current_time")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, "几点？")
    # The script has nothing after its call: the second round is empty, and complete.
    assert (reply.content, reply.status) == ("查一下", "complete")


async def test_without_tools_of_the_site_none_are_offered(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider)
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, "[[n=3 tool=current_time]]")
    assert reply.content == expected_text(1, 3)
    assert "tools" not in provider.stats()["bodies"][0]


async def test_an_endpoint_without_tools_is_asked_without(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider, tools="no")
    await in_unit(switch_on, people.acorn, "current_time")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, "[[n=3 tool=current_time]]")
    assert reply.content == expected_text(1, 3)
    assert "tools" not in provider.stats()["bodies"][0]


async def test_failover_before_the_first_token_of_a_round_keeps_what_tools_gave(
    people: World, provider: FakeProvider, settings: Any
) -> None:
    with start_fake_provider("--name", "reserve") as reserve:
        settings.PROVIDER_ALLOWED_ADDRESSES = [provider.address, reserve.address]
        await in_unit(connect, provider)
        await in_unit(connect, reserve, "备用", priority=2, tools="no")
        await in_unit(switch_on, people.acorn, "slow_tool")
        await in_unit(make_slow_tool, people.acorn, reserve, delay=500)
        chat, claims = await opened(people)
        async with running_engines() as [engine]:
            started = await send(engine, claims, chat, "几点 [[n=3 tool=slow_tool]]")
            assert await eventually(lambda: in_unit(tool_rows, started.reply_id))
            provider.process.kill()
            await engine.ended(started.reply_id)
        reply = await in_unit(stored, started.reply_id)
        body = reserve.stats()["bodies"][-1]
    assert (reply.status, reply.content) == ("complete", expected_text(1, 8))
    assert "tools" not in body
    assert body["messages"][-1]["content"].startswith("（系统提示）工具返回的结果：\n【slow_tool {}】\n")
    assert [(row.status, row.endpoint_name) for row in await in_unit(ledger, reply.pk)] == [
        ("complete", "主力"),
        ("failed", "主力"),
        ("complete", "备用"),
    ]


async def test_a_stop_ends_a_tool_and_the_reply_at_once(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "slow_tool")
    await in_unit(make_slow_tool, people.acorn, provider)
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        started = await send(engine, claims, chat, "[[n=3 say=2 tool=slow_tool]]")
        assert await eventually(lambda: in_unit(tool_rows, started.reply_id))
        async with asyncio.timeout(2):
            await engine.stop(started)
    reply = await in_unit(stored, started.reply_id)
    assert (reply.status, reply.content) == ("stopped", expected_text(1, 2))
    [run] = await in_unit(tool_rows, reply.pk)
    assert (run["status"], run.get("outcome")) == ("interrupted", None)
    [row] = await in_unit(ledger, reply.pk)
    assert (row.status, row.output_tokens) == ("stopped", 2)


async def test_a_worker_that_dies_in_the_middle_of_a_tool_leaves_a_sealed_reply(
    people: World, provider: FakeProvider
) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "slow_tool")
    await in_unit(make_slow_tool, people.acorn, provider)
    chat, claims = await opened(people)
    async with running_engines(2) as [engine, other]:
        started = await send(engine, claims, chat, "[[n=3 say=2 tool=slow_tool]]")
        assert await eventually(lambda: in_unit(tool_rows, started.reply_id))
        async with asyncio.timeout(5), engine.attach(started.reply_id) as buffer:
            while buffer.content.length < len(expected_text(1, 2)):  # what is not committed dies with the worker
                await buffer.changed()
        worker = engine.worker_id
        kill(engine)
        await in_unit(sweeper.sweep_worker, worker, lease_seconds=0)
        text, status = await read_to_end(other, started.reply_id)
    assert (text, status) == (expected_text(1, 2), "interrupted")
    [run] = await in_unit(tool_rows, started.reply_id)
    assert run["status"] == "interrupted"
    assert [row.status for row in await in_unit(ledger, started.reply_id)] == ["interrupted"]


async def test_the_next_turn_does_not_see_what_tools_said(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "current_time")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        await answered(engine, claims, chat, "[[n=3 tool=current_time]]")
        await answered(engine, claims, chat, "[[n=3]]")
    assert [message["role"] for message in messages_of(provider, 2)] == ["user", "assistant", "user"]


def make_slow_tool(site: Site, fake: FakeProvider, *, delay: int = 8000) -> None:
    """Give the site a tool whose server takes so many milliseconds."""
    SiteTool.across_sites.create(
        site=site,
        name="slow_tool",
        description="很慢",
        method="POST",
        url=f"http://{fake.address}/v1/chat/completions",
        body={"stream": True, "messages": [{"role": "user", "content": f"[[n=1 seed=3 delay={delay}]]"}]},
        timeout_seconds=10,
    )


def test_calls_and_results_are_put_into_words() -> None:
    call = ToolCall(0, "c1", "get_weather", '{"city":"北京"}')
    said = in_words(
        [
            ChatMessage("user", "天气？"),
            ChatMessage("assistant", "", tool_calls=(call,)),
            ChatMessage("tool", "晴", tool_call_id="c1"),
        ],
        is_last=True,
    )
    assert [(message.role, message.content) for message in said] == [
        ("user", "天气？"),
        ("assistant", "（我查询了：get_weather）"),
        ("user", f'（系统提示）工具返回的结果：\n【get_weather {{"city":"北京"}}】\n晴\n\n{ENOUGH}'),
    ]


async def test_the_model_searches_what_the_site_knows_and_the_reply_has_its_card(
    people: World, provider: FakeProvider
) -> None:
    await in_unit(connect, provider)
    await in_unit(know, people.acorn)
    await in_unit(know, people.birch, "# 机密\n白桦的退款要一百年。", filename="机密.md")
    await in_unit(switch_on, people.acorn, knowledge="tool")
    chat, claims = await opened(people)
    # A model may write an integer as 2.0; JSON schema takes it.
    question = '退款？ [[n=3 tool=search_knowledge args={"query":"退款几个工作日到账","limit":2.0}]]'
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, question)
    result = messages_of(provider, 1)[-1]["content"]
    assert result.startswith("[1] ") and "三个工作日内原路退回" in result and "一百年" not in result
    assert messages_of(provider, 0)[-1]["content"] == question
    assert reply.reference_card is not None and reply.reference_card["type"] == "knowledge"
    assert "三个工作日" in reply.reference_card["sources"][0]["excerpt"]
    [row, _] = await in_unit(ledger, reply.pk)
    assert [(run["name"], run["outcome"]) for run in row.tools] == [("search_knowledge", "done")]


async def test_a_model_without_tools_gets_what_a_search_finds(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider, tools="no")
    await in_unit(know, people.acorn)
    await in_unit(switch_on, people.acorn, "current_time", knowledge="tool")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, "退款几个工作日能到账？ [[n=3]]")
    [body] = provider.stats()["bodies"]
    assert "tools" not in body
    assert "三个工作日内原路退回" in body["messages"][-1]["content"]
    assert reply.content == expected_text(1, 3)
    assert reply.reference_card is not None
    stored_question = await in_unit(Message.across_sites.get, conversation=chat, role="user")
    assert stored_question.content == "退款几个工作日能到账？ [[n=3]]"


async def test_a_page_is_read_when_the_model_asks(people: World, provider: FakeProvider) -> None:
    await in_unit(connect, provider)
    await in_unit(switch_on, people.acorn, "page_text")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        started = await send(
            engine,
            claims,
            chat,
            "这是什么？ [[n=3 tool=page_text]]",
            source_page="order/detail",
            page_context={"订单": {"编号": "甲7", "已付": True, "商品": ["橡果", "松果"]}},
        )
        await engine.ended(started.reply_id)
    page, *lines = messages_of(provider, 1)[-1]["content"].splitlines()
    assert page == "页面：order/detail"
    assert sorted(lines) == ["订单.商品[1]：橡果", "订单.商品[2]：松果", "订单.已付：是", "订单.编号：甲7"]


async def test_many_long_results_share_one_budget(people: World, provider: FakeProvider, settings: Any) -> None:
    with start_backend() as backend:
        settings.PROVIDER_ALLOWED_ADDRESSES = [provider.address, backend.address]
        await in_unit(connect, provider)
        await in_unit(switch_on, people.acorn, "long_tool")
        await in_unit(
            SiteTool.across_sites.create,
            site=people.acorn,
            name="long_tool",
            description="很长",
            url=f"{backend.url}/long",
        )
        chat, claims = await opened(people)
        async with running_engines() as [engine]:
            tools = ",".join(["long_tool"] * 5)
            reply = await answered(engine, claims, chat, f"[[n=2 tool={tools}]]")
    results = [message["content"] for message in messages_of(provider, 1) if message["role"] == "tool"]
    assert reply.status == "complete"
    assert [len(result) // 1000 for result in results] == [16, 16, 15, 0, 0]


async def test_the_limits_of_an_endpoint_let_a_reply_finish_that_they_let_begin(
    people: World, provider: FakeProvider
) -> None:
    await in_unit(connect, provider, requests_per_minute=1)
    await in_unit(switch_on, people.acorn, "current_time")
    chat, claims = await opened(people)
    async with running_engines() as [engine]:
        reply = await answered(engine, claims, chat, "[[n=3 tool=current_time rounds=2]]")
    assert (reply.status, reply.content) == ("complete", expected_text(1, 3))
