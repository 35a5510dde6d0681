"""The configured client over real sockets and without: faults, clocks, tokens, and what it never says."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from providers import errors
from providers.base import ChatProvider, Clocks
from providers.clients.declarative.auth import TokenCache
from providers.clients.declarative.client import DeclarativeProvider, provider_from_config
from providers.clients.declarative.configs import load
from providers.credentials import Secret
from providers.http import HttpPolicy, new_client
from providers.types import ChatMessage, ChatRequest, Delta, Usage, outcome_of
from tests.fakes.provider import FakeProvider
from tests.providers.clients.test_openai_faults import BROKEN, COMPLETE
from tests.providers.conftest import Answer, Transport, collect
from tests.providers.test_http import eventually

CANARY = "sk-canary-0123456789abcdef"
AK_SK = Secret(json.dumps({"api_key": "AK", "secret_key": CANARY}))
TOKEN = "24.canary-token-0123456789"
ERNIE = 'data: {"result":"好","is_end":false,"finish_reason":"normal"}\n\n'.encode()
ERNIE_END = (
    'data: {"result":"。","is_end":true,"finish_reason":"normal",'
    '"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
).encode()


@pytest.fixture(params=[False, True], ids=["plain", "tapped"])
def ask(fake: FakeProvider, transport: Transport, request: pytest.FixtureRequest) -> Callable[..., Answer]:
    """Return a function that asks the fake provider through the ready OpenAI configuration."""

    def ask_fake(question: str, **clocks: Any) -> Answer:
        async def go() -> Answer:
            policy = HttpPolicy(allowed_addresses=frozenset({fake.address}), transport=transport)
            async with new_client(policy) as client:
                provider = provider_from_config(
                    load("openai"),
                    api_key=Secret(CANARY),
                    model="fake",
                    base_url=fake.base_url if fake.base_url.endswith("/v1") else f"{fake.base_url}/v1",
                    clocks=Clocks(**clocks),
                    client=lambda: client,
                )
                assert isinstance(provider, ChatProvider)
                return await collect(provider, question, is_tapped=request.param)

        return asyncio.run(go())

    return ask_fake


@pytest.mark.parametrize("question", COMPLETE)
def test_an_odd_but_whole_reply_arrives_exactly(ask: Callable[..., Answer], question: str) -> None:
    answer = ask(question)
    assert answer.error is None
    assert answer.text == COMPLETE[question]
    assert answer.finished is not None
    assert outcome_of(answer.finished.finish_reason) == "complete"


@pytest.mark.parametrize("question", BROKEN)
def test_a_failure_has_its_name_and_keeps_the_text(ask: Callable[..., Answer], question: str) -> None:
    text, kind, code = BROKEN[question]
    answer = ask(question)
    assert (answer.text, type(answer.error)) == (text, kind)
    assert answer.error is not None
    assert answer.error.code == code
    assert "canary" not in f"{answer.error!r} {answer.error.vendor_message}"


@pytest.mark.parametrize(
    ("question", "clocks", "code"),
    [
        ("[[fault=stall after=0]]", {"first_payload_seconds": 0.3}, "timed_out_first"),
        ("[[fault=stall after=3]]", {"idle_seconds": 0.3}, "timed_out_idle"),
        ("[[fault=keepalive]]", {"idle_seconds": 0.3}, "timed_out_idle"),
        ("[[n=200 rate=50]]", {"total_seconds": 0.5}, "timed_out_total"),
    ],
)
def test_each_clock_runs_out_by_its_name(
    ask: Callable[..., Answer], question: str, clocks: dict[str, float], code: str
) -> None:
    answer = ask(question, **clocks)
    assert answer.error is not None
    assert answer.error.code == code
    assert answer.seconds < 3


class Baidu:
    """A stand-in for the two servers of ERNIE: hands out tokens, and knows which are good."""

    def __init__(self, **token: Any) -> None:
        self.token = {"expires_in": 2592000, **token}
        self.tokens = 0
        self.chats: list[str] = []
        self.good: set[str] = set()
        self.pause = 0.0
        self.token_answer: httpx.Response | None = None
        self.before = b""
        self.refuses_all = False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if "oauth" in request.url.path:
            self.tokens += 1
            await asyncio.sleep(self.pause)
            if self.token_answer is not None:
                return self.token_answer
            name = f"{TOKEN}-{self.tokens}"
            self.good.add(name)
            return httpx.Response(200, json={"access_token": name, **self.token})
        used = request.url.params["access_token"]
        self.chats.append(used)
        if self.refuses_all or used not in self.good:
            body = {"error_code": 111, "error_msg": f"Access token expired: {used} of {CANARY}"}
            if self.before:
                data = self.before + f"data: {json.dumps(body)}\n\n".encode()
                return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=data)
            return httpx.Response(200, json=body)
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=ERNIE + ERNIE_END)


def with_baidu(baidu: Baidu, go: Callable[[Callable[..., DeclarativeProvider]], Awaitable[Any]]) -> Any:
    """Run a scenario that gets a maker of ERNIE providers."""

    async def run() -> Any:
        tokens = TokenCache()
        async with httpx.AsyncClient(transport=httpx.MockTransport(baidu)) as client:

            def make(config: dict[str, Any] | None = None, **options: Any) -> DeclarativeProvider:
                options = {"api_key": AK_SK, "model": "ernie_speed", "tokens": tokens, **options}
                return provider_from_config(config or load("ernie"), client=lambda: client, **options)

            return await go(make)

    return asyncio.run(run())


def test_a_token_is_fetched_once_for_many_replies_at_once() -> None:
    baidu = Baidu()
    baidu.pause = 0.05

    async def go(make: Callable[..., DeclarativeProvider]) -> list[Answer]:
        return await asyncio.gather(*(collect(make(), "你好") for _ in range(20)))

    answers = with_baidu(baidu, go)
    assert [answer.text for answer in answers] == ["好。"] * 20
    assert answers[0].finished.usage == Usage(3, 2)
    assert (baidu.tokens, len(baidu.chats)) == (1, 20)


def test_a_refused_token_is_replaced_once_and_by_one_of_all_who_waited() -> None:
    baidu = Baidu()

    async def go(make: Callable[..., DeclarativeProvider]) -> list[Answer]:
        await collect(make(), "你好")
        baidu.good.clear()
        baidu.pause = 0.05
        return await asyncio.gather(*(collect(make(), "你好") for _ in range(10)))

    answers = with_baidu(baidu, go)
    assert [answer.text for answer in answers] == ["好。"] * 10
    assert baidu.tokens == 2


def test_a_token_that_is_refused_again_is_an_error_and_no_loop() -> None:
    baidu = Baidu()

    baidu.refuses_all = True

    async def go(make: Callable[..., DeclarativeProvider]) -> Answer:
        return await collect(make(), "你好")

    answer = with_baidu(baidu, go)
    assert isinstance(answer.error, errors.Unauthorized)
    assert (baidu.tokens, len(baidu.chats)) == (2, 2)
    assert answer.error.vendor_message == "Access token expired: ••• of •••"


def test_a_refusal_after_the_first_token_is_not_asked_again() -> None:
    baidu = Baidu()
    baidu.before = ERNIE

    async def go(make: Callable[..., DeclarativeProvider]) -> list[Answer]:
        await collect(make(), "你好")
        baidu.good.clear()
        return [await collect(make(), "你好", is_tapped=is_tapped) for is_tapped in (False, True)]

    for answer in with_baidu(baidu, go):
        assert (answer.text, type(answer.error)) == ("好", errors.Unauthorized)
    assert (baidu.tokens, len(baidu.chats)) == (1, 3)


def test_a_token_near_its_end_is_fetched_anew_and_credentials_do_not_share() -> None:
    baidu = Baidu(expires_in=0.2)

    async def go(make: Callable[..., DeclarativeProvider]) -> None:
        await collect(make(), "你好")
        await collect(make(), "你好")
        assert baidu.tokens == 1
        await asyncio.sleep(0.15)  # the margin is 300 s, but never more than half of a token's life
        await collect(make(), "你好")
        assert baidu.tokens == 2
        await collect(make(api_key=Secret('{"api_key": "other", "secret_key": "x"}')), "你好")
        assert baidu.tokens == 3

    with_baidu(baidu, go)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(401, json={"error": "invalid_client", "error_description": f"no {CANARY}"}),
         errors.Unauthorized),
        (httpx.Response(200, json={"error": "invalid_client"}), errors.Unauthorized),
        (httpx.Response(200, json={"nothing": 1}), errors.MalformedReply),
        (httpx.Response(200, text="<html>"), errors.MalformedReply),
        (httpx.Response(302, headers={"Location": "http://169.254.169.254/"}), errors.MalformedReply),
        (httpx.Response(503, text="busy"), errors.Unavailable),
        (httpx.Response(200, content=b"x" * 100_000), errors.MalformedReply),
    ],
    ids=lambda value: str(value),
)  # fmt: skip
def test_a_failing_auth_step_is_named_once_for_all_and_says_no_secret(
    answer: httpx.Response, kind: type[errors.ProviderError]
) -> None:
    baidu = Baidu()
    baidu.pause = 0.05
    baidu.token_answer = answer

    async def go(make: Callable[..., DeclarativeProvider]) -> list[Answer]:
        return await asyncio.gather(*(collect(make(), "你好") for _ in range(5)))

    for got in with_baidu(baidu, go):
        assert type(got.error) in (kind,)
        assert "canary" not in f"{got.error!r} {got.error.vendor_message}"
    assert (baidu.tokens, baidu.chats) == (1, [])


def test_an_auth_step_that_hangs_is_ended_by_the_first_clock() -> None:
    baidu = Baidu()
    baidu.pause = 30

    async def go(make: Callable[..., DeclarativeProvider]) -> Answer:
        return await collect(make(clocks=Clocks(first_payload_seconds=0.1)), "你好")

    answer = with_baidu(baidu, go)
    assert (str(answer.error), answer.seconds < 3) == ("timed_out_first", True)


def test_who_gives_up_while_the_token_is_fetched_does_not_fail_the_others() -> None:
    baidu = Baidu()
    baidu.pause = 0.1

    async def go(make: Callable[..., DeclarativeProvider]) -> Answer:
        first = asyncio.create_task(collect(make(), "你好"))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(collect(make(), "你好"))
        await asyncio.sleep(0.02)
        first.cancel()
        return await second

    assert with_baidu(baidu, go).text == "好。"


@pytest.mark.parametrize("status", [200, 500])
def test_no_word_of_a_vendor_that_quotes_a_key_is_passed_on(status: int) -> None:
    config = load("openai")
    config["secrets"] = ["second"]
    said = {"choices": [{"delta": {"content": "好"}, "finish_reason": f"stop {CANARY}"}], "id": f"id-{CANARY}"}
    failed = {"error": {"message": f"no {CANARY}", "code": f"c-{CANARY}", "type": CANARY}}
    content = f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n" if status == 200 else json.dumps(failed)

    async def go() -> list[Answer]:
        answers = []
        for headers in ({}, {"X-Request-Id": f"for {CANARY}"}):
            answer = httpx.Response(status, content=content, headers=headers)
            async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _request, a=answer: a)) as client:
                key = Secret(json.dumps({"api_key": "sk-first-012345", "second": CANARY}))
                provider = provider_from_config(config, api_key=key, model="m", client=lambda: client)
                answers.append(await collect(provider, "你好"))
        return answers

    for answer in asyncio.run(go()):
        error = answer.error
        assert (answer.finished is None) == (error is not None) == (status == 500)
        said_of_it = [] if error is None else [error.provider_request_id, error.vendor_code, error.vendor_message]
        assert "canary" not in f"{answer.finished!r} {error!r} {said_of_it}"


def test_who_waited_for_a_token_is_not_told_an_error_of_earlier() -> None:
    baidu = Baidu()
    baidu.token_answer = httpx.Response(503, text="busy")

    async def go(make: Callable[..., DeclarativeProvider]) -> Answer:
        assert type((await collect(make(), "你好")).error) is errors.Unavailable
        baidu.token_answer, baidu.pause = None, 0.1
        first = asyncio.create_task(collect(make(), "你好"))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(collect(make(), "你好"))
        await asyncio.sleep(0.02)
        first.cancel()
        return await second

    answer = with_baidu(baidu, go)
    assert (answer.error, answer.text) == (None, "好。")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(110, errors.Unauthorized), (18, errors.RateLimited), (17, errors.QuotaExceeded), (336003, errors.BadRequest),
     (999, errors.Unavailable)],
)  # fmt: skip
def test_error_numbers_have_the_meaning_that_the_configuration_gives_them(
    code: int, kind: type[errors.ProviderError]
) -> None:
    config = load("ernie")
    del config["auth"]
    for section in ("chat", "whole"):
        config[section]["need_auth"] = False
        config[section]["params"] = []

    async def go() -> Answer:
        answer = httpx.Response(200, json={"error_code": code, "error_msg": "不行"})
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _request: answer)) as client:
            provider = provider_from_config(config, api_key=AK_SK, model="m", client=lambda: client)
            return await collect(provider, "你好")

    assert type(asyncio.run(go()).error) is kind


def test_an_error_rule_may_ask_for_the_http_status() -> None:
    config = load("openai")
    config["chat"]["error"].insert(
        0, {"when": {"name": "__status", "op": "==", "value": 418}, "message": "why", "kind": "content_blocked"}
    )

    async def go() -> Answer:
        answer = httpx.Response(418, json={"why": "茶"})
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _request: answer)) as client:
            provider = provider_from_config(config, api_key=Secret(CANARY), model="m", client=lambda: client)
            return await collect(provider, "你好")

    error = asyncio.run(go()).error
    assert error is not None
    assert (type(error), error.vendor_message) == (errors.ContentBlocked, "茶")


def test_the_secret_and_the_token_are_in_no_repr() -> None:
    baidu = Baidu()

    async def go(make: Callable[..., DeclarativeProvider]) -> str:
        provider = make()
        token = await provider.token()
        return f"{provider!r} {token!r} {provider.prepare_auth()!r} {provider.config!r} {vars(provider)!r}"

    shown = with_baidu(baidu, go)
    assert "canary" not in shown.replace("sk-…cdef", "")


def test_a_configuration_is_not_changed_by_being_used() -> None:
    for name in ("openai", "gemini", "ernie"):
        config = load(name)
        before = copy.deepcopy(config)
        provider_from_config(config, api_key=AK_SK, model="m", client=lambda: httpx.AsyncClient())
        assert config == before


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_who_leaves_closes_the_socket_at_once(fake: FakeProvider, transport: Transport, way: str) -> None:
    def gone() -> bool:
        return int(fake.stats()["closed_by_client_count"]) == 1

    async def go() -> None:
        policy = HttpPolicy(allowed_addresses=frozenset({fake.address}), transport=transport)
        async with new_client(policy) as client:
            provider = provider_from_config(
                load("openai"), api_key=Secret(CANARY), model="m", base_url=fake.base_url, client=lambda: client
            )
            if way == "close":
                stream = provider.stream(ChatRequest((ChatMessage("user", "[[n=1000 rate=20]]"),)))
                async with aclosing(stream):
                    assert isinstance(await anext(stream), Delta)
            else:
                task = asyncio.create_task(collect(provider, "[[fault=stall]]"))
                await asyncio.to_thread(eventually, lambda: fake.stats()["tokens"] == 3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(eventually, gone)

    fake.reset()
    asyncio.run(go())
