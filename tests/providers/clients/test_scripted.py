"""The scripted provider: its script, its directives, and the stand-in that says what it is."""

import asyncio
import time
from typing import Any

import pytest

from providers import errors
from providers.base import ChatProvider
from providers.clients.scripted import ScriptedProvider, parse_directive, text_of
from providers.types import Usage
from tests.fakes.provider import expected_text
from tests.providers.conftest import Answer, collect


def say(question: str, script: list[dict[str, Any]] | None = None) -> Answer:
    """Return what the provider says."""
    return asyncio.run(collect(ScriptedProvider(script, step_seconds=0), question))


def test_it_is_a_provider() -> None:
    assert isinstance(ScriptedProvider(), ChatProvider)


def test_it_plays_its_script() -> None:
    answer = say(
        "你好", [{"reasoning": "想"}, {"text": "甲"}, {"sleep": 0.01}, {"text": "乙\0"}, {"finish": "length"}]
    )
    assert (answer.reasoning, answer.text) == ("想", "甲乙\ufffd")
    assert answer.finished is not None
    assert answer.finished.finish_reason == "length"


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ({"error": "rate_limited"}, errors.RateLimited),
        ({"error": "unauthorized"}, errors.Unauthorized),
        ({"error": "timed_out_first"}, errors.TimedOut),
        ({"cut": True}, errors.StreamCut),
    ],
)
def test_a_script_can_fail_after_some_text(step: dict[str, Any], kind: type[errors.ProviderError]) -> None:
    answer = say("你好", [{"text": "半"}, step, {"text": "never"}])
    assert answer.text == "半"
    assert type(answer.error) is kind


def test_a_directive_gives_the_tokens_of_its_seed() -> None:
    answer = say("请 [[seed=7 n=500 rate=0]]")
    assert answer.text == text_of(7, 500) == expected_text(7, 500)
    assert answer.finished is not None and answer.finished.usage is not None
    assert answer.finished.usage.output_tokens == 500


def test_a_directive_keeps_its_pace() -> None:
    began = time.monotonic()
    answer = say("[[n=20 rate=50]]")
    assert answer.text == text_of(1, 20)
    assert 0.3 < time.monotonic() - began < 10


def test_a_directive_can_think_and_fail() -> None:
    answer = say("[[n=3 reasoning=2 fail=content_blocked]]")
    assert answer.text == text_of(1, 3)
    assert answer.reasoning == text_of(2, 2)
    assert isinstance(answer.error, errors.ContentBlocked)


@pytest.mark.parametrize("text", ["plain", "[[not a directive]]", "[[n=abc]]", "[n=5]", ""])
def test_other_text_is_no_directive(text: str) -> None:
    assert parse_directive(text) is None


def test_a_directive_cannot_ask_for_the_moon() -> None:
    directive = parse_directive("[[n=99999999999 ttft=99999999999]]")
    assert directive is not None
    assert (directive.tokens, directive.ttft_seconds) == (100_000, 3600.0)


@pytest.mark.parametrize(
    ("question", "words"),
    [("春天为什么暖和？", ["「春天为什么暖和？」", "替身", "LLM_BASE_URL"]),
     ("Why is spring warm?", ["“Why is spring warm?”", "stand-in", "LLM_BASE_URL"])],
)  # fmt: skip
def test_the_stand_in_says_what_it_is_in_the_language_of_the_question(question: str, words: list[str]) -> None:
    answer = say(question)
    assert all(word in answer.text for word in words)
    assert len(answer.deltas) > 5
    assert answer.finished is not None
    assert isinstance(answer.finished.usage, Usage) and answer.finished.usage.is_estimated


def test_the_stand_in_quotes_a_long_question_briefly() -> None:
    assert "长" * 201 not in say("长" * 30_000).text
