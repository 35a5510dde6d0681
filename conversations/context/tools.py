"""Tools that a model may ask for: their names and arguments, and one call of one, within limits, told in words.

What a tool does is in `builtin_tools.py` and `http_tools.py`; which ones a site offers, and the loop in which the
model asks for them, are told in docs/tools.md. A tool never breaks a reply: whatever goes wrong is a sentence to
the model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from providers.types import ToolCall, ToolSpec, storable

log = logging.getLogger(__name__)

SECONDS_MAX = 10.0
RESULT_MAX_CHARS = 16_000
ARGUMENTS_MAX_CHARS = 16_000
AT_ONCE_MAX_CHARS = 500
"""Longer arguments are checked in a thread."""
ERRORS_MAX = 20
"""So many things that are wrong are looked at, to tell the one that says most."""
SCHEMA_MAX_CHARS = 16_384
SCHEMA_MAX_DEPTH = 12
_REFUSED_KEYWORDS = frozenset(
    {"$ref", "$dynamicRef", "$recursiveRef", "pattern", "patternProperties", "uniqueItems"}
)

Outcome = Literal["done", "failed"]
Problem = Literal["unknown_tool", "bad_arguments", "timed_out", "failed", "too_many"]


class ToolFailed(Exception):
    """A tool could not do it; the text is what the model is told, and holds nothing that a member may not know."""


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool gave: text for the model, and a reference card when the reply will lean on something."""

    text: str = field(repr=False)
    card: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool, bound to the reply it runs for."""

    spec: ToolSpec
    run: Callable[[Mapping[str, Any]], Awaitable[ToolAnswer]]
    seconds: float = SECONDS_MAX


@dataclass(frozen=True, slots=True)
class ToolRun:
    """How one call went: text is what the model is told, problem one word for the ledger, "" if all went well."""

    name: str
    arguments: str = field(repr=False)
    outcome: Outcome
    text: str = field(repr=False)
    ms: int
    problem: Problem | Literal[""] = ""
    card: dict[str, Any] | None = field(default=None, repr=False)


class Toolbox:
    """The tools on offer for one reply."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.spec.name: tool for tool in tools}
        self.specs = tuple(tool.spec for tool in self._tools.values())

    async def run(self, call: ToolCall, *, trace: Mapping[str, Any]) -> ToolRun:
        """Return how the call went; only being cancelled comes out of it otherwise."""
        name = storable(call.name or "")[:64]
        said = storable(call.arguments)
        began = time.monotonic()

        def over(outcome: Outcome, text: str, problem: Problem | Literal[""] = "", **more: Any) -> ToolRun:
            ms = round((time.monotonic() - began) * 1000)
            log.info("tool_ran", extra={**trace, "tool": name, "outcome": outcome, "problem": problem, "ms": ms})
            return ToolRun(name, said, outcome, clip(text), ms, problem, **more)

        tool = self._tools.get(name)
        if tool is None:
            known = "、".join(self._tools)
            return over("failed", f"没有名为“{name}”的工具。可用的工具：{known}。", "unknown_tool")
        try:
            if len(said) <= AT_ONCE_MAX_CHARS:
                arguments = read_arguments(tool.spec, said)
            else:  # which may take seconds, and all streams of this process wait for the loop
                arguments = await asyncio.to_thread(read_arguments, tool.spec, said)
        except ToolFailed as refused:
            return over("failed", str(refused), "bad_arguments")
        try:
            async with asyncio.timeout(tool.seconds):
                answer = await tool.run(arguments)
        except TimeoutError:
            return over(
                "failed", f"工具“{name}”在 {tool.seconds:g} 秒内没有完成，请不要依赖它的结果。", "timed_out"
            )
        except ToolFailed as failed:
            return over("failed", f"工具“{name}”没有成功：{failed}", "failed")
        except Exception as error:
            # A defect of a tool is ours to see in the log, and the model's to hear of; the reply goes on.
            log.exception("tool_crashed", extra={**trace, "tool": name}, exc_info=error)
            return over("failed", f"工具“{name}”出错了，没有结果。", "failed")
        return over("done", answer.text, card=answer.card)


