"""When a call is a turn of its own, and when it is the last one again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from conversations.voice.callback import SpokenTurn
from conversations.voice.turns import LastTurn, kind_of
from providers.types import ChatMessage

BEFORE = (ChatMessage("user", "一"), ChatMessage("assistant", "回答"))
TURN = SpokenTurn("今天天气", BEFORE)
LAST = LastTurn(
    question_id=1,
    reply_id=2,
    text="今天天气",
    title_is_its=True,
    status="stopped",
    is_heard=False,
    round_id="",
    before_hash=TURN.before_hash,
    age_seconds=1,
    ended_seconds=1,
)


def kind(turn: dict[str, Any], last: dict[str, Any], *, has_before: bool = True) -> str:
    return kind_of(replace(TURN, **turn), replace(LAST, **last), has_before=has_before)


def test_the_first_turn_is_new() -> None:
    assert kind_of(TURN, None, has_before=False) == "new"


@pytest.mark.parametrize(
    ("text", "is_heard", "found"),
    [
        ("今天天气", True, "again"),
        ("今天，天气？", True, "again"),
        ("今天天气怎么样", False, "grown"),
        ("今天天气怎么样", True, "grown"),
        ("金天天气怎么样", False, "grown"),
        ("金天天气怎么样", True, "new"),
        ("帮我订一张票", False, "new"),
        ("！", False, "new"),
    ],
)
def test_words_tell_a_turn_that_grew_from_another(text: str, is_heard: bool, found: str) -> None:
    assert kind({"text": text}, {"is_heard": is_heard}) == found


def test_another_history_makes_it_another_turn() -> None:
    assert kind({"before": (*BEFORE, ChatMessage("user", "今天天气"))}, {}) == "new"


def test_time_makes_it_another_turn() -> None:
    assert kind({}, {"age_seconds": 11, "ended_seconds": 11}) == "new"
    assert kind({}, {"status": "streaming", "age_seconds": 11, "ended_seconds": 0}) == "again"
    assert kind({}, {"status": "complete", "age_seconds": 9, "ended_seconds": 8}) == "again"


def test_without_any_history_an_answered_turn_is_soon_over() -> None:
    answered = {"status": "complete", "is_heard": True, "age_seconds": 5}
    assert kind({}, {**answered, "ended_seconds": 1}, has_before=False) == "again"
    assert kind({}, {**answered, "ended_seconds": 4}, has_before=False) == "new"
    assert kind({"text": "今天天气好"}, {**answered, "ended_seconds": 4}, has_before=False) == "new"


@pytest.mark.parametrize(
    ("text", "round_id", "found"),
    [("今天天气", "7", "again"), ("别的话", "7", "grown"), ("今天天气", "8", "new")],
)
def test_a_round_id_decides(text: str, round_id: str, found: str) -> None:
    old = {"round_id": "7", "age_seconds": 100, "is_heard": True, "before_hash": "another"}
    assert kind({"text": text, "round_id": round_id}, old) == found
