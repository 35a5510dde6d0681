"""Every sentence that the rooms below say about a configuration has a pattern, and each pattern has Chinese."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from django.utils import translation

from providers.clients.declarative import conditions, curl, fill, patterns, reducer, schema, stored
from providers.lab.words import PATTERNS, in_words

MODULES = (schema, stored, fill, patterns, curl, reducer, conditions)


def text_of(node: ast.AST) -> str | None:
    """Return a literal sentence, with x for what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(piece.value) if isinstance(piece, ast.Constant) else "x" for piece in node.values)
    if isinstance(node, ast.BinOp) and (left := text_of(node.left)) and (right := text_of(node.right)):
        return left + right
    return None


def sentences() -> Iterator[str]:
    """Return what is said in calls of bad(), raises, notes and traces."""
    for module in MODULES:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                place = {"bad": 1, "ValueError": 0, "PatternRefused": 0, "CurlRefused": 0}.get(name)
                is_note = name == "append" and getattr(getattr(node.func, "value", None), "id", "") == "notes"
                if is_note:
                    place = 0
                if place is not None and len(node.args) > place and (text := text_of(node.args[place])):
                    yield text
            elif (
                isinstance(node, ast.Assign)
                and getattr(node.targets[0], "attr", "") == "says"
                and (text := text_of(node.value))
            ):
                yield text


def test_every_sentence_has_a_pattern_and_every_pattern_chinese() -> None:
    found = {text for text in sentences() if " " in text}
    assert len(found) > 60
    with translation.override("zh-hans"):
        assert [text for text in sorted(found) if in_words(text) == text] == []
        assert [pattern for pattern in PATTERNS if in_words(pattern) == pattern] == []


def test_what_is_put_into_a_sentence_stays_as_it_is() -> None:
    with translation.override("zh-hans"):
        assert in_words('names an unknown value "{name}"').count("{name}") == 1
        assert "foo, bar" in in_words("is not one of foo, bar")
    with translation.override("en"):
        assert in_words("the model was {name} ${api_key}") == "the model was {name} ${api_key}"
    assert in_words("什么都不是") == "什么都不是"
