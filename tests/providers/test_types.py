"""Values: what a finish reason means, and which text can be stored."""

import pytest

from providers.types import ChatMessage, ChatRequest, Delta, outcome_of, storable


@pytest.mark.parametrize("reason", ["stop", "end_turn", "normal", "tool_calls", "function_call", None, ""])
def test_an_ordinary_end_is_complete(reason: str | None) -> None:
    assert outcome_of(reason) == "complete"


@pytest.mark.parametrize(
    "reason", ["length", "max_tokens", "MAX_TOKENS", "content_filter", "sensitive", "insufficient_system_resource"]
)
def test_an_end_before_the_end_is_truncated(reason: str) -> None:
    assert outcome_of(reason) == "truncated"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("你好 😀\r\n\u2028\x0b", "你好 😀\r\n\u2028\x0b"),
        ("a\0b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("甲\udc00乙", "甲\ufffd乙"),
        ("\ud83d\ude00", "😀"),
        ("\0\ud83d\ude00\ud83d", "\ufffd😀\ufffd"),
        ("", ""),
    ],
)
def test_text_is_made_storable_and_otherwise_left_alone(text: str, stored: str) -> None:
    assert storable(text) == stored
    stored.encode()


def test_values_do_not_print_what_people_said() -> None:
    request = ChatRequest((ChatMessage("user", "秘密"),))
    assert "秘密" not in repr(request)
    assert "秘密" not in repr(Delta(text="秘密", reasoning="秘密"))
    assert request.prompt_chars == 2
