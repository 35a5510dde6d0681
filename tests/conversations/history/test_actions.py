from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from conversations.db import tenant
from conversations.errors import Invalid
from conversations.history import actions
from conversations.models import Conversation, Membership
from tests.world import (
    World,
    make_conversation,
    make_exchange,
    make_running_reply,
    make_worker,
    make_world,
)


def find(member: Membership, context_type: str, context_id: str = "7") -> Conversation:
    conversation, _ = actions.find_or_create_for_context(member, context_type=context_type, context_id=context_id)
    return conversation


def days_ago(days: float) -> Any:
    return timezone.now() - timedelta(days=days)


def test_a_task_has_one_conversation_for_ever(world: World) -> None:
    first = make_conversation(world.alice, context_type="task", context_id="7", last_message_at=days_ago(1000))
    assert find(world.alice, "task") == first
    assert find(world.alice, "task", "8") != first


@pytest.mark.parametrize("context_type", ["customer", "coach"])
def test_customer_and_coach_reuse_within_three_days(world: World, context_type: str) -> None:
    recent = make_conversation(
        world.alice, context_type=context_type, context_id="7", last_message_at=days_ago(2.9)
    )
    assert find(world.alice, context_type) == recent
    Conversation.across_sites.update(last_message_at=days_ago(3.1))
    assert find(world.alice, context_type) != recent


@pytest.mark.parametrize("context_type", ["general", "unknown", "报表"])
def test_general_and_unknown_types_are_always_new(world: World, context_type: str) -> None:
    assert find(world.alice, context_type) != find(world.alice, context_type)


def test_a_site_may_set_its_own_reuse_rules(world: World) -> None:
    world.acorn.settings = {"context_reuse_seconds": {"general": -1, "task": 0}}
    assert find(world.alice, "general") == find(world.alice, "general")
    assert find(world.alice, "task") != find(world.alice, "task")


def test_a_context_belongs_to_one_member(world: World) -> None:
    chats = {find(member, "task").pk for member in (world.alice, world.bob, world.carol)}
    assert len(chats) == 3


def test_a_deleted_conversation_is_not_found_again(world: World) -> None:
    first = find(world.alice, "task")
    actions.delete_conversation(first)
    assert find(world.alice, "task") != first


@pytest.mark.django_db(transaction=True)
def test_fifty_parallel_first_calls_give_one_conversation() -> None:
    alice = make_world().alice

    def call(_: int) -> int:
        try:
            with tenant(alice.site_id):
                return find(alice, "task").pk
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(call, range(50)))
    assert found == set(Conversation.across_sites.values_list("pk", flat=True))
    assert len(found) == 1


def test_beginning_a_conversation_makes_a_new_one_unless_the_context_has_one_for_ever(world: World) -> None:
    def begin(context_type: str, title: str = "") -> tuple[Conversation, bool]:
        return actions.begin_conversation(world.alice, context_type=context_type, context_id="7", title=title)

    assert begin("customer")[0] != begin("customer")[0]
    task, is_new = begin("task", " 周报 ")
    assert (task.title, is_new) == ("周报", True)
    assert begin("task", "改名") == (task, False)


def test_deleting_hides_and_asks_the_running_reply_to_stop(world: World) -> None:
    chat = make_conversation(world.alice)
    _, reply = make_running_reply(chat, make_worker())
    actions.delete_conversation(chat)
    chat.refresh_from_db()
    reply.refresh_from_db()
    assert chat.deleted_at is not None
    assert (reply.status, reply.stop_requested_at is not None) == ("streaming", True)


def test_feedback_is_given_and_taken_back(world: World) -> None:
    _, reply = make_exchange(make_conversation(world.alice))
    actions.set_feedback(reply, rating="down", reason=" 太长 ")
    reply.refresh_from_db()
    assert (reply.feedback, reply.feedback_reason) == ("down", "太长")
    actions.set_feedback(reply, rating=None, reason="忘了")
    reply.refresh_from_db()
    assert (reply.feedback, reply.feedback_reason) == ("", "")


def test_a_question_takes_no_feedback(world: World) -> None:
    asked, _ = make_exchange(make_conversation(world.alice))
    with pytest.raises(Invalid) as caught:
        actions.set_feedback(asked, rating="up")
    assert caught.value.code == "not_a_reply"


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("", ""),
        ("  你好  ", "你好"),
        ("第一行\n第二行\t三", "第一行 第二行 三"),
        ("今天天气如何？我想出门。", "今天天气如何？"),
        ("嗯。然后呢", "嗯。然后呢"),
        ("春" * 30, "春" * 30),
        ("春" * 31, "春" * 30 + "…"),
        ("请帮我写一份报告。内容如下", "请帮我写一份报告"),
        ("How do I bake bread? I have flour.", "How do I bake bread?"),
        ("version 3.11 is what I would like to use", "version 3.11 is what I would…"),
        ("x" * 29 + "👨\u200d👩\u200d👧" + "y", "x" * 29 + "…"),
        ("x" * 29 + "e\u0301" + "y", "x" * 29 + "…"),
        ("x" * 29 + "👍🏽" + "yz", "x" * 29 + "…"),
        ("\u0301" * 40, "\u0301" * 30 + "…"),
    ],
)
def test_a_title_is_made_from_the_first_question(question: str, title: str) -> None:
    assert actions.shorten_title(question) == title
