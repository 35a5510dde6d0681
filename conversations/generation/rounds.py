"""The rounds of a reply: the model asks for tools, they run, and the same endpoint is asked again.

Each call of the model is an attempt of its own in the ledger. The text of all rounds is one reply: what one round
said is part of the next one's prompt, and offsets go on. After the last round the model is asked once more without
tools, in plain words, which every vendor understands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import psycopg
from django.db import Error as DjangoDatabaseError

from conversations import db
from conversations.context.cards import merge_cards
from conversations.context.offers import load_toolbox
from conversations.context.tools import Toolbox, ToolRun, clip
from conversations.generation.buffer import Ending, ToolNote
from conversations.generation.ledger import round_values
from conversations.generation.runs import Attempt, Run
from conversations.generation.store import DatabaseAway
from conversations.generation.tool_rows import begin_runs, content_of, end_run
from providers.registry import EndpointConfig
from providers.types import ChatMessage, ToolCall, ToolSpec

log = logging.getLogger(__name__)

CALLS_MAX = 8
"""Calls of one round that are run; the model is told to ask for the others again."""
CALLS_KEPT = 32
"""Calls of one round that are heard of at all: each further one would cost rows and prompt for nothing."""
NAME_MAX_CHARS = 64
AT_ONCE = 4
RESULTS_MAX_CHARS = 48_000
"""What all tools of a reply may tell the model together; after that each gets a word in, and no more."""
RESULT_LEAST_CHARS = 500
ENOUGH = "（系统提示）工具已经用够了。请根据上面的内容直接回答用户，不要再调用工具。"
_AWAY = (psycopg.Error, DjangoDatabaseError, *DatabaseAway)


class Rounds:
    """Runs tools for replies. One per engine."""

    def __init__(self, tell_ledger: Callable[[Run], Awaitable[None]]) -> None:
        self._tell_ledger = tell_ledger

    async def open(self, run: Run) -> None:
        """Give the reply its tools, when its site has any; without the database it goes on without them."""
        if not run.started.tools:
            return
        started = run.started
        try:
            run.toolbox = await db.unit(
                load_toolbox,
                started.site_id,
                started.tools,
                chat_id=started.chat_id,
                question_id=started.user_message_id,
            )
        except _AWAY as error:
            log.warning("tools_unread", extra={**run.trace(), "error": type(error).__name__})

    async def go_on(self, run: Run, ending: Ending) -> bool:
        """Run what the model asked for; return whether it is to be asked again.

        Not when it asked for nothing, when it was cut off, or when it asks although no tool was on offer.
        """
        finished, toolbox = run.attempt.finished, run.toolbox
        if finished is None or not finished.tool_calls or ending.status != "complete" or toolbox is None:
            return False
        if not run.attempt.has_tools:
            return False
        calls = tuple(
            replace(
                call,
                id=call.id or f"call_{run.round}_{index}",
                name=(call.name or "")[:NAME_MAX_CHARS],
                index=index,
            )
            for index, call in enumerate(finished.tool_calls[:CALLS_KEPT])
        )
        results = await self._run_all(run, toolbox, calls)
        await self._close_round(run)
        said = run.buffer.final_text()[0][run.round_at[0] :]
        asked = ChatMessage("assistant", said, tool_calls=calls)
        answers = []
        for call, result in zip(calls, results, strict=True):
            text = clip(result.text, max(RESULT_LEAST_CHARS, RESULTS_MAX_CHARS - run.tool_chars))
            run.tool_chars += len(text)
            answers.append(ChatMessage("tool", text, tool_call_id=call.id))
        run.next_round((*run.started.prompt, asked, *answers))
        return True

    async def _run_all(self, run: Run, toolbox: Toolbox, calls: Sequence[ToolCall]) -> list[ToolRun]:
        """Return how the calls went, in their order; several run at once, each within its own limits."""
        at = run.position()
        notes = await self._begin(run, calls, at)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, call: ToolCall) -> ToolRun:
            if number >= CALLS_MAX:
                text = f"一次最多调用 {CALLS_MAX} 个工具，这一个没有执行。需要的话请再调用一次。"
                result = ToolRun(call.name or "", call.arguments, "failed", text, 0, "too_many")
            else:
                async with gate:
                    result = await toolbox.run(call, trace=run.trace())
            run.card = merge_cards(run.card, result.card)
            run.attempt.tools.append(
                {"name": result.name, "ms": result.ms, "outcome": result.outcome, "problem": result.problem}
            )
            if notes:
                await self._end(run, notes[number], result)
            return result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, call)) for number, call in enumerate(calls)]
        except asyncio.CancelledError:
            for note in notes:
                if note.status == "started":
                    run.buffer.note_tool(replace(note, status="failed"))
            raise
        return [task.result() for task in tasks]

    async def _begin(self, run: Run, calls: Sequence[ToolCall], at: tuple[int, int]) -> list[ToolNote]:
        """Store that the tools run, then let it be read; nothing when it cannot be stored."""
        contents = [content_of(call.name or "", call.arguments, at) for call in calls]
        try:
            ids = await db.unit(
                begin_runs,
                run.started.site_id,
                run.started.reply_id,
                worker_id=run.worker_id,
                contents=contents,
            )
        except _AWAY as error:
            log.warning("tool_not_stored", extra={**run.trace(), "error": type(error).__name__})
            return []
        notes = [
            ToolNote(row_id, at, call.name or "", call.arguments, "started")
            for row_id, call in zip(ids, calls, strict=False)
        ]
        for note in notes:
            run.buffer.note_tool(note)
        return notes

    async def _end(self, run: Run, note: ToolNote, result: ToolRun) -> None:
        content = content_of(
            result.name,
            result.arguments,
            note.at,
            outcome=result.outcome,
            ms=result.ms,
            problem=result.problem,
            result=result.text,
        )
        is_done = result.outcome == "done"
        try:
            await db.unit(
                end_run,
                run.started.site_id,
                note.id,
                worker_id=run.worker_id,
                content=content,
                is_done=is_done,
                problem=result.problem,
            )
        except _AWAY as error:
            log.warning("tool_not_stored", extra={**run.trace(), "error": type(error).__name__})
            return
        run.buffer.note_tool(replace(note, status="done" if is_done else "failed", ms=result.ms))

    async def _close_round(self, run: Run) -> None:
        """Close the ledger's row of the call that asked for tools, and open the next one's."""
        values = round_values(run)
        run.spent = (run.spent[0] + values["input_tokens"], run.spent[1] + values["output_tokens"])
        # Both before anything is awaited: who is stopped meanwhile is sealed as the next attempt.
        run.untold.append((time.monotonic(), values))
        run.attempt = Attempt(run.attempt.number + 1, began_at=run.position())
        try:
            await self._tell_ledger(run)
        except DatabaseAway as error:
            log.warning("ledger_failed", extra={**run.trace(), "error": type(error).__name__})


def ending_of_rounds(run: Run, ending: Ending) -> Ending:
    """Return the end of the whole reply: no false success when the model asks for what it may not have."""
    finished = run.attempt.finished
    still_asks = finished is not None and finished.tool_calls and not run.attempt.has_tools
    if ending.status == "complete" and run.toolbox is not None and still_asks:
        # It was told to answer, and asks again: what stands there is what there is.
        ending = replace(ending, status="truncated")
    return ending


def asked_in_round(run: Run, endpoint: EndpointConfig) -> tuple[tuple[ChatMessage, ...], tuple[ToolSpec, ...]]:
    """Return what this endpoint is asked in this round, and the tools it may ask for.

    With tools while it may ask for them. Otherwise what tools gave so far stands there in words: endpoints
    without tools, and vendors that refuse results of tools that are not on offer, understand that.
    """
    prompt = run.started.prompt
    if run.toolbox is None:
        return prompt, ()
    is_last = run.round > run.started.tool_rounds
    if endpoint.has_tools and not is_last:
        return prompt, run.toolbox.specs
    return in_words(prompt, is_last=is_last), ()


def in_words(messages: Sequence[ChatMessage], *, is_last: bool = False) -> tuple[ChatMessage, ...]:
    """Return the messages with calls and results of tools as plain text; after the last round, told to answer."""
    names: dict[str, str] = {}
    said: list[ChatMessage] = []
    results: list[str] = []

    def flush() -> None:
        if results:
            said.append(ChatMessage("user", "（系统提示）工具返回的结果：\n" + "\n\n".join(results)))
            results.clear()

    for message in messages:
        if message.role == "tool":
            results.append(f"【{names.get(message.tool_call_id or '', '工具')}】\n{message.content}")
            continue
        flush()
        for call in message.tool_calls:
            names[call.id or ""] = f"{call.name or ''} {call.arguments[:500]}".strip()
        if message.tool_calls:
            asked = "、".join(call.name or "" for call in message.tool_calls)
            said.append(ChatMessage("assistant", message.content or f"（我查询了：{asked}）"))
        else:
            said.append(message)
    if results and is_last:
        results.append(ENOUGH)
    flush()
    return tuple(said)
