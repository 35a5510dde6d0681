"""The provider without a vendor: says what it is told, at the pace it is told.

Three uses, tried in this order:

1. A script in the endpoint's configuration, a list of steps (tests, demonstrations):
   `{"text": "…"}` `{"reasoning": "…"}` `{"sleep": seconds}` `{"error": "<code of providers.errors>"}`
   `{"finish": "stop"}`. A script without a finish step ends with `stop`; `{"cut": true}` breaks off.
   `{"tool_calls": [{"name": "…", "arguments": {…}}]}` asks for tools and ends the answer; what stands after it is
   said when their results are there. Without tools on offer only what follows the last such step is said.
2. A directive in the last user message, for load tests without a network:
   `[[n=50 rate=30]]` says 50 tokens, 30 per second. Words: `n` tokens (at most 100,000), `rate` per second
   (0: no pause), `seed` (which tokens; default 1), `ttft` milliseconds before the first, `finish` reason,
   `fail` an error code after the tokens, `reasoning` tokens of thinking before them. `tool` names tools to ask
   for first, joined by commas, `args` their arguments as JSON without blanks, `rounds` how often (default 1). The
   tokens of a seed are those of the project's load tool, so that a client can check every byte.
3. Otherwise the stand-in: it says in the question's language that it is not a model, echoes the question,
   and tells how to connect a model.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from providers import errors
from providers.base import Tap
from providers.types import ChatRequest, Delta, Finished, StreamItem, ToolCall, Usage, storable

_DIRECTIVE = re.compile(r"\[\[((?:\s*[a-z]+=[^\s\]]+)+)\s*\]\]")
_MASK = (1 << 64) - 1
_MAX_TOKENS = 100_000

# fmt: off
TOKENS: tuple[str, ...] = (
    " the", " of", " and", " to", " model", " stream", " answer", " with", "ing", "tion", " a", " is",
    " context", " window", ".", ",", "\n", "\n\n", ' "', '"', "\\", "\t", " 42", " 3.14",
    "我", "们", "的", "模型", "回答", "，", "。", "对话", "数据", "学校", "科研", "请", "是", "在", "不",
    "了", "日本", "한국", "é", "ß", "Ж", "😀", "🚀", "data: ", "event: x", "</p>", "{", "}", "[DONE]",
    "&amp;", " code", "```", " def", " return", " x", " =", " token", " server", " time", " user",
)
# fmt: on

_FAILURES: dict[str, type[errors.ProviderError]] = {
    kind.code: kind
    for kind in (
        errors.Misconfigured,
        errors.BadRequest,
        errors.Unauthorized,
        errors.UnknownModel,
        errors.RateLimited,
        errors.QuotaExceeded,
        errors.ContentBlocked,
        errors.ConnectFailed,
        errors.Unavailable,
        errors.MalformedReply,
        errors.StreamCut,
        errors.ReplyTooLong,
    )
}


def token_at(seed: int, position: int) -> str:
    """Return token number `position` of the endless text of this seed."""
    x = (seed * 0x9E3779B97F4A7C15 + position + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return TOKENS[(x ^ (x >> 31)) % len(TOKENS)]


def text_of(seed: int, tokens: int) -> str:
    """Return the first `tokens` tokens of this seed, joined."""
    return "".join(token_at(seed, position) for position in range(tokens))


@dataclass(frozen=True, slots=True)
class Directive:
    """What a `[[…]]` in the question asks of the scripted provider."""

    tokens: int = 20
    rate: float = 0.0
    seed: int = 1
    ttft_seconds: float = 0.0
    finish: str = "stop"
    fail: str = ""
    reasoning: int = 0
    tools: tuple[str, ...] = ()
    arguments: str = "{}"
    rounds: int = 1


def parse_directive(text: str) -> Directive | None:
    """Return the first directive in the text, or None; words it does not know are ignored."""
    found = _DIRECTIVE.search(text)
    if found is None:
        return None
    words = dict(part.split("=", 1) for part in found.group(1).split())
    try:
        return Directive(
            tokens=min(int(words.get("n", 20)), _MAX_TOKENS),
            rate=float(words.get("rate", 0)),
            seed=int(words.get("seed", 1)),
            ttft_seconds=min(float(words.get("ttft", 0)) / 1000, 3600.0),
            finish=words.get("finish", "stop"),
            fail=words.get("fail", ""),
            reasoning=min(int(words.get("reasoning", 0)), _MAX_TOKENS),
            tools=tuple(name for name in words.get("tool", "").split(",") if name),
            arguments=words.get("args", "{}"),
            rounds=int(words.get("rounds", 1)),
        )
    except ValueError:
        return None


_MATERIAL = re.compile(
    r"\A(?:【参考资料】|【当前页面】|\[Reference\]|\[Current page\]).*?\n(.*)\n(?:【问题】|\[Question\])\n",
    re.DOTALL,
)
_FIRST = re.compile(r"^(?:\[1\]|【页面】|\[Page\]) (.+)\n((?:.+\n?)+)", re.MULTILINE)


def stand_in_text(question: str) -> str:
    """Return the stand-in's answer: that it is no model, what was asked, how to connect one.

    When the question came with material beside it (conversations/context/enrich.py), it quotes the first of it.
    """
    material = _MATERIAL.match(question)
    if material is not None:
        question = question[material.end() :]
    first = _FIRST.search(material[1]) if material is not None else None
    quoted = _short(question)
    if re.search(r"[\u3040-\u30ff\u3400-\u9fff]", question):
        found = f"资料里写着（{_short(first[1])}）：「{_short(first[2])}」\n\n" if first else ""
        return (
            f"我收到了你的消息：「{quoted}」。\n\n"
            f"{found}"
            "说明一下：我不是真正的模型，只是一个替身，因为这里还没有接入任何模型。\n\n"
            "接入方法：设置环境变量 LLM_BASE_URL、LLM_API_KEY 和 LLM_MODEL 后重启，"
            "或者在管理后台的「接入点」里添加一个。之后就会由真正的模型来回答你。"
        )
    found = f"The documents say ({_short(first[1])}): “{_short(first[2])}”\n\n" if first else ""
    return (
        f"I received your message: “{quoted}”.\n\n"
        f"{found}"
        "To be plain: I am not a model but a stand-in, because no model is connected here yet.\n\n"
        "To connect one, set the environment variables LLM_BASE_URL, LLM_API_KEY and LLM_MODEL and restart, "
        "or add an endpoint in the admin under “Endpoints”. After that a real model will answer you."
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:200] + "…"


class ScriptedProvider:
    """A ChatProvider that needs no network."""

    def __init__(self, script: Sequence[Mapping[str, Any]] | None = None, *, step_seconds: float = 0.03) -> None:
        self._script = tuple(script) if script else None
        self._step_seconds = step_seconds

    async def stream(self, request: ChatRequest, *, tap: Tap | None = None) -> AsyncGenerator[StreamItem, None]:
        """Yield what the script, the directive or the stand-in says, then Finished."""
        question = next((m.content for m in reversed(request.messages) if m.role == "user"), "")
        if self._script is not None:
            source = self._play(request, self._script)
        elif (directive := parse_directive(question)) is not None:
            source = self._obey(request, directive)
        else:
            source = self._stand_in(request, question)
        async with aclosing(source):
            async for item in source:
                yield item

    async def _play(
        self, request: ChatRequest, script: Sequence[Mapping[str, Any]]
    ) -> AsyncGenerator[StreamItem, None]:
        chars = 0
        finish: str | None = "stop"
        for step in _rest_of(script, request):
            if "tool_calls" in step:
                calls = tuple(
                    ToolCall(
                        index,
                        call.get("id") or f"call_{rounds_done(request) + 1}_{index}",
                        call["name"],
                        arguments
                        if isinstance(arguments := call.get("arguments", {}), str)
                        else json.dumps(arguments, ensure_ascii=False),
                    )
                    for index, call in enumerate(step["tool_calls"])
                )
                yield _finished(request, "tool_calls", chars, tool_calls=calls)
                return
            if "text" in step:
                chars += len(step["text"])
                yield Delta(text=storable(step["text"]))
            elif "reasoning" in step:
                yield Delta(reasoning=storable(step["reasoning"]))
            elif "sleep" in step:
                await asyncio.sleep(float(step["sleep"]))
            elif "error" in step:
                raise _failure(str(step["error"]))
            elif "cut" in step:
                raise errors.StreamCut()
            elif "finish" in step:
                finish = step["finish"]
                break
        yield _finished(request, finish, chars)

    async def _obey(self, request: ChatRequest, directive: Directive) -> AsyncGenerator[StreamItem, None]:
        if directive.ttft_seconds > 0:
            await asyncio.sleep(directive.ttft_seconds)
        done = rounds_done(request)
        if directive.tools and request.tools and done < directive.rounds:
            calls = tuple(
                ToolCall(index, f"call_{done + 1}_{index}", name, directive.arguments)
                for index, name in enumerate(directive.tools)
            )
            yield _finished(request, "tool_calls", 0, tool_calls=calls)
            return
        if directive.reasoning:
            yield Delta(reasoning=text_of(directive.seed + 1, directive.reasoning))
        started = time.monotonic()
        done = 0
        while done < directive.tokens:
            due = directive.tokens
            if directive.rate > 0:
                # The first token is due at once; a late wake-up catches up instead of drifting.
                due = min(due, int((time.monotonic() - started) * directive.rate) + 1)
                if due <= done:
                    await asyncio.sleep(max(started + done / directive.rate - time.monotonic(), 0.0))
                    continue
            elif done:
                await asyncio.sleep(0)
            due = min(due, done + 64)
            yield Delta(text="".join(token_at(directive.seed, k) for k in range(done, due)))
            done = due
        if directive.fail:
            raise _failure(directive.fail)
        yield _finished(request, directive.finish, 0, output_tokens=directive.tokens)

    async def _stand_in(self, request: ChatRequest, question: str) -> AsyncGenerator[StreamItem, None]:
        text = storable(stand_in_text(question))
        pieces = re.findall(r"[\u3040-\u30ff\u3400-\u9fff]{1,3}|[^\s\u3040-\u9fff]+\s*|\s+|.", text)
        for position, piece in enumerate(pieces):
            if position and self._step_seconds:
                await asyncio.sleep(self._step_seconds)
            yield Delta(text=piece)
        yield _finished(request, "stop", len(text))


def _failure(code: str) -> errors.ProviderError:
    """Return the error a script asks for by its code; `timed_out_idle` and its like name their phase."""
    if code.startswith("timed_out"):
        phase = code.removeprefix("timed_out").strip("_")
        return errors.TimedOut(phase if phase in ("connect", "first", "idle", "total", "write") else "idle")  # type: ignore[arg-type]  # checked here
    return _FAILURES.get(code, errors.Unavailable)()


def rounds_done(request: ChatRequest) -> int:
    """Return how often tools were asked for since the last question."""
    count = 0
    for message in reversed(request.messages):
        if message.role == "user":
            break
        count += bool(message.tool_calls)
    return count


def _rest_of(script: Sequence[Mapping[str, Any]], request: ChatRequest) -> Sequence[Mapping[str, Any]]:
    """Return what of the script is said now: what follows the rounds of tools that are behind us."""
    asks = [place for place, step in enumerate(script) if "tool_calls" in step]
    if not request.tools and asks:
        return script[asks[-1] + 1 :]
    done = min(rounds_done(request), len(asks))
    return script[asks[done - 1] + 1 :] if done else script


def _finished(
    request: ChatRequest,
    finish_reason: str | None,
    chars: int,
    *,
    output_tokens: int | None = None,
    tool_calls: tuple[ToolCall, ...] = (),
) -> Finished:
    usage = Usage(
        input_tokens=max(1, request.prompt_chars // 3),
        output_tokens=output_tokens if output_tokens is not None else max(1, chars // 2),
        is_estimated=True,
    )
    return Finished(finish_reason=finish_reason, usage=usage, tool_calls=tool_calls)
