"""Templates: one pass, kept types, nothing evaluated, nothing injected."""

from __future__ import annotations

from typing import Any

import pytest

from providers import errors
from providers.clients.declarative.fill import (
    UNDEFINED,
    Values,
    compile_url,
    compile_value,
    fill,
    fill_url,
    header_text,
    query_text,
)
from providers.credentials import Secret

VALUES = Values(
    {
        "text": "你好",
        "flag": True,
        "nothing": None,
        "list": [{"a": 1}],
        "deep": {"a": [{"b": "内"}]},
        "api_key": Secret("sk-0123456789abcdef"),
        "trick": "${api_key} $${api_key} {{api_key}}",
        "model": "组织/模型 ?x#y",
        "base_url": "https://host.example/v1/",
    }
)


def filled(value: Any, *, is_optional: bool = False, values: Values = VALUES) -> Any:
    """Return the value, compiled and filled."""
    return fill(compile_value(value), values, is_optional=is_optional)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("${text}", "你好"),
        ("${flag}", True),
        ("${nothing}", None),
        ("${list}", [{"a": 1}]),
        ("${deep.a[0].b}", "内"),
        ("${deep.a.0.b}", "内"),
        ("x-${flag}", "x-True"),
        ("x-${nothing}-", "x--"),
        ("a ${text} b ${text}", "a 你好 b 你好"),
        ("l=${list}", 'l=[{"a": 1}]'),
        ("$${text}", "${text}"),
        ("cost: 5$ {x}", "cost: 5$ {x}"),
        ({"input": {"prompt": "${text}", "n": [1, "${flag}"]}}, {"input": {"prompt": "你好", "n": [1, True]}}),
        (True, True),
        (None, None),
        ("${missing}", ""),
        ("a${missing}b", "ab"),
        ("${deep.none}", ""),
    ],
)
def test_a_template_is_filled_and_a_lone_name_keeps_its_type(template: Any, value: Any) -> None:
    assert filled(template) == value


def test_what_is_optional_and_undefined_is_left_out_with_what_holds_nothing_else() -> None:
    assert filled("${missing}", is_optional=True) is UNDEFINED
    assert filled("a${missing}", is_optional=True) is UNDEFINED
    assert filled({"a": "${missing}", "b": "${text}"}, is_optional=True) == {"b": "你好"}
    assert filled({"a": {"b": ["${missing}"]}}, is_optional=True) is UNDEFINED
    assert filled({"a": []}, is_optional=True) == {"a": []}
    assert filled("${nothing}", is_optional=True) is None


def test_a_value_that_looks_like_a_template_is_text() -> None:
    assert filled("${trick}|${api_key}") == "${api_key} $${api_key} {{api_key}}|sk-0123456789abcdef"


def test_a_masked_fill_shows_no_secret() -> None:
    masked = Values(VALUES.names, is_masked=True)
    assert filled("Bearer ${api_key}", values=masked) == "Bearer <api_key sk-...cdef>"
    assert "sk-0123456789abcdef" not in repr(VALUES)
    assert VALUES.secrets() == ["sk-0123456789abcdef"]


@pytest.mark.parametrize(
    "template", ["${", "${}", "${a b}", "${1a}", "${a.}", "${a[x]}", "${__import__('os')}", "${a}${"]
)
def test_a_bad_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError):
        compile_value(template)


def test_what_storage_cannot_hold_is_mapped_and_not_sent() -> None:
    assert filled("${x}", values=Values({"x": "a\0b\ud800"})) == "a\ufffdb\ufffd"
    assert filled("${x}", values=Values({"x": ({"c": "\0"},)})) == [{"c": "\ufffd"}]


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("https://a.example/v1/${model}:go?v=${text}", "https://a.example/v1/%E7%BB%84%E7%BB%87%2F%E6%A8%A1%E5%9E%8B%20%3Fx%23y:go?v=%E4%BD%A0%E5%A5%BD"),
        ("${base_url}/chat", "https://host.example/v1/chat"),
        ("${base_url}?a=b", "https://host.example/v1?a=b"),
        ("http://a.example:8080", "http://a.example:8080"),
        ("https://a.example/你好", "https://a.example/%E4%BD%A0%E5%A5%BD"),
    ],
)  # fmt: skip
def test_a_url_takes_each_value_as_one_encoded_segment(template: str, url: str) -> None:
    assert fill_url(compile_url(template), VALUES) == url


@pytest.mark.parametrize("model", ["", ".", "..", None])
def test_a_value_that_would_change_the_path_is_refused(model: Any) -> None:
    with pytest.raises(errors.Misconfigured):
        fill_url(compile_url("https://a.example/v1/${model}/chat"), Values({"model": model}))


@pytest.mark.parametrize(
    "base", ["", None, "ftp://a", "https://u:p@a.example", "https://a.example?x", "https://a.example#x", "a b", 3]
)
def test_a_base_url_of_the_endpoint_is_checked_when_it_is_used(base: Any) -> None:
    with pytest.raises(errors.Misconfigured):
        fill_url(compile_url("${base_url}/chat"), Values({"base_url": base}))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("a.example/x", "must begin with"),
        ("ftp://a.example", "must begin with"),
        ("wss://a.example/chat", "WebSocket"),
        ("https://u:p@a.example/x", "credentials"),
        ("https://a.example/x#y", "fragment"),
        ("https://${model}.example/x", "host is never"),
        ("https://a.${model}/x", "host is never"),
        ("https://a.example${model}", "host is never"),
        ("${base_url}.evil.example/x", "host is never"),
        ("${base_url}${model}", "host is never"),
        ("https://a.example/ x", "blank"),
        ("https://a.example\\@b/", "backslash"),
        ("https:///x", "is not an"),
        ("https://a.example:99999/x", "not a URL"),
    ],
)
def test_a_url_that_could_lead_elsewhere_is_refused(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compile_url(url)


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0", "你好", "a\x7f"])
def test_a_header_cannot_be_broken_out_of(value: str) -> None:
    with pytest.raises(errors.Misconfigured):
        header_text("X-Name", value)


def test_a_header_and_a_query_spell_values_plainly() -> None:
    assert (header_text("A", " ok "), header_text("A", True), query_text(False), query_text(3)) == (
        "ok", "true", "false", "3",
    )  # fmt: skip
