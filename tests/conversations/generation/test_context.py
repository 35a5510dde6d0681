"""A reply that knows the site's documents and the member's page, from the question to the sealed card."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conversations.context.documents import add_document
from conversations.db import tenant
from conversations.models import Message, PageSource, Site
from conversations.tenancy.tokens import Claims
from tests.conversations.generation.conftest import claims_of, in_unit, new_chat, running_engines, send
from tests.world import World

HANDBOOK = "# 退款\n审核通过后，款项在三个工作日内原路退回。\n\n# 运费\n质量问题由商家承担运费。"


def know(site: Site, **settings: Any) -> int:
    with tenant(site.pk):
        document = add_document(site.pk, filename="手册.md", content=HANDBOOK.encode(), title="手册")
    Site.objects.filter(pk=site.pk).update(settings=settings)
    return document.pk


async def ask(claims: Claims, chat: Any, question: str, **more: Any) -> tuple[Message, Message]:
    """Return question and reply as they were stored."""
    async with running_engines() as (engine,):
        started = await send(engine, claims, chat, question, **more)
        await engine.ended(started.reply_id)
    rows = await in_unit(lambda: Message.across_sites.in_bulk([started.user_message_id, started.reply_id]))
    return rows[started.user_message_id], rows[started.reply_id]


async def test_the_stand_in_quotes_the_passage_and_the_reply_has_its_card(people: World) -> None:
    pk = await in_unit(know, people.acorn, knowledge="before")
    claims, chat = await in_unit(claims_of, people.alice), await in_unit(new_chat, people.alice)
    question, reply = await ask(claims, chat, "退款要几个工作日？")
    assert question.content == "退款要几个工作日？"
    assert "「审核通过后，款项在三个工作日内原路退回。」" in reply.content
    card = reply.reference_card
    assert (card["type"], card["title"]) == ("knowledge", "退款")
    assert [(source["title"], source["documentId"]) for source in card["sources"]] == [("手册", pk)]


@pytest.mark.parametrize("mode", ["off", "tool"])
async def test_other_settings_retrieve_nothing_before_the_call(people: World, mode: str) -> None:
    await in_unit(know, people.acorn, knowledge=mode)
    claims, chat = await in_unit(claims_of, people.alice), await in_unit(new_chat, people.alice)
    _, reply = await ask(claims, chat, "退款要几个工作日？")
    assert reply.reference_card is None
    assert "三个工作日" not in reply.content


async def test_another_sites_documents_are_never_told(people: World) -> None:
    await in_unit(know, people.acorn, knowledge="before")
    await in_unit(lambda: Site.objects.filter(pk=people.birch.pk).update(settings={"knowledge": "before"}))
    claims, chat = await in_unit(claims_of, people.carol), await in_unit(new_chat, people.carol)
    _, reply = await ask(claims, chat, "退款要几个工作日？")
    assert (reply.reference_card, "三个工作日" in reply.content) == (None, False)


async def test_a_page_speaks_to_the_model_and_the_stored_question_and_context_stay(people: World) -> None:
    await in_unit(
        PageSource.across_sites.create,
        site=people.acorn,
        name="订单",
        page="pages/order*",
        template="订单 ${pageContext.order.id}，状态 ${pageContext.order.state}。",
        request={"card": {"title": "订单 ${pageContext.order.id}", "url": "/orders/${pageContext.order.id}"}},
    )
    context = {"order": {"id": 7, "state": "已发货", "items": [1, 2.5, None, True]}}
    claims, chat = await in_unit(claims_of, people.alice), await in_unit(new_chat, people.alice)
    question, reply = await ask(
        claims, chat, "到哪了？", source_page="pages/order/detail", page_context=dict(context)
    )
    assert (question.content, question.page_context) == ("到哪了？", context)
    assert "订单 7，状态 已发货。" in reply.content
    assert (reply.reference_card["type"], reply.reference_card["title"]) == ("page", "订单 7")
    assert reply.reference_card["url"] == "/orders/7"


async def test_a_source_that_fails_costs_the_reply_nothing(people: World, caplog: Any) -> None:
    await in_unit(know, people.acorn, knowledge="before")
    await in_unit(
        PageSource.across_sites.create,
        site=people.acorn,
        name="坏",
        page="*",
        kind="http",
        request={"url": "http://127.0.0.1:9/x"},
    )
    claims, chat = await in_unit(claims_of, people.alice), await in_unit(new_chat, people.alice)
    _, reply = await ask(claims, chat, "退款要几个工作日？", source_page="pages/index")
    assert (reply.status, reply.reference_card["type"]) == ("complete", "knowledge")
    failed = [record for record in caplog.records if record.message == "page_source_failed"]
    assert [record.code for record in failed] == ["address_refused"]


async def test_a_stopped_reply_keeps_the_card_of_what_it_leans_on(people: World) -> None:
    await in_unit(know, people.acorn, knowledge="before")
    claims, chat = await in_unit(claims_of, people.alice), await in_unit(new_chat, people.alice)
    async with running_engines() as (engine,):
        started = await send(engine, claims, chat, "退款要几个工作日？[[n=5000 rate=50]]")
        async with engine.attach(started.reply_id) as buffer:
            while not buffer.final_text()[0]:
                await asyncio.sleep(0.02)
        await engine.stop(started)
    reply = await in_unit(Message.across_sites.get, pk=started.reply_id)
    assert (reply.status, reply.reference_card["title"]) == ("stopped", "退款")
