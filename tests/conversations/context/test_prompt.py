"""What a model is asked, and what is left out."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from conversations.context.prompt import build_prompt, estimate_tokens
from conversations.models import Conversation, Message
from tests.world import World, make_conversation, make_exchange, make_message


def prompt(chat: Conversation, question: Message, **settings: Any) -> list[tuple[str, str]]:
    """Return the prompt as pairs."""
    max_tokens = settings.pop("max_tokens", None)
    built = build_prompt(
        settings,
        site_id=chat.site_id,
        chat_id=chat.pk,
        question_id=question.pk,
        context_cleared_at=chat.context_cleared_at,
        max_tokens=max_tokens,
    )
    return [(message.role, message.content) for message in built]


def test_the_system_prompt_comes_first_and_the_question_last(world: World) -> None:
    chat = make_conversation(world.alice)
    make_exchange(chat, "一", "二")
    question = make_message(chat, "三")
    assert prompt(chat, question, system_prompt="你是橡果。") == [
        ("system", "你是橡果。"),
        ("user", "一"),
        ("assistant", "二"),
        ("user", "三"),
    ]


def test_twenty_messages_by_default(world: World) -> None:
    chat = make_conversation(world.alice)
    for number in range(15):
        make_exchange(chat, f"问{number}", f"答{number}")
    question = make_message(chat, "最后")
    built = prompt(chat, question)
    assert len(built) == 20
    assert built[0] == ("assistant", "答5")
    assert built[-1] == ("user", "最后")
    assert len(prompt(chat, question, history_messages=1)) == len(prompt(chat, question, history_messages=0)) == 1


@pytest.mark.parametrize(
    ("status", "content", "is_used"),
    [
        ("complete", "好", True),
        ("truncated", "好", True),
        ("stopped", "好", True),
        ("interrupted", "好", True),
        ("failed", "坏", False),
        ("complete", "", False),
    ],
)
def test_failed_and_empty_replies_are_left_out(world: World, status: str, content: str, is_used: bool) -> None:
    chat = make_conversation(world.alice)
    asked = make_message(chat, "问")
    make_message(chat, content, role="assistant", status=status, reply_to=asked)
    built = prompt(chat, make_message(chat, "再问"))
    assert (("assistant", content) in built) == is_used


def test_of_several_versions_the_newest_usable_one_counts(world: World) -> None:
    chat = make_conversation(world.alice)
    asked, _ = make_exchange(chat, "问", "一版")
    question = make_message(chat, "再问")
    make_message(chat, "二版", role="assistant", reply_to=asked, version=2)
    make_message(chat, "三版", role="assistant", reply_to=asked, version=3, status="failed")
    assert prompt(chat, question) == [("user", "问"), ("assistant", "二版"), ("user", "再问")]
    assert prompt(chat, asked) == [("user", "问")]


def test_the_budget_cuts_the_oldest_and_never_the_question(world: World) -> None:
    chat = make_conversation(world.alice)
    make_exchange(chat, "很" * 50, "旧" * 50)
    make_exchange(chat, "新问", "新答")
    question = make_message(chat, "这" * 30)
    assert prompt(chat, question, max_tokens=60) == [("user", "新问"), ("assistant", "新答"), ("user", "这" * 30)]
    assert prompt(chat, question, max_tokens=1) == [("user", "这" * 30)]


def test_nothing_before_a_cleared_context_is_seen(world: World) -> None:
    chat = make_conversation(world.alice)
    make_exchange(chat, "语音里说的", "语音里答的")
    chat.context_cleared_at = timezone.now()
    question = make_message(chat, "重新开始")
    assert prompt(chat, question) == [("user", "重新开始")]


def test_the_window_costs_one_query(world: World, django_assert_num_queries: Any) -> None:
    chat = make_conversation(world.alice)
    for number in range(3):
        make_exchange(chat, f"问{number}", "答")
    question = make_message(chat, "最后")
    with django_assert_num_queries(1):
        prompt(chat, question)


def test_tokens_are_estimated_for_chinese_and_english() -> None:
    assert (
        estimate_tokens(""),
        estimate_tokens("你好"),
        estimate_tokens("abcd"),
        estimate_tokens("你好 abc"),
    ) == (
        0,
        2,
        1,
        3,
    )


def test_an_answer_made_again_and_again_does_not_push_the_conversation_out(world: World) -> None:
    chat = make_conversation(world.alice)
    make_exchange(chat, "一", "二")
    asked, _ = make_exchange(chat, "三", "四之1")
    for version in range(2, 41):
        make_message(chat, f"四之{version}", role="assistant", reply_to=asked, version=version)
    question = make_message(chat, "五")
    assert [content for _, content in prompt(chat, question)] == ["一", "二", "三", "四之40", "五"]
