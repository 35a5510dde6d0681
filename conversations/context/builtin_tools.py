"""The tools that every site may switch on: what time it is, what the member is looking at, what the site knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.utils import timezone

from conversations import db
from conversations.context.cards import card_from_passages
from conversations.context.enrich import CARD_SCORE, read_asked
from conversations.context.knowledge import find_passages
from conversations.context.pages import ask_pages
from conversations.context.tools import Tool, ToolAnswer, ToolFailed
from providers.types import ToolSpec

_WEEKDAYS = "一二三四五六日"
_PAGE_MAX_CHARS = 8_000


@dataclass(frozen=True, slots=True)
class Occasion:
    """The reply that tools run for: whose it is, and which question it answers."""

    site_id: int
    site_slug: str
    chat_id: int
    question_id: int
    membership_id: int
    user_id: int
    role: str
    nickname: str


def _object(properties: Mapping[str, Any] | None = None, *required: str) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": dict(properties or {}),
        "additionalProperties": False,
    }
    return {**schema, "required": list(required)} if required else schema


def current_time(occasion: Occasion) -> Tool:
    """Return the tool that says the site's date, weekday and time."""

    async def run(_arguments: Mapping[str, Any]) -> ToolAnswer:
        now = timezone.localtime()
        offset = now.strftime("%z")
        return ToolAnswer(
            f"现在是{now.year}年{now.month}月{now.day}日 星期{_WEEKDAYS[now.weekday()]} {now:%H:%M:%S}"
            f"（时区 {timezone.get_current_timezone_name()}，UTC{offset[:3]}:{offset[3:]}）"
        )

    return Tool(ToolSpec("current_time", "返回当前的日期、星期和时间。", _object()), run)


def page_text(occasion: Occasion) -> Tool:
    """Return the tool that says what the member's page told us with the question."""

    async def run(_arguments: Mapping[str, Any]) -> ToolAnswer:
        asked = await db.unit(read_asked, occasion.site_id, occasion.question_id)
        if asked is None or not (asked.visit.page or asked.visit.context):
            raise ToolFailed("用户提问时没有打开任何页面。")
        answers = await ask_pages(asked.sources, asked.visit, trace={"chat": occasion.chat_id})
        lines = [f"页面：{asked.visit.page}"] if asked.visit.page else []
        lines += [f"【{answer.name}】\n{answer.text}" for answer in answers if answer.text]
        card = next((answer.card for answer in answers if answer.card), None)
        return ToolAnswer("\n".join([*lines, *_lines_of(dict(asked.visit.context))])[:_PAGE_MAX_CHARS], card)

    return Tool(ToolSpec("page_text", "返回用户提问时正在看的页面的内容。", _object()), run)


def search_knowledge(occasion: Occasion) -> Tool:
    """Return the tool that searches the documents of the site."""
    parameters = _object(
        {
            "query": {
                "type": "string",
                "minLength": 1,
                "maxLength": 500,
                "description": "要查找的内容，用自然的语句或关键词",
            },
            "limit": {"type": "integer", "minimum": 1, "maximum": 10, "description": "最多返回几条，默认 5"},
        },
        "query",
    )

    async def run(arguments: Mapping[str, Any]) -> ToolAnswer:
        # JSON schema takes 3.0 for an integer.
        limit = int(arguments.get("limit", 5))
        found = await find_passages(occasion.site_id, arguments["query"], limit=limit)
        if not found:
            return ToolAnswer("资料中没有找到相关内容。")
        parts = [
            f"[{number}] {' › '.join(filter(None, (passage.title, passage.heading)))}\n{passage.text}"
            for number, passage in enumerate(found, 1)
        ]
        leaning = [passage for passage in found if passage.score >= CARD_SCORE]
        return ToolAnswer("\n\n".join(parts), card_from_passages(leaning) if leaning else None)

    description = "在本站的资料库中查找与问题有关的内容。回答涉及本站的产品、服务、规定时先用它查找，再据此回答。"
    return Tool(ToolSpec("search_knowledge", description, parameters), run)


def _lines_of(value: Any, path: str = "") -> list[str]:
    """Return what a JSON value says, a line for each of its leaves."""
    if isinstance(value, Mapping):
        return [
            line for key, item in value.items() for line in _lines_of(item, f"{path}.{key}" if path else str(key))
        ]
    if isinstance(value, list):
        return [line for number, item in enumerate(value, 1) for line in _lines_of(item, f"{path}[{number}]")]
    if value is None or value == "":
        return []
    said = {True: "是", False: "否"}[value] if isinstance(value, bool) else str(value)
    return [f"{path}：{said}" if path else said]


BUILT_IN: Mapping[str, Callable[[Occasion], Tool]] = {
    "current_time": current_time,
    "page_text": page_text,
    "search_knowledge": search_knowledge,
}
