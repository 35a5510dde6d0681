from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from conversations.errors import BadRequest, NotFound
from conversations.history import queries
from conversations.models import Conversation, Message
from conversations.tenancy.access import access_message
from tests.world import (
    World,
    fold_text,
    log_text,
    make_conversation,
    make_exchange,
    make_message,
    make_running_reply,
    make_worker,
)


def make_history(world: World, count: int) -> list[Conversation]:
    """Alice's conversations, newest first."""
    now = timezone.now()
    return [
        make_conversation(world.alice, title=f"对话 {index}", last_message_at=now - timedelta(minutes=index))
        for index in range(count)
    ]


def test_the_history_shows_pinned_first_then_the_newest_activity(world: World) -> None:
    chats = make_history(world, 4)
    Conversation.across_sites.filter(pk=chats[2].pk).update(is_pinned=True)
    page = queries.history_page(world.alice)
    assert page.items == [chats[2], chats[0], chats[1], chats[3]]
    assert (page.total, page.next_cursor) == (4, None)


def test_the_history_holds_nothing_of_others_nothing_deleted_and_nothing_archived(world: World) -> None:
    own = make_conversation(world.alice)
    archived = make_conversation(world.alice, is_archived=True)
    make_conversation(world.alice, deleted_at=timezone.now())
    make_conversation(world.bob)
    make_conversation(world.carol)
    assert queries.history_page(world.alice).items == [own]
    assert queries.history_page(world.alice, is_archived=True).items == [archived]


@pytest.mark.parametrize("page_size", [1, 2, 3, 5, 100])
def test_pages_and_cursors_walk_the_same_list(world: World, page_size: int) -> None:
    chats = make_history(world, 7)
    Conversation.across_sites.filter(pk__in=[chats[1].pk, chats[5].pk]).update(is_pinned=True)
    Conversation.across_sites.filter(pk__in=[chats[2].pk, chats[3].pk]).update(last_message_at=timezone.now())
    whole = [chat.pk for chat in queries.history_page(world.alice, page_size=100).items]

    by_page = [
        chat.pk
        for number in range(1, 9)
        for chat in queries.history_page(world.alice, page=number, page_size=page_size).items
    ]
    page = queries.history_page(world.alice, page_size=page_size)
    by_cursor = [chat.pk for chat in page.items]
    while page.next_cursor:
        page = queries.history_page(world.alice, page_size=page_size, cursor=page.next_cursor)
        by_cursor += [chat.pk for chat in page.items]
    assert (len(whole), by_page, by_cursor) == (7, whole, whole)


def test_a_page_beyond_the_end_is_empty_and_knows_the_total(world: World) -> None:
    make_history(world, 2)
    page = queries.history_page(world.alice, page=10**12, page_size=100)
    assert (page.items, page.total, page.next_cursor) == ([], 2, None)


def test_the_history_is_searched_by_title_and_by_what_was_said(world: World) -> None:
    by_title = make_conversation(world.alice, title="100% 完成")
    by_content = make_conversation(world.alice)
    make_exchange(by_content, answer="约 100% 吧")
    make_exchange(make_conversation(world.alice, title="1000 完成"))
    make_exchange(make_conversation(world.bob), answer="100%")
    assert set(queries.history_page(world.alice, q="100%").items) == {by_title, by_content}


def test_the_history_is_filtered_by_context_type(world: World) -> None:
    task = make_conversation(world.alice, context_type="task")
    make_conversation(world.alice)
    assert queries.history_page(world.alice, context_type="task").items == [task]


def test_the_history_says_where_a_reply_is_under_way(world: World) -> None:
    quiet, busy = make_conversation(world.alice), make_conversation(world.alice)
    make_exchange(quiet)
    make_running_reply(busy, make_worker())
    states = {chat.pk: chat.is_generating for chat in queries.history_page(world.alice).items}
    assert states == {quiet.pk: False, busy.pk: True}


