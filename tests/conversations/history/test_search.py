from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from conversations.history.search import excerpt_of, search_messages
from tests.world import World, make_conversation, make_exchange, make_message


def test_a_match_names_its_chat_and_shows_where_it_is(world: World) -> None:
    chat = make_conversation(world.alice, title="天气")
    _, reply = make_exchange(chat, question="如何？", answer="晴，二十度，晴。")
    (found,) = search_messages(world.alice, q="晴").items
    assert (found.message_id, found.chat_id, found.title) == (reply.pk, chat.pk, "天气")
    assert (found.excerpt, found.highlights) == ("晴，二十度，晴。", [(0, 1), (6, 7)])


def test_only_the_members_own_visible_messages_are_searched(world: World) -> None:
    make_exchange(make_conversation(world.bob), answer="秘密")
    make_exchange(make_conversation(world.carol), answer="秘密")
    make_exchange(make_conversation(world.alice, deleted_at=timezone.now()), answer="秘密")
    make_message(make_conversation(world.alice), "秘密", role="system")
    assert search_messages(world.alice, q="秘密").total == 0


@pytest.mark.parametrize("q", ["100%", "a_b", "c\\d", "'; --", "%", "_", "\\"])
def test_wildcards_and_quotes_mean_themselves(world: World, q: str) -> None:
    chat = make_conversation(world.alice)
    wanted = make_message(chat, f"前{q}后")
    make_message(chat, "1000 axb cd 前后")
    assert [found.message_id for found in search_messages(world.alice, q=q).items] == [wanted.pk]


def test_results_come_newest_first_by_page(world: World, django_assert_num_queries: Any) -> None:
    chat = make_conversation(world.alice)
    ids = [make_message(chat, "同一句").pk for _ in range(5)]
    with django_assert_num_queries(2):
        page = search_messages(world.alice, q="一", page=2, page_size=2)
    assert [found.message_id for found in page.items] == [ids[2], ids[1]]
    assert page.total == 5
    assert search_messages(world.alice, q="一", page=9).items == []


def test_a_long_message_is_shown_around_the_first_match() -> None:
    excerpt, highlights = excerpt_of("前" * 500 + "Needle" + "后" * 500, "needle")
    ((start, end),) = highlights
    assert excerpt[start:end] == "Needle"
    assert excerpt.startswith("…前") and excerpt.endswith("后…")
    assert len(excerpt) == 122


def test_a_match_that_only_the_database_sees_is_shown_without_marks() -> None:
    assert excerpt_of("内容", "x") == ("内容", [])
