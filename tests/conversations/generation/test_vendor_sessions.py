"""Replies from an application that keeps the conversation itself, against real PostgreSQL and a real process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from django.utils import timezone

from conversations.generation import actions
from conversations.generation.engine import Engine
from conversations.models import Conversation, Message, VendorSession
from conversations.tenancy.tokens import Claims
from providers import registry
from providers.models import Endpoint
from tests.conversations.generation.conftest import claims_of, in_unit, new_chat, running_engines, send
from tests.fakes.provider import FakeProvider, expected_text, start_fake_provider
from tests.world import World

MEMBER = {"Role": "member", "Nickname": "爱丽丝"}


@pytest.fixture
def application(settings: Any) -> Iterator[FakeProvider]:
    """A fake application in a process of its own: its sessions are this test's."""
    with start_fake_provider() as fake:
        settings.PROVIDER_ALLOWED_ADDRESSES = [fake.address]
        yield fake


def connect(fake: FakeProvider, **fields: Any) -> Endpoint:
    """Save the endpoint of the application and return it."""
    row = Endpoint(
        name="百炼",
        dialect="dashscope_app",
        base_url=f"http://{fake.address}",
        model="app-1",
        priority=1,
        **fields,
    )
    row.save()
    registry.refresh()
    return row


@asynccontextmanager
async def talking(people: World) -> AsyncIterator[tuple[Engine, Claims, Conversation]]:
    """Yield an engine, Alice, and an empty chat of hers."""
    chat, claims = await in_unit(new_chat, people.alice), await in_unit(claims_of, people.alice)
    async with running_engines() as [engine]:
        yield engine, claims, chat


async def answered(engine: Engine, claims: Claims, chat: Conversation, content: str) -> Message:
    """Return the reply to this, as it is stored when the reader has been told of the end."""
    started = await send(engine, claims, chat, content)
    await engine.ended(started.reply_id)
    reply: Message = await in_unit(Message.across_sites.get, pk=started.reply_id)
    return reply


def asked(fake: FakeProvider) -> list[dict[str, Any]]:
    """Return what the application was asked, oldest first."""
    return [body["input"] for body in fake.stats()["bodies"]]


async def test_a_chat_goes_on_in_the_session_that_the_application_began(
    people: World, application: FakeProvider
) -> None:
    await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        first = await answered(engine, claims, chat, "第一问")
        await answered(engine, claims, chat, "第二问")
    member = {"User_ID": str(people.alice.user_id), **MEMBER}
    assert asked(application) == [
        {"prompt": "第一问", "biz_params": member},
        {"prompt": "第二问", "session_id": "session-1", "biz_params": member},
    ]
    assert (first.content, first.status, first.usage) == (
        expected_text(),
        "complete",
        {"inputTokens": 10, "outputTokens": 8},
    )


async def test_a_lost_session_is_replaced_and_the_new_one_kept(people: World, application: FakeProvider) -> None:
    await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        first = await answered(engine, claims, chat, "第一问 [[lost=1]]")
        second = await answered(engine, claims, chat, "第二问")
        kept = await in_unit(lambda: list(VendorSession.across_sites.values_list("site_id", "session")))
        await answered(engine, claims, chat, "第三问")
    third, seeded, last = asked(application)[1:]
    assert third["session_id"] == "session-1"
    assert "session_id" not in seeded
    assert seeded["messages"] == [
        {"role": "user", "content": "第一问 [[lost=1]]"},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "第二问"},
    ]
    assert (second.status, kept) == ("complete", [(people.acorn.pk, "session-2")])
    assert (last["prompt"], last["session_id"]) == ("第三问", "session-2")
    attempts = await in_unit(lambda: list(second.generations.values_list("attempt", "status")))
    assert attempts == [(1, "complete")], "it is one attempt, inside the client"


async def test_documents_are_the_reference_card_and_thoughts_reasoning(
    people: World, application: FakeProvider
) -> None:
    await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        started = await send(engine, claims, chat, "问 [[documents=1 thoughts=2]]")
        _, ending = await engine.ended(started.reply_id)
        reply = await in_unit(Message.across_sites.get, pk=started.reply_id)
    assert reply.reference_card == ending.reference_card != None  # noqa: E711
    assert [source["title"] for source in reply.reference_card["sources"]] == ["手册1"]
    assert (reply.reasoning, reply.content) == ("想0想1", expected_text())


async def test_a_session_that_missed_a_turn_is_not_gone_on_with(people: World, application: FakeProvider) -> None:
    row = await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        await answered(engine, claims, chat, "第一问")
        await in_unit(Endpoint.objects.filter(pk=row.pk).update, is_active=False)
        await in_unit(Endpoint.objects.create, name="别的", dialect="scripted", model="m", priority=5)
        await in_unit(registry.refresh)
        elsewhere = await answered(engine, claims, chat, "[[n=3]]")
        await in_unit(Endpoint.objects.filter(pk=row.pk).update, is_active=True)
        await in_unit(registry.refresh)
        await answered(engine, claims, chat, "第三问")
        await answered(engine, claims, chat, "第四问")
    after, last = asked(application)[-2:]
    assert "session_id" not in after
    assert after["messages"][-2] == {"role": "assistant", "content": elsewhere.content}
    assert last["session_id"] == "session-2"


async def test_another_version_of_an_answer_begins_a_session(people: World, application: FakeProvider) -> None:
    await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        reply = await answered(engine, claims, chat, "第一问")
        started = await engine.accept(
            actions.regenerate_reply, claims, reply.pk, idempotency_key=None, body_hash=""
        )
        await engine.ended(started.reply_id)
    assert [one.get("session_id") for one in asked(application)] == [None, None]


@pytest.mark.parametrize("what", ["context cleared", "endpoint changed"])
async def test_a_session_ends_with_its_context_and_its_endpoint(
    people: World, application: FakeProvider, what: str
) -> None:
    row = await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        await answered(engine, claims, chat, "第一问")
        if what == "context cleared":
            chats = Conversation.across_sites.filter(pk=chat.pk)
            await in_unit(chats.update, context_cleared_at=timezone.now())
        else:
            await in_unit(row.save)
        await answered(engine, claims, chat, "第二问")
    assert [one.get("session_id") for one in asked(application)] == [None, None]


async def test_a_session_goes_with_its_endpoint_and_its_chat(people: World, application: FakeProvider) -> None:
    row = await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        await answered(engine, claims, chat, "第一问")
        assert await in_unit(VendorSession.across_sites.count) == 1
        await in_unit(row.delete)
        assert await in_unit(VendorSession.across_sites.count) == 0


async def test_a_blocked_answer_keeps_what_was_said(people: World, application: FakeProvider) -> None:
    await in_unit(connect, application)
    async with talking(people) as (engine, claims, chat):
        reply = await answered(engine, claims, chat, "问 [[fault=apperror after=2]]")
    assert (reply.status, reply.error_code, reply.content) == ("failed", "content_blocked", expected_text(n=2))
