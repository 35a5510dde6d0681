"""Tools of a site's own: one HTTP call each, made for the member whose reply it is.

Templates name `args` (what the model asks), `member` (`userId`, `membershipId`, `role`, `nickname`), `site`
(`slug`), `chat` (`id`) and `secret`. With a secret the call is signed, and who the member is goes along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversations.context.builtin_tools import Occasion
from conversations.context.tools import SECONDS_MAX, Tool, ToolAnswer, ToolFailed, check_schema
from conversations.models import SiteTool
from providers.calls import Call, CallFailed, call_backend, compile_call
from providers.fields import secret_of
from providers.types import ToolSpec

NAMES = frozenset({"args", "member", "site", "chat", "secret"})
ANSWER_MAX_BYTES = 64 * 1024

_WORDS = {
    "timed_out": "服务没有在规定的时间内回答。",
    "unreachable": "连不上服务。",
    "connect_failed": "连不上服务。",
    "name_not_found": "连不上服务。",
    "answer_too_large": "服务的回答太长。",
    "request_too_large": "请求太长，请缩短参数。",
    "missing_url_value": "地址里需要的参数没有给出。",
    "malformed_json": "服务的回答无法读取。",
    "not_text": "服务的回答不是文字。",
    "encoded": "服务的回答无法读取。",
}


def call_of(row: SiteTool) -> Call:
    """Return the call that a row describes. Raises: ValueError with what is wrong."""
    config: dict[str, Any] = {"method": row.method, "url": row.url, "headers": row.headers, "query": row.query}
    if row.body not in (None, {}, ""):
        config["body"] = row.body
    return compile_call(config, names=NAMES)


def tool_of(row: SiteTool, occasion: Occasion) -> Tool:
    """Return the tool of a row, for this reply.

    Raises: ValueError for a row that cannot be used any more; Misconfigured when its secret cannot be read.
    """
    spec = ToolSpec(row.name, row.description, check_schema(row.parameters))
    call, secret = call_of(row), secret_of(row, "secret")
    member = {
        "userId": occasion.user_id,
        "membershipId": occasion.membership_id,
        "role": occasion.role,
        "nickname": occasion.nickname,
    }
    facts = {"member": member, "site": {"slug": occasion.site_slug}, "chat": {"id": occasion.chat_id}}
    seconds = min(row.timeout_seconds, SECONDS_MAX)

    async def run(arguments: Mapping[str, Any]) -> ToolAnswer:
        try:
            answer = await call_backend(
                call,
                {**facts, "args": arguments},
                secret=secret,
                key_id=f"site-{occasion.site_id}",
                identity={"site": occasion.site_id, **member},
                seconds=seconds,
                max_bytes=ANSWER_MAX_BYTES,
            )
        except CallFailed as failed:
            raise ToolFailed(in_words(failed.code)) from failed
        text = answer.text
        if secret:
            text = text.replace(secret.reveal(), "•••")  # some servers quote what they were sent
        return ToolAnswer(text or "（服务没有返回内容）")

    # The tool's own limit is the call's and a little more, so that it is the call that says what happened.
    return Tool(spec, run, seconds=seconds + 1.0)


def in_words(code: str) -> str:
    """Return what the model is told of a call that failed: never an address."""
    if code.startswith("status_"):
        return f"服务返回了错误 {code.removeprefix('status_')}。"
    return _WORDS.get(code, "这个工具没有配置好，暂时不能用。")