def cursor(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "游标",
        "!!!!",
        "a" * 300,
        cursor([]),
        cursor({}),
        cursor([0, "2026-11-20T00:00:00", 1]),
        cursor([0, "2026-11-20T00:00:00+00:00", 2**63]),
        cursor([0, "2026-11-20T00:00:00+00:00", True]),
        cursor([2, "2026-11-20T00:00:00+00:00", 1]),
        cursor([[], "2026-11-20T00:00:00+00:00", 1]),
        cursor([0, "0001-01-01T00:00:00+14:00", 1]),
        cursor([0, 5, 1]),
    ],
)
def test_a_bad_cursor_is_refused(world: World, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        queries.history_page(world.alice, cursor=text)
    assert caught.value.code == "bad_cursor"


@pytest.mark.parametrize("page_size", [1, 2, 3, 50])
def test_messages_come_oldest_first_on_page_one(world: World, page_size: int) -> None:
    chat = make_conversation(world.alice)
    written = [make_message(chat, f"第 {index} 句").pk for index in range(5)]
    make_message(make_conversation(world.alice))
    read = [
        message.pk
        for page in range(1, 7)
        for message in queries.message_page(chat, page=page, page_size=page_size).items
    ]
    assert read == written
    assert queries.message_page(chat, page=99, page_size=page_size).total == 5


def test_messages_before_after_and_around_one(world: World) -> None:
    chat = make_conversation(world.alice)
    ids = [make_message(chat, str(index)).pk for index in range(9)]

    def pks(page: queries.Page) -> list[int]:
        return [message.pk for message in page.items]

    assert pks(queries.messages_before(chat, ids[4], limit=3)) == ids[1:4]
    assert pks(queries.messages_after(chat, ids[4], limit=3)) == ids[5:8]
    assert pks(queries.messages_around(chat, ids[4], limit=3)) == ids[3:6]
    assert pks(queries.messages_around(chat, ids[4], limit=4)) == ids[3:7]
    assert pks(queries.messages_around(chat, ids[0], limit=1)) == ids[:1]
    assert pks(queries.messages_before(chat, 10**30, limit=2)) == ids[-2:]
    assert pks(queries.messages_after(chat, 10**30, limit=2)) == []


def test_around_a_message_of_another_chat_is_not_found(world: World) -> None:
    chat = make_conversation(world.alice)
    make_exchange(chat)
    foreign = make_message(make_conversation(world.bob))
    for message_id in (foreign.pk, foreign.pk + 1, 0, 10**30):
        with pytest.raises(NotFound):
            queries.messages_around(chat, message_id)


def test_a_list_costs_the_same_for_one_row_and_three(world: World, django_assert_num_queries: Any) -> None:
    worker = make_worker()
    for count in (1, 3):
        for chat in make_history(world, count):
            make_exchange(chat)
            for _ in range(count):
                make_message(chat)
            _, reply = make_running_reply(chat, worker)
        with django_assert_num_queries(3):
            queries.history_page(world.alice)
        with django_assert_num_queries(4):
            queries.message_page(chat)
        with django_assert_num_queries(3):
            queries.messages_before(chat, 10**9)
        with django_assert_num_queries(4):
            queries.messages_around(chat, reply.pk)


def test_a_running_reply_shows_what_is_committed_so_far(world: World) -> None:
    chat, worker = make_conversation(world.alice), make_worker()
    _, reply = make_running_reply(chat, worker)
    _, neighbour = make_running_reply(make_conversation(world.bob), worker)
    fold_text(reply, 0, "从前有座", reasoning="想一")
    fold_text(reply, 4, "山，", reasoning_offset=2, reasoning="想")
    log_text(worker, 7, json.dumps([[reply.pk, 4, "山，山"], [neighbour.pk, 0, "秘密"]]))
    log_text(worker, 8, json.dumps([[reply.pk, 7, "里👨\u200d👩", 3, "。"]]))
    log_text(make_worker(), 9, json.dumps([[reply.pk, 11, "别人写的"]]))
    assert queries.running_text(reply) == ("从前有座山，山里👨\u200d👩", "想一想。")
    shown = queries.message_page(chat).items[-1]
    assert (shown.content, shown.status) == ("从前有座山，山里👨\u200d👩", "streaming")


def test_a_reply_that_was_sealed_meanwhile_shows_its_stored_text(world: World) -> None:
    chat = make_conversation(world.alice)
    _, reply = make_running_reply(chat, make_worker())
    type(reply).across_sites.filter(pk=reply.pk).update(status="complete", content="完", reasoning="想")
    assert queries.running_text(reply) == ("完", "想")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([], ""),
        ([(0, "")], ""),
        ([(3, "d"), (0, "abc")], "abcd"),
        ([(0, "abc"), (1, "bcde"), (2, "c")], "abcde"),
        ([(0, "ab"), (3, "d")], "ab"),
        ([(1, "b")], ""),
        ([(0, "山👍"), (2, "水")], "山👍水"),
    ],
)
def test_pieces_fold_by_offset_up_to_the_first_gap(pieces: list[tuple[int, str]], text: str) -> None:
    assert queries.fold(pieces) == text


def test_runs_of_tools_are_no_part_of_the_history(world: World) -> None:
    chat = make_conversation(world.alice)
    question, reply = make_exchange(chat)
    tool = Message.across_sites.create(
        site_id=chat.site_id,
        conversation=chat,
        role="tool",
        content='{"name":"查机密","at":[0,0]}',
        reply_to=reply,
        created_at=timezone.now(),
    )
    for page in (
        queries.message_page(chat),
        queries.messages_before(chat, tool.pk + 1),
        queries.messages_after(chat, 0),
        queries.messages_around(chat, reply.pk),
    ):
        assert [item.pk for item in page.items] == [question.pk, reply.pk]
        assert page.total == 2
    assert queries.history_page(world.alice, q="查机密").total == 0
    with pytest.raises(NotFound):
        queries.messages_around(chat, tool.pk)
    with pytest.raises(NotFound):
        access_message(world.alice, tool.pk)
