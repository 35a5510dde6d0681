"""The OpenAI client without a network: URLs, requests, and what errors and headers mean."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
from typing import Any

import httpx
import pytest

from providers import errors
from providers.base import ChatProvider, Clocks
from providers.clients.failures import from_httpx, refusal, retry_after_seconds
from providers.clients.openai_chat import OpenAIChatProvider, chat_url
from providers.clients.openai_reducer import Reducer, read_usage
from providers.credentials import Secret
from providers.types import ChatMessage, ChatRequest, Usage
from tests.providers.conftest import Answer, collect

KEY = "sk-live-0123456789abcdef"
DONE = (
    'data: {"choices":[{"index":0,"delta":{"content":"好"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'.encode()
)


def exchange(
    answer: httpx.Response | Exception, *, question: str = "你好", **options: Any
) -> tuple[Answer, list[Any]]:
    """Return what the provider streams when the server answers so, and the requests it got."""
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def go() -> Answer:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            options.setdefault("base_url", "https://api.example.com")
            provider = OpenAIChatProvider(model="m-1", client=lambda: client, **options)
            assert isinstance(provider, ChatProvider)
            return await collect(provider, question)

    return asyncio.run(go()), requests


def sse(body: bytes = DONE, **headers: str) -> httpx.Response:
    """Return an event stream."""
    return httpx.Response(
        200, headers={"Content-Type": "text/event-stream", **headers}, stream=httpx.ByteStream(body)
    )


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api.example.com", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com/", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com/v1", "https://api.example.com/v1/chat/completions"),
        (" https://api.example.com/v1/ ", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com/v1/chat/completions/", "https://api.example.com/v1/chat/completions"),
        ("https://x.example/api/paas/v4", "https://x.example/api/paas/v4/chat/completions"),
        ("https://x.example/compatible-mode/v1/", "https://x.example/compatible-mode/v1/chat/completions"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
    ],
)
def test_a_base_url_is_taken_with_and_without_slash_version_and_path(base_url: str, url: str) -> None:
    assert chat_url(base_url) == url


@pytest.mark.parametrize(
    "base_url",
    ["", "api.example.com", "ftp://a.example", "https://", "https://u:p@a.example", "https://u@a.example",
     "https://a.example?x=1", "https://a.example#x", "https://a.example:99999", "https://a.example:0",
     "https://a.example/a b", "https://a.example\\@evil.example", "https://[::1", "https://a.example/\x00"],
)  # fmt: skip
def test_what_is_not_a_base_url_is_misconfigured(base_url: str) -> None:
    with pytest.raises(errors.Misconfigured):
        chat_url(base_url)


def test_the_request_is_what_openai_expects() -> None:
    answer, [request] = exchange(sse(), api_key=Secret(KEY), params={"temperature": 0.5, "model": "evil"})
    assert answer.text == "好"
    assert str(request.url) == "https://api.example.com/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["accept-encoding"] == "identity"
    assert json.loads(request.content) == {
        "model": "m-1",
        "messages": [{"role": "user", "content": "你好"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }


def test_without_a_key_there_is_no_authorization() -> None:
    _, [request] = exchange(sse())
    assert "authorization" not in request.headers


def test_parameters_of_the_request_win_over_the_endpoints_and_null_leaves_usage_out() -> None:
    requests: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(json.loads(request.content))
        return sse()

    async def go() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            provider = OpenAIChatProvider(
                base_url="https://a.example",
                model="m-1",
                params={"temperature": 0.5, "stream_options": None},
                client=lambda: client,
            )
            await collect(provider, "你好", model="m-2", params={"temperature": 1, "stream": False}, user_ref="u1")

    asyncio.run(go())
    [body] = requests
    assert (body["model"], body["temperature"], body["stream"], body["user"]) == ("m-2", 1, True, "u1")
    assert "stream_options" not in body


def test_a_prompt_with_what_cannot_be_sent_is_made_sendable() -> None:
    _, [request] = exchange(sse(), question="甲\ud800\0乙")
    assert json.loads(request.content)["messages"][0]["content"] == "甲\ufffd\ufffd乙"


@pytest.mark.parametrize("key", ["sk-a\r\nX-Evil: 1", "密钥", "sk a"])
def test_a_key_that_cannot_stand_in_a_header_is_misconfigured_and_not_shown(key: str) -> None:
    answer, requests = exchange(sse(), api_key=Secret(key))
    assert isinstance(answer.error, errors.Misconfigured)
    assert requests == []
    assert key not in repr(answer.error)


@pytest.mark.parametrize(
    ("failure", "kind", "code"),
    [
        (httpx.ConnectTimeout("x"), errors.TimedOut, "timed_out_connect"),
        (httpx.PoolTimeout("x"), errors.TimedOut, "timed_out_connect"),
        (httpx.ReadTimeout("x"), errors.TimedOut, "timed_out_first"),
        (httpx.WriteTimeout("x"), errors.TimedOut, "timed_out_write"),
        (httpx.ConnectError("x"), errors.ConnectFailed, "connect_failed"),
        (httpx.ReadError("x"), errors.ConnectFailed, "no_answer"),
        (httpx.WriteError("x"), errors.ConnectFailed, "no_answer"),
        (httpx.CloseError("x"), errors.ConnectFailed, "no_answer"),
        (httpx.RemoteProtocolError("x"), errors.ConnectFailed, "no_answer"),
        (httpx.LocalProtocolError("x"), errors.Misconfigured, "bad_endpoint"),
        (httpx.UnsupportedProtocol("x"), errors.Misconfigured, "bad_endpoint"),
        (httpx.ProxyError("x"), errors.Misconfigured, "bad_endpoint"),
        (httpx.DecodingError("x"), errors.MalformedReply, "malformed_reply"),
        (httpx.TooManyRedirects("x"), errors.MalformedReply, "malformed_reply"),
    ],
)
def test_every_httpx_failure_has_our_name(
    failure: httpx.HTTPError, kind: type[errors.ProviderError], code: str
) -> None:
    mapped = from_httpx(failure)
    assert (type(mapped), mapped.code) == (kind, code)
    answer, _ = exchange(failure)
    assert (type(answer.error), answer.error and answer.error.code) == (kind, code)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"code": "context_length_exceeded"}, errors.BadRequest),
        (400, {"code": "content_filter"}, errors.ContentBlocked),
        (400, {"code": "DataInspectionFailed"}, errors.ContentBlocked),
        (400, {"code": "Arrearage"}, errors.QuotaExceeded),
        (401, None, errors.Unauthorized),
        (403, {"code": "insufficient_quota"}, errors.QuotaExceeded),
        (404, {"code": "model_not_found"}, errors.UnknownModel),
        (400, {"code": "model_not_found"}, errors.UnknownModel),
        (408, None, errors.Unavailable),
        (413, None, errors.BadRequest),
        (418, None, errors.BadRequest),
        (429, {"type": "tokens", "code": "rate_limit_exceeded"}, errors.RateLimited),
        (429, {"code": "insufficient_quota"}, errors.QuotaExceeded),
        (429, {"code": "1113"}, errors.QuotaExceeded),
        (500, {"code": "invalid_api_key"}, errors.Unavailable),
        (529, {"type": "overloaded_error"}, errors.Unavailable),
        (None, {"code": 400, "type": "BadRequestError"}, errors.BadRequest),
        (None, {"code": 429}, errors.RateLimited),
        (None, {"code": 1004, "message": "login fail"}, errors.Unauthorized),
        (None, {"code": "Throttling.RateQuota"}, errors.RateLimited),
        (None, {"type": "server_error"}, errors.Unavailable),
        (None, {"message": "?"}, errors.Unavailable),
        (None, None, errors.Unavailable),
    ],
)
def test_a_refusal_has_our_name(
    status: int | None, error: dict[str, Any] | None, kind: type[errors.ProviderError]
) -> None:
    assert type(refusal(status, error)) is kind


def test_a_vendors_sentence_never_holds_the_key() -> None:
    failed = refusal(
        401, {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}, secret=Secret(KEY)
    )
    assert failed.vendor_message == "Incorrect API key provided: •••"
    assert KEY not in str(failed)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","code":"c"}}', "m"),
        (b'{"error":"plain"}', "plain"),
        (b'{"code":"InvalidApiKey","message":"top","request_id":"r"}', "top"),
        (b'{"detail":"fastapi"}', "fastapi"),
        (b"<html>Bad gateway</html>", None),
        (b"", None),
        (b'{"error":{"message":"' + b"x" * 100_000, None),
        (b"[1]", None),
    ],
)
def test_the_body_of_an_http_error_is_read_in_every_shape(body: bytes, message: str | None) -> None:
    answer, _ = exchange(httpx.Response(500, content=body))
    assert isinstance(answer.error, errors.Unavailable)
    assert answer.error.vendor_message == message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("999999", 3600.0), ("nan", None), ("soon", None), ("", None),
     (None, None), ("Fri, 20 Nov 2026 10:00:30 GMT", 30.0), ("Fri, 20 Nov 2026 09:00:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    now = dt.datetime(2026, 11, 20, 10, 0, 0, tzinfo=dt.UTC)
    assert retry_after_seconds(value, now=now) == seconds


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (sse(b"", **{"Content-Type": "text/html"}), "html_answer"),
        (sse(DONE, **{"Content-Encoding": "br"}), "unknown_encoding"),
        (sse(b"not gzip", **{"Content-Encoding": "gzip"}), "bad_encoding"),
        (httpx.Response(204), "malformed_reply"),
        (httpx.Response(301, headers={"Location": "https://evil.example"}), "redirect_refused"),
        (sse(b"plain text"), "not_a_reply"),
        (sse(b'data: {"choices":[]}\n\n'), "stream_cut"),
    ],
)
def test_what_is_not_a_reply_is_called_so(response: httpx.Response, code: str) -> None:
    answer, requests = exchange(response)
    assert answer.error is not None
    assert (answer.error.code, len(requests)) == (code, 1)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/octet-stream", ""])
def test_an_event_stream_is_known_by_its_bytes(content_type: str) -> None:
    answer, _ = exchange(sse(DONE, **{"Content-Type": content_type}))
    assert answer.text == "好"


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/plain"])
def test_a_json_answer_is_known_by_its_bytes(content_type: str) -> None:
    body = ' \n{"choices":[{"message":{"content":"全文","reasoning_content":"想"},"finish_reason":"stop"}]}'
    answer, _ = exchange(sse(body.encode(), **{"Content-Type": content_type}))
    assert (answer.text, answer.reasoning) == ("全文", "想")


def test_a_surrogate_pair_in_two_tokens_becomes_one_character() -> None:
    reducer = Reducer()
    texts = []
    for token in ("甲\\ud83d", "\\ude00乙", "\\ud83d", "丙", "\\ud83d"):
        reducer.feed(f'data: {{"choices":[{{"delta":{{"content":"{token}"}}}}]}}\n\n'.encode())
        if (delta := reducer.take()) is not None:
            texts.append(delta.text)
    last = reducer.take_last()
    assert last is not None
    assert [*texts, last.text] == ["甲", "😀乙", "\ufffd丙", "\ufffd"]


def test_tokens_in_the_same_read_as_a_failure_are_kept() -> None:
    token = b'data: {"choices":[{"index":0,"delta":{"content":"\xe5\x8d\x8a"}}]}\n\n'
    clocks = Clocks(line_max_bytes=1000)
    answer, _ = exchange(sse(token + b"data: " + b"x" * 2000 + b"\n\n"), clocks=clocks)
    assert answer.text == "半"
    assert isinstance(answer.error, errors.ReplyTooLong)


def test_a_long_compressed_reply_is_read() -> None:
    chunk = '{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"好"}}]}'
    body = gzip.compress((f"data: {chunk}\n\n" * 20_000 + "data: [DONE]\n\n").encode())
    answer, _ = exchange(sse(body, **{"Content-Encoding": "gzip"}))
    assert (answer.text, answer.error) == ("好" * 20_000, None)


def test_what_a_vendor_calls_the_end_can_be_stored() -> None:
    body = b'data: {"id":"a\\u0000b","choices":[{"delta":{},"finish_reason":"\\ud800' + b"x" * 200 + b'"}]}\n\n'
    answer, _ = exchange(sse(body))
    assert answer.finished is not None
    assert answer.finished.finish_reason == "\ufffd" + "x" * 63
    assert answer.finished.request_id == "a\ufffdb"


def test_endless_noise_is_not_read_for_ever() -> None:
    with pytest.raises(errors.MalformedReply):
        Reducer().feed(b"data: {x\n\n" * 2000)


def test_endless_tool_arguments_are_refused() -> None:
    arguments = "x" * 100_000
    chunk = json.dumps({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": arguments}}]}}]})
    with pytest.raises(errors.ReplyTooLong):
        Reducer().feed(f"data: {chunk}\n\n".encode() * 20)


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, Usage(3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, Usage(3, 4)),
        ({"completion_tokens": 4}, Usage(0, 4)),
        ({"prompt_tokens": "3"}, None),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": 10**30}, None),
        ({"prompt_tokens": True}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_usage_is_read_by_either_name_or_not_at_all(raw: Any, usage: Usage | None) -> None:
    assert read_usage(raw) == usage


def test_the_question_may_name_no_user() -> None:
    assert ChatRequest((ChatMessage("user", "你好"),)).user_ref is None
