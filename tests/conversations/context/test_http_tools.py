"""Tools of a site's own, against a real server: what it is sent, and what the model is told."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from conversations.context.offers import known_tools, load_toolbox
from conversations.context.tools import Toolbox, ToolRun
from conversations.models import Message, SiteTool
from providers.fields import keep_secret
from providers.http import close_shared_clients
from providers.types import ToolCall
from tests.fakes.backend import Backend, start_backend
from tests.world import World, make_conversation, make_message

SECRET = "site-secret-0123456789"


@pytest.fixture
def backend(settings: Any) -> Iterator[Backend]:
    """The site's server, on the allow-list."""
    with start_backend() as started:
        settings.PROVIDER_ALLOWED_ADDRESSES = [started.address]
        yield started


def make_tool(world: World, backend: Backend, path: str = "/weather", **fields: Any) -> SiteTool:
    """Return a tool of Acorn that asks its server."""
    secret = fields.pop("secret", "")
    row = SiteTool(
        site=world.acorn,
        name=fields.pop("name", "weather"),
        description="查天气",
        url=backend.url + path,
        **{
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
            "query": {"city": "${args.city}", "days": "${args.days}", "who": "${member.userId}"},
            **fields,
        },
    )
    keep_secret(row, "secret", secret)
    row.save()
    return row


def question_of(world: World) -> Message:
    """Return a question of Alice."""
    return make_message(make_conversation(world.alice), "天气？")


def called(world: World, question: Message, arguments: dict[str, Any], name: str = "weather") -> ToolRun:
    """Return how a call of this tool went, for Alice's question."""
    toolbox = load_toolbox(world.acorn.pk, [name], chat_id=question.conversation_id, question_id=question.pk)
    assert isinstance(toolbox, Toolbox)

    async def run() -> ToolRun:
        try:
            call = ToolCall(0, "c1", name, json.dumps(arguments, ensure_ascii=False))
            return await toolbox.run(call, trace={})
        finally:
            await close_shared_clients()

    return asyncio.run(run())


def test_the_servers_answer_goes_to_the_model(world: World, backend: Backend) -> None:
    make_tool(world, backend)
    result = called(world, question_of(world), {"city": "北京 & 上海"})
    assert (result.outcome, result.problem) == ("done", "")
    assert json.loads(result.text) == {"城市": "北京 & 上海", "天气": "晴"}
    [asked] = backend.asked
    assert asked.query == {"city": "北京 & 上海", "who": str(world.alice.user_id)}
    assert "x-internal-signature" not in asked.headers


def test_a_secret_signs_the_call_and_says_who_the_member_is(world: World, backend: Backend) -> None:
    make_tool(
        world,
        backend,
        "/orders/${args.city}",
        method="POST",
        headers={"X-Api-Key": "${secret}"},
        query={},
        body={"城市": "${args.city}", "天数": "${args.days}"},
        secret=SECRET,
    )
    result = called(world, question_of(world), {"city": "../上海", "days": 3})
    assert (result.outcome, json.loads(result.text)["回声"]) == ("done", "•••")
    [asked] = backend.asked
    assert asked.path == "/orders/..%2F%E4%B8%8A%E6%B5%B7"
    assert json.loads(asked.body) == {"城市": "../上海", "天数": 3}
    assert asked.headers["x-api-key"] == SECRET
    assert asked.headers["x-internal-signature"].startswith("v1=")
    claims = asked.headers["x-member"].split(".")[1]
    member = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert (member["userId"], member["site"], member["role"]) == (world.alice.user_id, world.acorn.pk, "member")
    assert SECRET not in result.text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/slow", "没有在规定的时间内回答"),
        ("/big", "回答太长"),
        ("/status/500", "返回了错误 500"),
        ("/status/404", "返回了错误 404"),
        ("/to", "返回了错误 302"),
    ],
)
def test_a_server_that_fails_is_told_in_words(world: World, backend: Backend, path: str, words: str) -> None:
    make_tool(world, backend, path, timeout_seconds=0.5)
    result = called(world, question_of(world), {"city": "北京"})
    assert (result.outcome, result.problem) == ("failed", "failed")
    assert words in result.text and backend.address not in result.text


def test_private_addresses_are_refused(world: World, backend: Backend, settings: Any) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = []
    make_tool(world, backend)
    result = called(world, question_of(world), {"city": "北京"})
    assert result.outcome == "failed" and backend.asked == []


def test_sites_do_not_see_each_others_tools(world: World, backend: Backend) -> None:
    make_tool(world, backend)
    SiteTool.across_sites.create(
        site=world.birch, name="weather", description="白桦", url="https://birch.example/"
    )
    theirs = make_message(make_conversation(world.carol), "天气？")
    assert known_tools(world.acorn.pk)[-1] == known_tools(world.birch.pk)[-1] == "weather"
    toolbox = load_toolbox(world.birch.pk, ["weather"], chat_id=theirs.conversation_id, question_id=theirs.pk)
    assert toolbox is not None and [spec.description for spec in toolbox.specs] == ["白桦"]
    assert load_toolbox(world.acorn.pk, ["weather"], chat_id=theirs.conversation_id, question_id=theirs.pk) is None
    SiteTool.across_sites.filter(site=world.birch).update(is_active=False)
    assert load_toolbox(world.birch.pk, ["weather"], chat_id=theirs.conversation_id, question_id=theirs.pk) is None


def test_a_tool_that_cannot_be_used_any_more_is_left_out(world: World, backend: Backend) -> None:
    row = make_tool(world, backend)
    SiteTool.across_sites.filter(pk=row.pk).update(url="ftp://x")
    question = question_of(world)
    toolbox = load_toolbox(
        world.acorn.pk, ["weather", "current_time"], chat_id=question.conversation_id, question_id=question.pk
    )
    assert toolbox is not None and [spec.name for spec in toolbox.specs] == ["current_time"]
