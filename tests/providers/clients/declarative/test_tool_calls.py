"""E9: tool calls of each vendor's own shape, as their documents show them, however the bytes arrive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from providers import errors
from providers.clients.declarative.configs import load
from providers.clients.declarative.reducer import MappedReducer, Trace
from providers.clients.declarative.schema import parse_config
from providers.types import Finished, ToolCall

BEIJING, SHANGHAI = '{"city":"北京"}', '{"city":"上海"}'


def sse(*events: dict[str, Any]) -> bytes:
    """Return events as a named stream, as Anthropic sends them."""
    return "".join(
        f"event: {event.get('type')}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events
    ).encode()


def begun(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def more(index: int, partial: str) -> dict[str, Any]:
    return {
        "type": "content_block_delta",
        "index": index,
        "delta": {"type": "input_json_delta", "partial_json": partial},
    }


def ended(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)


ANTHROPIC = sse(
    {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": {"input_tokens": 9}}},
    begun(0, type="text", text=""),
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "我查一下。"}},
    ended(0),
    begun(1, type="tool_use", id="toolu_1", name="weather", input={}),
    more(1, ""),
    more(1, '{"city":'),
    begun(2, type="tool_use", id="toolu_2", name="weather", input={}),
    more(2, '{"city":"上'),
    more(1, '"北京"}'),
    ended(1),
    more(2, '海"}'),
    ended(2),
    begun(3, type="server_tool_use", id="srv_1", name="web_search", input={}),
    more(3, '{"q":1}'),
    ended(3),
    begun(4, type="tool_use", id="toolu_3", name="now", input={}),
    more(4, ""),
    ended(4),
    begun(5, type="tool_use", id="toolu_4", name="weather", input={"city": "北京"}),
    ended(5),
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
)
ANTHROPIC_CALLS = (
    ToolCall(0, "toolu_1", "weather", BEIJING),
    ToolCall(1, "toolu_2", "weather", SHANGHAI),
    ToolCall(2, "toolu_3", "now", "{}"),
    ToolCall(3, "toolu_4", "weather", BEIJING),
)
ANTHROPIC_WHOLE = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "content": [
            {"type": "text", "text": "我查一下。"},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "北京"}},
            {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 9, "output_tokens": 5},
    }
).encode()


def gemini(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, **more}], "responseId": "r1"}


GEMINI_EVENTS = (
    gemini({"text": "我查一下。"}),
    gemini({"functionCall": {"name": "weather", "args": {"city": "北京"}}}),
    gemini(
        {"functionCall": {"id": "call-2", "name": "weather", "args": {"city": "上海"}}, "thoughtSignature": "x"},
        {"functionCall": {"name": "now"}},
        finishReason="STOP",
    ),
)
GEMINI_CALLS = (
    ToolCall(0, None, "weather", BEIJING),
    ToolCall(1, "call-2", "weather", SHANGHAI),
    ToolCall(2, None, "now", "{}"),
)
GEMINI_WHOLE = gemini(
    *(part for event in GEMINI_EVENTS for part in event["candidates"][0]["content"]["parts"]), finishReason="STOP"
)


def ollama(content: str, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}
    return {"model": "qwen3", "message": message, "done": False, **more}


def called(city: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": "weather", "arguments": {"city": city}}, **more}


OLLAMA = lines(
    ollama("我查一下。"),
    ollama("", called("北京")),
    ollama("", called("上海", id="call_2"), {"function": {"name": "now", "arguments": {}}}),
    ollama("", done=True, done_reason="stop", prompt_eval_count=9, eval_count=5),
)
OLLAMA_CALLS = (
    ToolCall(0, None, "weather", BEIJING),
    ToolCall(1, "call_2", "weather", SHANGHAI),
    ToolCall(2, None, "now", "{}"),
)
OLLAMA_WHOLE = json.dumps(ollama("我查一下。", called("北京"), done=True, done_reason="stop")).encode()


def reply(name: str, mapi: str, pieces: list[bytes]) -> tuple[str, Finished, bool]:
    """Return text, end and completeness of a reply that comes in these reads."""
    reducer = MappedReducer(parse_config(load(name)).sections[mapi])
    text = ""
    for piece in pieces:
        reducer.feed(piece)
        if (delta := reducer.take()) is not None:
            text += delta.text
    reducer.finish()
    if (delta := reducer.take_last()) is not None:
        text += delta.text
    return text, reducer.finished(), reducer.is_complete


@pytest.mark.parametrize(
    ("name", "mapi", "data", "finish", "calls"),
    [
        ("anthropic", "chat", ANTHROPIC, "tool_use", ANTHROPIC_CALLS),
        ("anthropic_x_api_key", "chat", ANTHROPIC, "tool_use", ANTHROPIC_CALLS),
        ("anthropic", "whole", ANTHROPIC_WHOLE, "tool_use",
         (ToolCall(0, "toolu_1", "weather", BEIJING), ToolCall(1, "toolu_2", "now", "{}"))),
        ("gemini", "chat", sse(*GEMINI_EVENTS).replace(b"event: None\n", b""), "STOP", GEMINI_CALLS),
        ("gemini", "whole", json.dumps(GEMINI_WHOLE).encode(), "STOP", GEMINI_CALLS),
        ("ollama_native", "chat", OLLAMA, "stop", OLLAMA_CALLS),
        ("ollama_native", "whole", OLLAMA_WHOLE, "stop", OLLAMA_CALLS[:1]),
    ],
)  # fmt: skip
def test_the_calls_of_a_ready_configuration_are_put_together(
    name: str, mapi: str, data: bytes, finish: str, calls: tuple[ToolCall, ...]
) -> None:
    for offset in range(len(data)):
        text, end, is_complete = reply(name, mapi, [data[:offset], data[offset:]])
        assert (text, end.finish_reason, end.tool_calls, is_complete) == ("我查一下。", finish, calls, True), (
            offset
        )
    by_byte = reply(name, mapi, [data[i : i + 1] for i in range(len(data))])
    assert by_byte[1].tool_calls == calls
    for call in calls:
        json.loads(call.arguments)


def test_a_reply_of_calls_alone_is_complete_without_text() -> None:
    data = sse(gemini({"functionCall": {"name": "now", "args": {}}}, finishReason="STOP"))
    text, end, is_complete = reply("gemini", "chat", [data.replace(b"event: None\n", b"")])
    assert (text, is_complete) == ("", True)
    assert end.tool_calls == (ToolCall(0, None, "now", "{}"),)


ODD: dict[str, list[Any]] = {
    "anthropic": [
        begun(0, type="tool_use"),
        {**begun(1), "content_block": []},
        {"type": "content_block_delta", "index": [], "delta": 1},
        {"type": "content_block_delta", "index": 0, "delta": {"partial_json": 7}},
        {"type": "content_block_stop"},
        {"content": ["x", None, {"type": "tool_use", "id": 5, "name": {}, "input": "{}"}]},
    ],
    "gemini": [{"candidates": 1}, {"candidates": [{"content": {"parts": [1, {"functionCall": []}]}}]}],
    "ollama_native": [{"message": []}, {"message": {"tool_calls": {}}}, {"message": {"tool_calls": [1, {}]}}],
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_call_makes_nothing_fail(name: str) -> None:
    for event in ODD[name]:
        data = lines(event) if name == "ollama_native" else sse(event)
        for call in reply(name, "chat", [data])[1].tool_calls:
            assert call.name is None and call.id is None


def test_calls_without_end_are_refused() -> None:
    data = lines(*[ollama("", *[called("北京")] * 200)] * 6)
    with pytest.raises(errors.ReplyTooLong):
        reply("ollama_native", "chat", [data])


def test_the_lab_sees_what_an_event_added_to_a_call() -> None:
    traces: list[Trace] = []
    reducer = MappedReducer(parse_config(load("ollama_native")).sections["chat"], watcher=traces.append)
    reducer.feed(OLLAMA)
    assert [list(trace.mapped) for trace in traces][1] == ["content", "tool_calls"]
    assert traces[1].says == ""
