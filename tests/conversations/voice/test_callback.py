"""What the platform may send, and what of it is read."""

from __future__ import annotations

from typing import Any

import pytest

from conversations.voice.callback import MAX_TOKENS, CallbackError, SpokenTurn, read_turn
from providers.types import ChatMessage


def turn(messages: list[Any], **more: Any) -> SpokenTurn:
    return read_turn({"messages": messages, **more})


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "welcome",
    [
        "欢迎语",
        " 欢迎语\n",
        [{"type": "text", "text": "欢迎语"}],
        [{"type": "text", "text": " 欢迎"}, {"text": "语 "}],
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_welcome_is_left_out_wherever_it_stands(welcome: Any, place: int) -> None:
    messages = [said("assistant", "您好"), said("user", "今天天气"), said("user", "怎么样")]
    messages.insert(place, said("user", welcome))
    read = turn(messages)
    assert read.text == "怎么样"
    assert read.before == (ChatMessage("assistant", "您好"), ChatMessage("user", "今天天气"))


def test_only_a_persons_exact_welcome_is_left_out() -> None:
    read = turn([said("assistant", "欢迎语"), said("user", "什么是欢迎语"), said("user", "好")])
    assert [message.content for message in read.before] == ["欢迎语", "什么是欢迎语"]


def test_parts_of_text_are_joined_and_others_left_out() -> None:
    parts = [
        {"type": "text", "text": "这是"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "什么？"},
        7,
    ]
    assert turn([said("user", parts)]).text == "这是什么？"


@pytest.mark.parametrize(
    ("given", "params"),
    [
        ({}, {}),
        (
            {"max_tokens": 100, "temperature": 0.1, "top_p": 0.3},
            {"max_tokens": 100, "temperature": 0.1, "top_p": 0.3},
        ),
        ({"maxTokens": 7}, {"max_tokens": 7}),
        (
            {"max_tokens": 10**30, "temperature": 9, "top_p": 5},
            {"max_tokens": MAX_TOKENS, "temperature": 2, "top_p": 1},
        ),
        ({"max_tokens": 0, "temperature": -1, "top_p": 0}, {"temperature": 0}),
        ({"max_tokens": "9", "temperature": None, "top_p": True}, {}),
        ({"tools": [{"type": "function"}], "thinking": {"type": "disabled"}, "n": 3}, {}),
    ],
)
def test_settings_for_the_model_are_brought_within_bounds(given: dict[str, Any], params: dict[str, Any]) -> None:
    assert turn([said("user", "好")], **given).params == params


@pytest.mark.parametrize(
    ("given", "round_id"),
    [
        ({"round_id": "7"}, "7"),
        ({"RoundID": 12}, "12"),
        ({"roundId": 0}, "0"),
        ({"custom": {"round_id": "c"}}, "c"),
        ({"custom": '{"RoundId": "s"}'}, "s"),
        ({"custom": "not json"}, ""),
        ({"custom": "[1]", "round_id": True}, ""),
        ({}, ""),
    ],
)
def test_the_round_is_found_under_any_spelling(given: dict[str, Any], round_id: str) -> None:
    assert turn([said("user", "好")], **given).round_id == round_id


def test_a_stream_is_the_default() -> None:
    assert turn([said("user", "好")]).is_stream
    assert not turn([said("user", "好")], stream=False).is_stream
    assert turn([said("user", "好")], stream_options={"include_usage": True}).includes_usage
    assert not turn([said("user", "好")], stream_options="x").includes_usage


@pytest.mark.parametrize("body", [None, 3, "x", {"messages": None}, {"messages": [1]}, {"messages": [{}]}])
def test_what_is_no_conversation_is_refused(body: Any) -> None:
    with pytest.raises(CallbackError) as caught:
        read_turn(body)
    assert (caught.value.status, caught.value.code) == (400, "BadRequest")


def test_what_cannot_be_stored_is_mapped_rather_than_lost() -> None:
    read = turn([said("user", "空\0字\ud800")], model="m\udc00")
    assert (read.text, read.model) == ("空\ufffd字\ufffd", "m\ufffd")


def test_one_turn_has_one_mark_however_long_its_text() -> None:
    before = [said("user", "一"), said("assistant", "二")]
    short, longer = turn([*before, said("user", "今天")]), turn([*before, said("user", "今天天气")])
    assert short.before_hash == longer.before_hash != turn([said("user", "今天")]).before_hash
