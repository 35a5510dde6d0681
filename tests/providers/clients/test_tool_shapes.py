"""Tools and their messages in the shapes of the vendors, out of the same request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import orjson
import pytest

from providers.clients.dashscope_app import DashScopeAppProvider
from providers.clients.declarative import configs
from providers.clients.declarative.client import provider_from_config
from providers.clients.declarative.schema import parse_config
from providers.clients.openai_chat import OpenAIChatProvider
from providers.clients.scripted import ScriptedProvider
from providers.credentials import Secret
from providers.types import ChatMessage, ChatRequest, Finished, StreamItem, ToolCall, ToolSpec

WEATHER = ToolSpec(
    "get_weather",
    "查询城市的天气",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "城市", "$comment": "中文名"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
ASKED = ChatRequest(
    (
        ChatMessage("system", "你是助手。"),
        ChatMessage("user", "北京天气？"),
        ChatMessage(
            "assistant",
            "我查一下。",
            tool_calls=(
                ToolCall(0, "c1", "get_weather", '{"city":"北京"}'),
                ToolCall(1, "c2", "get_weather", "{坏"),
            ),
        ),
        ChatMessage("tool", "晴，20 度", tool_call_id="c1"),
        ChatMessage("tool", "参数不是 JSON", tool_call_id="c2"),
    ),
    model="m",
    tools=(WEATHER,),
    tool_choice="auto",
)


def ready_body(name: str, request: ChatRequest = ASKED, *, mapi: str = "chat") -> dict[str, Any]:
    """Return the body that a ready configuration makes of the request."""
    provider = provider_from_config(
        configs.load(name), api_key=Secret("sk-1234567890"), mapi=mapi, client=httpx.AsyncClient
    )
    body = provider.prepare(request).body
    assert body is not None
    return dict(orjson.loads(body))


def test_openai_gets_calls_results_and_tools() -> None:
    provider = OpenAIChatProvider(base_url="http://x.example", model="m", client=httpx.AsyncClient)
    body = json.loads(provider._request(httpx.AsyncClient(), ASKED).content)
    assert body["messages"][2] == {
        "role": "assistant",
        "content": "我查一下。",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city":"北京"}'},
            },
            {"id": "c2", "type": "function", "function": {"name": "get_weather", "arguments": "{坏"}},
        ],
    }
    assert body["messages"][3] == {"role": "tool", "content": "晴，20 度", "tool_call_id": "c1"}
    assert body["tools"][0]["function"]["parameters"] == WEATHER.parameters
    assert body["tool_choice"] == "auto"
    assert ready_body("openai")["messages"] == body["messages"]
    assert ready_body("openai")["tools"] == body["tools"] == ready_body("openai", mapi="whole")["tools"]


def test_a_request_without_tools_says_nothing_of_them() -> None:
    plain = ChatRequest((ChatMessage("user", "你好"),), model="m")
    for name in configs.names():
        if name in {"azure", "dashscope_app", "zhipu_jwt"}:
            continue  # they need more than a key
        body = json.dumps(ready_body(name, plain))
        assert "tool" not in body, name


def test_anthropic_gets_blocks() -> None:
    body = ready_body("anthropic")
    assert body["tools"] == [
        {"name": "get_weather", "description": "查询城市的天气", "input_schema": WEATHER.parameters}
    ]
    assert body["tool_choice"] == {"type": "auto"}
    assert body["messages"] == [
        {"role": "user", "content": "北京天气？"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "我查一下。"},
                {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "北京"}},
                {"type": "tool_use", "id": "c2", "name": "get_weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "晴，20 度"},
                {"type": "tool_result", "tool_use_id": "c2", "content": "参数不是 JSON"},
            ],
        },
    ]


def test_gemini_gets_parts_and_a_schema_it_knows() -> None:
    body = ready_body("gemini")
    assert body["tools"][0]["functionDeclarations"][0]["parameters"] == {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "城市"}},
        "required": ["city"],
    }
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "AUTO"}}
    assert body["contents"][1]["parts"][1] == {"functionCall": {"name": "get_weather", "args": {"city": "北京"}}}
    assert body["contents"][2] == {
        "parts": [{"functionResponse": {"name": "get_weather", "response": {"content": "晴，20 度"}}}],
        "role": "user",
    }


def test_ollama_gets_objects_and_names() -> None:
    body = ready_body("ollama_native")
    assert body["messages"][2]["tool_calls"][0] == {
        "function": {"name": "get_weather", "arguments": {"city": "北京"}}
    }
    assert body["messages"][3] == {"role": "tool", "content": "晴，20 度", "tool_name": "get_weather"}


def test_an_application_is_never_told_of_tools() -> None:
    provider = DashScopeAppProvider(base_url="http://x.example", model="app", client=httpx.AsyncClient)
    body = json.loads(provider._request(httpx.AsyncClient(), ASKED).content)
    assert "tools" not in json.dumps(body)


@pytest.mark.parametrize(
    ("name", "can"),
    [("openai", True), ("anthropic", True), ("gemini", True), ("ollama_native", True), ("dashscope_app", False)],
)
def test_whether_a_configuration_can_say_tools_is_computed(name: str, can: bool) -> None:
    assert parse_config(configs.load(name)).sections["chat"].says_tools is can


def test_a_configuration_that_does_not_pass_parameters_on_cannot() -> None:
    raw = configs.load("openai")
    raw["chat"]["pass_params"] = False
    assert not parse_config(raw).sections["chat"].says_tools
    body = provider_from_config(raw, client=httpx.AsyncClient, api_key=Secret("sk-1")).prepare(ASKED).body
    assert b'"tools"' not in (body or b"")


def played(script: list[dict[str, Any]], request: ChatRequest) -> tuple[str, Finished]:
    """Return the text and the end of a scripted answer."""

    async def collect() -> list[StreamItem]:
        return [item async for item in ScriptedProvider(script).stream(request)]

    items = asyncio.run(collect())
    assert isinstance(items[-1], Finished)
    return "".join(item.text for item in items[:-1] if not isinstance(item, Finished)), items[-1]


def test_a_script_asks_for_tools_and_goes_on_when_they_answered() -> None:
    script = [
        {"text": "查一下。"},
        {"tool_calls": [{"name": "get_weather", "arguments": {"city": "北京"}}]},
        {"text": "晴。"},
    ]
    question = (ChatMessage("user", "天气？"),)
    text, end = played(script, ChatRequest(question, tools=(WEATHER,)))
    assert (text, end.finish_reason) == ("查一下。", "tool_calls")
    assert [(call.name, call.arguments) for call in end.tool_calls] == [("get_weather", '{"city": "北京"}')]
    answered = (
        *question,
        ChatMessage("assistant", text, tool_calls=end.tool_calls),
        ChatMessage("tool", "晴", tool_call_id=end.tool_calls[0].id),
    )
    text, end = played(script, ChatRequest(answered, tools=(WEATHER,)))
    assert (text, end.finish_reason, end.tool_calls) == ("晴。", "stop", ())
    assert (played(script, ChatRequest(question)))[0] == "晴。"
