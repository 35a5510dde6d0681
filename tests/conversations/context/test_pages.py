"""Page sources: which are asked, what they say, and what a pageContext may be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conversations.context.pages import (
    CONTEXT_MAX_DEPTH,
    CONTEXT_MAX_VALUES,
    Visit,
    ask_page,
    check_source,
    context_trouble,
    matches,
    sources_for,
)
from conversations.models import PageSource
from tests.world import World

VISIT = Visit(
    site_id=1,
    page="order/detail",
    context={"order": {"id": 7}},
    question="到哪了？",
    user_id=5,
    membership_id=6,
    role="member",
    nickname="爱丽丝",
)


@pytest.mark.parametrize(
    ("pattern", "page", "is_meant"),
    [
        ("order/detail", "order/detail", True),
        ("order/*", "order/detail", True),
        ("*", "anything", True),
        ("ORDER/*", "order/Detail", True),
        ("order", "order/detail", False),
        ("order.detail", "order/detail", False),
        ("a*b*c", "a/x/b/y/c", True),
        ("a*b*c", "a/x/c", False),
        ("(a+)+$", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa!", False),
        ("a*a", "a", False),
        ("*b*b", "a-b", False),
        ("*a" * 60 + "!", "a" * 200, False),
        ("*a" * 60 + "*", "a" * 200, True),
    ],
)
def test_a_pattern_means_pages(pattern: str, page: str, is_meant: bool) -> None:
    assert matches(pattern, page) is is_meant


@pytest.mark.django_db
def test_only_active_sources_of_the_site_and_the_page_are_asked(world: World) -> None:
    for site, name, page, is_active in (
        (world.acorn, "二", "order/*", True),
        (world.acorn, "一", "*", True),
        (world.acorn, "关", "*", False),
        (world.acorn, "别页", "cart", True),
        (world.birch, "别家", "*", True),
    ):
        PageSource.across_sites.create(site=site, name=name, page=page, template="x", is_active=is_active)
    assert sorted(source.name for source in sources_for(world.acorn.pk, "order/7")) == ["一", "二"]
    assert sources_for(world.acorn.pk, "") == []


def test_a_text_is_filled_with_the_context_the_page_and_the_member() -> None:
    template = "${sourcePage} ${pageContext.order.id} ${member.nickname} ${question}"
    answer = asyncio.run(ask_page(PageSource(name="订单", kind="text", template=template), VISIT))
    assert (answer.name, answer.text, answer.card) == ("订单", "order/detail 7 爱丽丝 到哪了？", None)


@pytest.mark.parametrize("kind", ["text", "http"])
@pytest.mark.parametrize("request_said", [["card"], 5, "card"])
def test_a_request_that_is_no_object_is_named(kind: str, request_said: Any) -> None:
    with pytest.raises(ValueError, match="request: must be a JSON object"):
        check_source(PageSource(kind=kind, template="订单", request=request_said))


def test_a_card_without_a_title_is_none() -> None:
    source = PageSource(
        name="订单", kind="text", template="x", request={"card": {"title": "${pageContext.nothing}"}}
    )
    assert asyncio.run(ask_page(source, VISIT)).card is None


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "is_fine"),
    [
        ({}, True),
        ({"订单": {"id": 7, "行": [1, 2.5, None, True, "好"]}}, True),
        (nested(CONTEXT_MAX_DEPTH - 1), True),
        (nested(CONTEXT_MAX_DEPTH + 1), False),
        ({"a": list(range(CONTEXT_MAX_VALUES - 1))}, True),
        ({"a": list(range(CONTEXT_MAX_VALUES))}, False),
        ({"a": "长" * 32_000}, True),
        ({"a": "长" * 33_000}, False),
        ({"键" * 33_000: 1}, False),
    ],
    ids=[str(number) for number in range(9)],
)
def test_a_page_context_is_bounded(value: Any, is_fine: bool) -> None:
    before = repr(value)
    assert (context_trouble(value) is None) is is_fine
    assert repr(value) == before
