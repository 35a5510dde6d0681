from __future__ import annotations

import json
from typing import Any

import pytest

from conversations.api.parsers import NESTING_MAX, parse_json
from conversations.errors import ChatError


def nested(depth: int) -> Any:
    value: Any = "底"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [{}, [], None, "你好", 5, -1.5e300, {"a": [1, {"b": None}]}, nested(NESTING_MAX - 1)]
)
def test_a_body_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"NaN",
        b"-Infinity",
        b"1e400",
        b"\xff",
        "“智能引号”".encode(),
        b"1" * 5000,
        b"[" * 100_000,
        json.dumps(nested(NESTING_MAX)).encode(),
        json.dumps({"a": nested(900)}).encode(),
    ],
)
def test_what_is_no_json_or_cannot_be_kept_is_refused(body: bytes) -> None:
    with pytest.raises(ChatError) as caught:
        parse_json(body)
    assert caught.value.code == "malformed_json"


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ChatError) as caught:
        parse_json(b"[" * (1024 * 1024 + 1))
    assert caught.value.code == "body_too_large"