def read_arguments(spec: ToolSpec, text: str) -> dict[str, Any]:
    """Return the arguments of a call, checked against the tool's schema.

    Raises: ToolFailed, in words for the model.
    """
    if len(text) > ARGUMENTS_MAX_CHARS:
        raise ToolFailed(f"工具“{spec.name}”的参数太长，最多 {ARGUMENTS_MAX_CHARS} 个字符。")
    try:
        value = json.loads(text or "{}", parse_constant=_no_constant, parse_float=_float, parse_int=_int)
    except (ValueError, RecursionError):
        raise ToolFailed(f"工具“{spec.name}”的参数不是合法的 JSON，请改正后重试。") from None
    if not isinstance(value, dict):
        raise ToolFailed(f"工具“{spec.name}”的参数必须是一个 JSON 对象。")
    try:
        value = _storable(value)
        wrong = best_match(islice(Draft202012Validator(dict(spec.parameters)).iter_errors(value), ERRORS_MAX))
    except RecursionError:
        raise ToolFailed(f"工具“{spec.name}”的参数嵌套太深。") from None
    if wrong is not None:
        place = ".".join(str(step) for step in wrong.absolute_path) or "参数"
        raise ToolFailed(f"工具“{spec.name}”的参数不符合要求：{place}：{wrong.message[:300]}。请改正后重试。")
    return value


def check_schema(schema: object) -> dict[str, Any]:
    """Return a schema of arguments that can be used; {} becomes that of no arguments.

    Raises: ValueError with what is wrong, in English.
    """
    if not isinstance(schema, dict):
        raise ValueError("must be a JSON object")
    schema = schema or {"type": "object", "properties": {}}
    if schema.get("type") != "object":
        raise ValueError('must say "type": "object": arguments are an object')
    if _depth(schema) > SCHEMA_MAX_DEPTH or len(json.dumps(schema)) > SCHEMA_MAX_CHARS:
        raise ValueError(
            f"is longer than {SCHEMA_MAX_CHARS} characters or nested more than {SCHEMA_MAX_DEPTH} deep"
        )
    if refused := _refused_in(schema):
        # A reference may lead anywhere; the others may take for ever on what a model was led to write.
        raise ValueError(f"uses {refused}, which is not supported")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = ".".join(str(step) for step in error.absolute_path)
        raise ValueError(f"{place or 'the schema'}: {error.message[:300]}") from None
    return schema


def clip(text: str, most: int = RESULT_MAX_CHARS) -> str:
    """Return a text as a model gets it: storable, and cut with a word on that when it is too long."""
    text = storable(text)
    return text if len(text) <= most else text[:most] + f"\n…（共 {len(text)} 个字符，已截断）"


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _float(text: str) -> float:
    """Return a number that is one: Python reads 1e400 as infinity, which no JSON says again."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text[:20])
    return value


def _int(text: str) -> int:
    """Return a whole number of 64 bits: a longer one breaks arithmetic, and what a call sends on."""
    value = int(text)
    if not -(2**63) <= value < 2**64:
        raise ValueError(text[:20])
    return value


def _storable(value: Any) -> Any:
    """Return a value whose texts can be stored and sent, also where the JSON wrote them as escapes."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _refused_in(schema: Any) -> str:
    """Return the first keyword that is not supported, "" for none; names of properties are no keywords."""
    if isinstance(schema, list):
        return next(filter(None, map(_refused_in, schema)), "")
    if not isinstance(schema, dict):
        return ""
    for key, value in schema.items():
        if key in _REFUSED_KEYWORDS:
            return str(key)
        if key in ("enum", "const", "default", "examples"):
            continue
        is_named = key in ("properties", "$defs", "definitions") and isinstance(value, dict)
        inner = list(value.values()) if is_named else value
        if found := _refused_in(inner):
            return found
    return ""
