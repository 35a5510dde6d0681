"""Tools: arguments against their schemas, limits, and failures that are sentences."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from conversations.context.tools import (
    RESULT_MAX_CHARS,
    Tool,
    ToolAnswer,
    Toolbox,
    ToolFailed,
    ToolRun,
    check_schema,
)
from providers.types import ToolCall, ToolSpec

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}


def ran(
    arguments: str, *, name: str = "weather", seconds: float = 1.0, sleep: float = 0.0, **more: Any
) -> ToolRun:
    """Return how a call of a little weather tool went."""

    async def run(given: Mapping[str, Any]) -> ToolAnswer:
        await asyncio.sleep(sleep)
        if "raises" in more:
            raise more["raises"]
        return ToolAnswer(more.get("text", f"{given['city']}：晴"))

    toolbox = Toolbox([Tool(ToolSpec("weather", "天气", CITY), run, seconds)])
    return asyncio.run(toolbox.run(ToolCall(0, "c1", name, arguments), trace={}))


def test_chinese_arguments_arrive() -> None:
    result = ran('{"city":"北京"}')
    assert (result.outcome, result.text, result.problem) == ("done", "北京：晴", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{}", "'city' is a required property"),
        ('{"city":7}', "city：7 is not of type 'string'"),
        ('{"city":"北京","days":0}', "days：0 is less than the minimum"),
        ('{"city":"北京","x":1}', "Additional properties"),
        ('{"city":"一二三四五六"}', "too long"),
        ("[]", "必须是一个 JSON 对象"),
        ('{"city":', "不是合法的 JSON"),
        ('{"city":NaN}', "不是合法的 JSON"),
        ("[" * 100_000, "太长"),
        ("[" * 15_000, "不是合法的 JSON"),
        ('{"city":"' + "长" * 40_000 + '"}', "太长"),
    ],
)
def test_arguments_that_break_the_schema_are_told_in_words(arguments: str, words: str) -> None:
    result = ran(arguments)
    assert (result.outcome, result.problem) == ("failed", "bad_arguments")
    assert words in result.text and len(result.text) < 500


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e400", "-1e999", str(2**64)])
def test_numbers_that_no_arithmetic_holds_are_told_in_words(number: str) -> None:
    async def run(_given: Mapping[str, Any]) -> ToolAnswer:
        raise AssertionError("it must not run")

    schema = {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 0.5}}}
    toolbox = Toolbox([Tool(ToolSpec("half", "半", check_schema(schema)), run)])
    result = asyncio.run(toolbox.run(ToolCall(0, "c1", "half", f'{{"n":{number}}}'), trace={}))
    assert (result.outcome, result.problem) == ("failed", "bad_arguments")
    assert "不是合法的 JSON" in result.text


def test_texts_that_cannot_be_stored_arrive_so_that_they_can() -> None:
    async def run(given: Mapping[str, Any]) -> ToolAnswer:
        return ToolAnswer(str([*given, *given.values()][1].encode()))

    toolbox = Toolbox([Tool(ToolSpec("note", "记", check_schema({})), run)])
    result = asyncio.run(toolbox.run(ToolCall(0, "c1", "note", r'{"q":"\u0000\ud800"}'), trace={}))
    assert (result.outcome, result.text) == ("done", str("\ufffd\ufffd".encode()))


def test_a_long_check_of_arguments_keeps_nobody_else_waiting() -> None:
    async def run(given: Mapping[str, Any]) -> ToolAnswer:
        return ToolAnswer(str(len(given["xs"])))

    # Every number is tried against fifty alternatives before it is found to be good.
    choices = {"anyOf": [{"type": "string"}] * 50 + [{"type": "integer"}]}
    schema = {"type": "object", "properties": {"xs": {"type": "array", "items": choices}}}
    toolbox = Toolbox([Tool(ToolSpec("sum", "和", check_schema(schema)), run)])

    async def both() -> tuple[ToolRun, int]:
        call = ToolCall(0, "c1", "sum", '{"xs":[' + ",".join(["1"] * 2000) + "]}")
        running, ticks = asyncio.create_task(toolbox.run(call, trace={})), 0
        while not running.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return await running, ticks

    result, ticks = asyncio.run(both())
    assert (result.outcome, result.text) == ("done", "2000")
    assert ticks > 10


def test_no_arguments_are_an_empty_object() -> None:
    assert "required property" in ran("").text


def test_an_unknown_tool_names_those_there_are() -> None:
    result = ran("{}", name="删库")
    assert (result.problem, result.text) == ("unknown_tool", "没有名为“删库”的工具。可用的工具：weather。")


def test_a_slow_tool_is_ended() -> None:
    result = ran('{"city":"北京"}', seconds=0.05, sleep=5)
    assert (result.outcome, result.problem) == ("failed", "timed_out")
    assert "0.05 秒" in result.text and result.ms < 2000


def test_a_tool_that_fails_or_crashes_is_told_and_shows_nothing_of_ours() -> None:
    assert ran('{"city":"北京"}', raises=ToolFailed("没有这个城市")).text == "工具“weather”没有成功：没有这个城市"
    crashed = ran('{"city":"北京"}', raises=RuntimeError("postgres://secret"))
    assert (crashed.problem, crashed.text) == ("failed", "工具“weather”出错了，没有结果。")


def test_long_results_are_cut_with_a_word_on_it() -> None:
    result = ran('{"city":"北京"}', text="字" * (RESULT_MAX_CHARS + 5) + "\0")
    assert result.text.startswith("字" * RESULT_MAX_CHARS + "\n…（共")
    assert "\0" not in result.text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "must be a JSON object"),
        ({"type": "string"}, '"type": "object"'),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "not valid"),
        ({"type": "object", "properties": {"a": {"$ref": "http://169.254.169.254/"}}}, "$ref"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$"}}}, "pattern"),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"description": "x" * 20_000}}}, "longer than"),
        ({"type": "object", "required": "a"}, "required"),
    ],
)
def test_ill_schemas_are_refused(schema: Any, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_schema(schema)
    assert words in str(refused.value)


def test_properties_may_be_called_like_keywords() -> None:
    schema = {"type": "object", "properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}}}
    assert check_schema(schema) == schema
    assert check_schema({}) == {"type": "object", "properties": {}}
