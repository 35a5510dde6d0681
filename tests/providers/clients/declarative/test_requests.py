"""Bar 2: the requests of the ready configurations equal those captured from the vendors' own SDKs."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from providers import errors
from providers.clients.declarative.auth import TokenCache
from providers.clients.declarative.client import DeclarativeProvider, provider_from_config
from providers.clients.declarative.configs import load, names
from providers.clients.declarative.schema import parse_config
from providers.credentials import Secret
from providers.types import ChatMessage, ChatRequest

WIRE = Path(__file__).parents[3] / "wire"
CAPTURED = json.loads((WIRE / "provider_requests.json").read_text())
TALK = (ChatMessage("system", "s"), ChatMessage("user", "你好"))


def no_network() -> httpx.AsyncClient:
    """Return a client that cannot be used."""
    raise AssertionError("a request is put together without a network")


def provider(name: str, *, key: str | None = "KEY", **options: Any) -> DeclarativeProvider:
    """Return the provider of a ready configuration."""
    secret = Secret(key) if key else None
    return provider_from_config(load(name), api_key=secret, client=no_network, **options)


def jwt_moment() -> float:
    """Return when the captured Zhipu token was made."""
    token = CAPTURED["zhipu_chat_stream_jwt"]["requests"][0]["headers"]["Authorization"]
    return float(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["timestamp"]) / 1000


def target(url: str) -> str:
    """Return what the first line of a request says."""
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


@pytest.mark.parametrize(
    ("name", "capture", "auth", "options", "params"),
    [
        ("openai", "openai_chat_stream", "authorization", {"model": "m"}, {"max_tokens": 10, "temperature": 0.3}),
        ("azure", "azure_chat_stream", "api-key",
         {"model": "my-deployment", "base_url": "https://r.openai.azure.com"}, {}),
        ("anthropic", "anthropic_messages_stream", "authorization", {"model": "claude-x"}, {"max_tokens": 10}),
        ("gemini", "gemini_stream", "x-goog-api-key", {"model": "gemini-x"},
         {"max_tokens": 10, "temperature": 0.3}),
        ("ollama_native", "ollama_chat_stream", None, {"model": "qwen3", "key": None},
         {"temperature": 0.3, "tools": []}),
        ("zhipu", "zhipu_chat_stream_default", "authorization", {"model": "glm-4", "key": "id.secret"},
         {"response_format": None, "thinking": None}),
        ("zhipu_jwt", "zhipu_chat_stream_jwt", "authorization",
         {"model": "glm-4", "key": "id.secret", "clock": jwt_moment}, {"response_format": None, "thinking": None}),
    ],
)  # fmt: skip
def test_a_request_equals_the_captured_one(
    name: str, capture: str, auth: str | None, options: dict[str, Any], params: dict[str, Any]
) -> None:
    [official] = CAPTURED[capture]["requests"]
    sent = provider(name, **options).prepare(ChatRequest(TALK, params=params))
    assert sent.body is not None
    assert json.loads(sent.body) == official["body"]
    assert f"{sent.method} {target(sent.url)}" == official["request_line"]
    headers = {name.lower(): value for name, value in sent.headers.items()}
    theirs = {name.lower(): value for name, value in official["headers"].items()}
    assert headers["content-type"] == "application/json"
    if auth:
        assert headers[auth] == theirs[auth]
    else:
        assert not {"authorization", "api-key", "x-api-key"} & headers.keys()
    if name == "anthropic":
        assert headers["anthropic-version"] == theirs["anthropic-version"]


def test_the_two_requests_of_ernie_equal_the_captured_ones() -> None:
    for_token, for_chat = CAPTURED["qianfan_ernie_sync"]["requests"]
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if "oauth" in request.url.path:
            return httpx.Response(200, json={"access_token": "TOK", "expires_in": 2592000})
        return httpx.Response(200, json={"id": "as-1", "result": "好", "is_end": True, "finish_reason": "normal"})

    async def go() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            ernie = provider_from_config(
                load("ernie"), api_key=Secret('{"api_key": "AK", "secret_key": "SK"}'), model="ernie_speed",
                mapi="whole", client=lambda: client, tokens=TokenCache(),
            )  # fmt: skip
            items = [item async for item in ernie.stream(ChatRequest(TALK))]
            assert getattr(items[0], "text", None) == "好"

    asyncio.run(go())
    lines = [f"{request.method} {target(str(request.url))}" for request in seen]
    assert lines == [for_token["request_line"], for_chat["request_line"]]
    assert [json.loads(request.content) for request in seen] == [
        for_token["body"],
        {name: value for name, value in for_chat["body"].items() if name != "extra_parameters"},  # telemetry
    ]


@pytest.mark.parametrize(("mapi", "capture"), [("chat", "generation_stream"), ("whole", "generation_sync")])
def test_a_dashscope_generation_request_equals_the_captured_one(mapi: str, capture: str) -> None:
    captures = json.loads((WIRE / "dashscope_generation_requests.json").read_text())
    [official] = [entry["request"] for entry in captures if entry["name"] == capture]
    theirs = {name.lower(): value for name, value in official["headers"]}
    sent = provider("dashscope_generation", key="sk-test", model="qwen-plus", mapi=mapi).prepare(
        ChatRequest(TALK[1:])
    )
    headers = {name.lower(): value for name, value in sent.headers.items()}
    assert sent.body is not None
    assert json.loads(sent.body) == json.loads(official["body_utf8"])
    assert f"{sent.method} {target(sent.url)} HTTP/1.1" == official["request_line"]
    assert headers["authorization"] == theirs["authorization"]
    assert headers.get("x-dashscope-sse") == theirs.get("x-dashscope-sse")


def test_a_dashscope_application_request_equals_the_captured_one() -> None:
    captures = json.loads((WIRE / "dashscope_app_requests.json").read_text())
    [official] = [entry for entry in captures if entry["name"] == "stream_messages"]
    talk = (ChatMessage("system", "你是助手"), ChatMessage("user", "你好"))
    sent = provider("dashscope_app", key="sk-test", model="APP_ID_0123456789").prepare(ChatRequest(talk))
    assert sent.body is not None
    assert json.loads(sent.body) == official["body"]
    assert f"{sent.method} {target(sent.url)} HTTP/1.1" == official["request_line"]
    assert sent.headers["Authorization"] == dict(official["headers"])["Authorization"]


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("deepseek", "https://api.deepseek.com/chat/completions"),
        ("moonshot", "https://api.moonshot.cn/v1/chat/completions"),
        ("volc_ark", "https://ark.cn-beijing.volces.com/api/v3/chat/completions"),
        ("minimax", "https://api.minimaxi.com/v1/text/chatcompletion_v2"),
        ("spark_http", "https://spark-api-open.xf-yun.com/v1/chat/completions"),
    ],
)
def test_the_vendors_in_openais_manner_get_its_request_at_their_address(name: str, url: str) -> None:
    sent = provider(name, model="m").prepare(ChatRequest(TALK, params={"temperature": 0.3}))
    assert sent.url == url
    assert sent.headers["Authorization"] == "Bearer KEY"
    body = json.loads(sent.body or b"")
    assert body.pop("stream_options", {"include_usage": True}) == {"include_usage": True}
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "你好"}],
        "stream": True,
        "temperature": 0.3,
    }


@pytest.mark.parametrize("mapi", ["chat", "whole"])
def test_anthropic_by_x_api_key_differs_in_the_headers_alone(mapi: str) -> None:
    [official] = CAPTURED["anthropic_messages_stream"]["requests"]
    sent = provider("anthropic_x_api_key", model="claude-x", mapi=mapi).prepare(
        ChatRequest(TALK, params={"max_tokens": 10})
    )
    assert json.loads(sent.body or b"") == {**official["body"], "stream": mapi == "chat"}
    assert f"{sent.method} {target(sent.url)}" == official["request_line"]
    headers = {name.lower(): value for name, value in sent.headers.items()}
    assert (headers["x-api-key"], headers["anthropic-version"]) == ("KEY", "2023-06-01")
    assert "authorization" not in headers


@pytest.mark.parametrize("name", names())
def test_every_ready_configuration_is_whole_and_says_what_it_is(name: str) -> None:
    config = parse_config(load(name))
    assert config.name == name
    assert config.description
    assert {"chat", "whole"} <= set(config.sections)
    assert config.sections["whole"].mode == "whole"


def test_all_promised_configurations_are_there() -> None:
    assert set(names()) == {
        "openai", "azure", "deepseek", "moonshot", "zhipu", "zhipu_jwt", "ernie", "minimax", "volc_ark",
        "spark_http", "dashscope_generation", "dashscope_app", "anthropic", "anthropic_x_api_key",
        "gemini", "ollama_native",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["api_key", "apikey", "base_url", "messages", "model", "stream", "access_token"])
def test_a_request_cannot_replace_what_is_ours(name: str) -> None:
    own = provider("openai", model="m")
    plain = own.prepare(ChatRequest(TALK))
    tried = own.prepare(ChatRequest(TALK, params={name: "https://evil.example"}))
    assert (tried.url, tried.headers, tried.body) == (plain.url, plain.headers, plain.body)


def test_a_request_that_names_a_template_sends_its_letters() -> None:
    talk = (ChatMessage("user", "${api_key} ${model}"),)
    sent = provider("openai", key="sk-canary-0123456789", model="m").prepare(ChatRequest(talk))
    assert sent.body is not None
    assert b"canary" not in sent.body
    assert json.loads(sent.body)["messages"][0]["content"] == "${api_key} ${model}"
    assert "canary" not in repr(sent)


def test_parameters_go_request_over_endpoint_over_configuration() -> None:
    own = provider("anthropic", model="m", params={"max_tokens": 100, "top_k": 3})
    body = json.loads(own.prepare(ChatRequest(TALK, params={"top_k": 5})).body or b"")
    assert (body["max_tokens"], body["top_k"]) == (100, 5)
    off = provider("openai", model="m", params={"stream_options": None})
    assert "stream_options" not in json.loads(off.prepare(ChatRequest(TALK)).body or b"")


BEGUN = (*TALK, ChatMessage("assistant", "你好，我"))


@pytest.mark.parametrize(
    ("name", "flag", "url"),
    [
        ("deepseek", {"prefix": True}, "https://api.deepseek.com/beta/chat/completions"),
        ("moonshot", {"partial": True}, "https://api.moonshot.cn/v1/chat/completions"),
        ("openai", {}, "https://api.openai.com/v1/chat/completions"),
    ],
)
def test_a_vendor_that_wants_to_be_told_that_a_text_is_begun_is_told(
    name: str, flag: dict[str, Any], url: str
) -> None:
    own = provider(name, model="m")
    sent = own.prepare(ChatRequest(BEGUN, is_begun=True))
    last = {"role": "assistant", "content": "你好，我", **flag}
    assert (sent.url, json.loads(sent.body or b"")["messages"][-1]) == (url, last)
    plain = own.prepare(ChatRequest(BEGUN))
    assert json.loads(plain.body or b"")["messages"][-1] == {"role": "assistant", "content": "你好，我"}
    assert "/beta/" not in plain.url


def test_parameters_that_no_template_sends_are_named() -> None:
    gemini = provider("gemini", model="m")
    assert gemini.unused_params(ChatRequest(TALK, params={"temperature": 1, "logprobs": True})) == ["logprobs"]
    assert provider("openai", model="m").unused_params(ChatRequest(TALK, params={"logprobs": True})) == []


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("openai", {"key": None}, "missing_credential"),
        ("openai", {"key": "a\nb"}, "bad_api_key"),
        ("openai", {"key": "{broken"}, "bad_api_key"),
        ("openai", {"mapi": "nix"}, "unknown_section"),
        ("openai", {"values": {"nix": 1}}, "unknown_value"),
        ("openai", {"base_url": "https://u:p@a.example"}, "bad_base_url"),
        ("azure", {}, "missing_base_url"),
        ("gemini", {"model": ""}, "missing_url_value"),
        ("zhipu_jwt", {"key": "no-dot"}, "bad_api_key"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_anything_is_sent(
    name: str, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(errors.Misconfigured) as caught:
        provider(name, **{"model": "m", **options}).prepare(ChatRequest(TALK))
    assert caught.value.code == code


def test_a_configured_signer_signs_the_bytes_that_are_sent() -> None:
    config = {
        "name": "签名",
        "secrets": ["secret_key"],
        "chat": {
            "url": "https://open.volcengineapi.com/",
            "params": [{"name": "Action", "value": "Chat"}],
            "data": [{"name": "messages", "value": "${messages}"}],
            "sign": {"name": "volcengine", "access_key": "${api_key}", "secret_key": "${secret_key}",
                     "region": "cn-north-1", "service": "ark"},
            "resp": [{"name": "content", "value": "text"}],
        },
    }  # fmt: skip
    own = provider_from_config(
        config, api_key=Secret('{"api_key": "AK", "secret_key": "SK"}'), client=no_network, clock=lambda: 0.0
    )
    sent = own.prepare(ChatRequest(TALK))
    assert sent.headers["X-Date"] == "19700101T000000Z"
    assert sent.headers["Authorization"].startswith("HMAC-SHA256 Credential=AK/19700101/cn-north-1/ark/request, ")
    masked = own.prepare(ChatRequest(TALK), is_masked=True)
    assert masked.headers["Authorization"] == "<signed by volcengine>"
