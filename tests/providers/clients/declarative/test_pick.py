"""Paths into a vendor's JSON."""

from __future__ import annotations

from typing import Any

import pytest

from providers.clients.declarative.pick import compile_path, pick

EVENT: dict[str, Any] = {
    "choices": [{"delta": {"content": "你好"}, "n": 0}],
    "candidates": [{"content": {"parts": [{"text": "上"}, {"thought": True}, {"text": "海"}]}}],
    "data": {"0": "zero"},
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("choices[0].delta.content", "你好"),
        ("choices.0.delta.content", "你好"),
        ("choices[0].n", 0),
        ("candidates[0].content.parts[*].text", "上海"),
        ("candidates.0.content.parts.*.text", "上海"),
        ("candidates[0].content.parts[*].thought", [True]),
        ("candidates[0].content.parts[*].nothing", None),
        ("data.0", "zero"),
        ("data[0]", "zero"),
        ("choices[1].delta", None),
        ("choices.delta", None),
        ("choices[0].delta.content.more", None),
        ("nothing", None),
    ],
)
def test_a_path_finds_what_is_there_in_both_spellings(path: str, found: Any) -> None:
    assert pick(EVENT, compile_path(path)) == found


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a[-1]", "a b", "a]", "." * 50, "a.b" * 50]
)
def test_what_is_not_a_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError):
        compile_path(path)


def test_a_path_into_what_is_not_a_structure_finds_nothing() -> None:
    for value in (None, 3, "text", True, []):
        assert pick(value, compile_path("a[0].b")) is None
