"""Every fault of a provider, over a real socket and both transports: exact text, one end, the right name."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from providers import errors
from providers.base import Clocks
from providers.clients.openai_chat import OpenAIChatProvider
from providers.http import HttpPolicy, new_client
from providers.types import ChatMessage, ChatRequest, Delta, outcome_of
from tests.fakes.provider import CONTROL_TOKENS, NUL_TEXT, FakeProvider, big_text, expected_text
from tests.providers.conftest import Answer, Transport, collect

Ask = Callable[..., Answer]

WHOLE = expected_text(1, 8)
PARTIAL = expected_text(1, 3)

COMPLETE = {
    "[[n=8]]": WHOLE,
    "[[n=8 te=close]]": WHOLE,
    "[[fault=slow n=4 rate=40]]": expected_text(1, 4),
    "[[fault=nofinish]]": WHOLE,
    "[[fault=garbage]]": WHOLE,
    "[[fault=invalid_utf8]]": PARTIAL + "b\ufffdd" + WHOLE[len(PARTIAL) :],
    "[[fault=split_utf8 n=40]]": expected_text(1, 40),
    "[[fault=crlf]]": WHOLE,
    "[[fault=cr]]": WHOLE,
    "[[fault=bigline]]": PARTIAL + big_text(5_000_000) + WHOLE[len(PARTIAL) :],
    "[[fault=gzip n=40]]": expected_text(1, 40),
    "[[fault=empty]]": "",
    "[[fault=control]]": "".join(CONTROL_TOKENS),
    "[[fault=nul]]": NUL_TEXT,
    "[[fault=json]]": WHOLE,
    "[[fault=reasoning]]": WHOLE,
    "[[fault=toolcall]]": "",
}

BROKEN: dict[str, tuple[str, type[errors.ProviderError], str]] = {
    "[[fault=reset]]": (PARTIAL, errors.StreamCut, "connection_lost"),
    "[[fault=cut]]": (PARTIAL, errors.StreamCut, "connection_lost"),
    "[[fault=halfclose]]": (PARTIAL, errors.StreamCut, "stream_cut"),
    "[[fault=halfclose after=0]]": ("", errors.MalformedReply, "not_a_reply"),
    "[[fault=hangup]]": ("", errors.ConnectFailed, "no_answer"),
    "[[fault=nonhttp]]": ("", errors.ConnectFailed, "no_answer"),
    "[[fault=400]]": ("", errors.BadRequest, "bad_request"),
    "[[fault=401]]": ("", errors.Unauthorized, "unauthorized"),
    "[[fault=402]]": ("", errors.QuotaExceeded, "quota_exceeded"),
    "[[fault=403]]": ("", errors.Unauthorized, "unauthorized"),
    "[[fault=404]]": ("", errors.UnknownModel, "unknown_model"),
    "[[fault=422]]": ("", errors.BadRequest, "bad_request"),
    "[[fault=429]]": ("", errors.RateLimited, "rate_limited"),
    "[[fault=500]]": ("", errors.Unavailable, "unavailable"),
    "[[fault=503]]": ("", errors.Unavailable, "unavailable"),
    "[[fault=quota]]": ("", errors.QuotaExceeded, "quota_exceeded"),
    "[[fault=blocked]]": ("", errors.ContentBlocked, "content_blocked"),
    "[[fault=error]]": (PARTIAL, errors.Unavailable, "unavailable"),
    "[[fault=error code=data_inspection_failed]]": (PARTIAL, errors.ContentBlocked, "content_blocked"),
    "[[fault=errorstring]]": (PARTIAL, errors.Unavailable, "unavailable"),
    "[[fault=noise]]": ("", errors.MalformedReply, "not_a_reply"),
    "[[fault=gzipbomb]]": ("", errors.ReplyTooLong, "line_too_long"),
    "[[fault=redirect]]": ("", errors.MalformedReply, "redirect_refused"),
    "[[fault=nothing]]": ("", errors.MalformedReply, "not_a_reply"),
    "[[fault=html]]": ("", errors.MalformedReply, "html_answer"),
    "[[fault=jsonerror]]": ("", errors.QuotaExceeded, "quota_exceeded"),
}


@pytest.mark.parametrize("question", COMPLETE)
def test_an_odd_but_whole_reply_arrives_exactly(ask: Ask, question: str) -> None:
    answer = ask(question)
    assert answer.error is None
    assert answer.text == COMPLETE[question]
    assert answer.finished is not None
    assert outcome_of(answer.finished.finish_reason) == "complete"


@pytest.mark.parametrize("question", BROKEN)
def test_a_broken_reply_keeps_its_text_and_ends_with_its_name(ask: Ask, question: str) -> None:
    text, kind, code = BROKEN[question]
    answer = ask(question)
    assert answer.text == text
    assert (type(answer.error), answer.error and answer.error.code) == (kind, code)


@pytest.mark.parametrize("fault", ["length", "content_filter"])
def test_a_cut_answer_is_complete_for_us_and_truncated_for_the_reader(ask: Ask, fault: str) -> None:
    answer = ask(f"[[fault={fault} n=3]]")
    assert answer.text == PARTIAL
    assert answer.finished is not None
    assert answer.finished.finish_reason == fault
    assert outcome_of(answer.finished.finish_reason) == "truncated"


def test_a_line_over_the_limit_is_refused_and_what_came_before_stays(ask: Ask) -> None:
    answer = ask("[[fault=bigline]]", line_max_bytes=1_000_000)
    assert answer.text == PARTIAL
    assert isinstance(answer.error, errors.ReplyTooLong)


def test_garbage_between_events_is_counted(ask: Ask) -> None:
    answer = ask("[[fault=garbage]]")
    assert answer.finished is not None
    assert answer.finished.malformed_events == 3


def test_reasoning_stays_apart(ask: Ask) -> None:
    answer = ask("[[fault=reasoning]]")
    assert (answer.reasoning, answer.text) == ("想一想…好了", WHOLE)


def test_a_tool_call_is_put_together(ask: Ask) -> None:
    finished = ask("[[fault=toolcall]]").finished
    assert finished is not None
    assert finished.finish_reason == "tool_calls"
    assert [(c.id, c.name, c.arguments) for c in finished.tool_calls] == [("call_1", "查天气", '{"city":"北京"}')]


def test_usage_and_the_request_id_come_with_the_end(ask: Ask) -> None:
    finished = ask("[[n=8]]").finished
    assert finished is not None and finished.usage is not None
    assert (finished.usage.input_tokens, finished.usage.output_tokens, finished.usage.is_estimated) == (
        10,
        8,
        False,
    )
    assert finished.request_id == "req-fake-1"


def test_retry_after_is_passed_on(ask: Ask) -> None:
    error = ask("[[fault=429 retry_after=7]]").error
    assert error is not None
    assert (error.retryable, error.retry_after_seconds) == (True, 7.0)


@pytest.mark.parametrize("fault", ["stall", "keepalive", "drip"])
def test_the_idle_clock_is_re_armed_by_data_alone(ask: Ask, fault: str) -> None:
    answer = ask(f"[[fault={fault}]]", idle_seconds=0.4)
    assert answer.text == PARTIAL
    assert isinstance(answer.error, errors.TimedOut)
    assert answer.error.phase == "idle"
    assert 0.35 < answer.seconds < 10


@pytest.mark.parametrize("fault", ["stall", "keepalive", "drip"])
def test_the_first_clock_runs_until_there_is_data(ask: Ask, fault: str) -> None:
    answer = ask(f"[[fault={fault} after=0]]", first_payload_seconds=0.4)
    assert answer.text == ""
    assert isinstance(answer.error, errors.TimedOut)
    assert answer.error.phase == "first"


def test_the_first_clock_covers_the_head_of_the_answer_too(ask: Ask) -> None:
    answer = ask("[[head=5000]]", first_payload_seconds=0.3)
    assert isinstance(answer.error, errors.TimedOut)
    assert answer.error.phase == "first"
    assert answer.seconds < 4


def test_the_total_clock_ends_an_endless_reply(ask: Ask) -> None:
    answer = ask("[[fault=endless rate=100]]", total_seconds=0.5)
    assert isinstance(answer.error, errors.TimedOut)
    assert answer.error.phase == "total"
    assert len(answer.text) > 30
    assert expected_text(1, 200).startswith(answer.text)


def test_a_short_idle_clock_does_not_end_a_long_slow_reply(ask: Ask) -> None:
    answer = ask("[[n=12 rate=6]]", idle_seconds=1.0, first_payload_seconds=1.0)
    assert answer.error is None
    assert answer.text == expected_text(1, 12)


def test_a_consumer_that_takes_its_time_does_not_run_the_idle_clock(
    fake: FakeProvider, transport: Transport
) -> None:
    async def go() -> str:
        policy = HttpPolicy(allowed_addresses=frozenset({fake.address}), transport=transport)
        async with new_client(policy) as client:
            provider = OpenAIChatProvider(
                base_url=fake.base_url, model="m", clocks=Clocks(idle_seconds=0.3), client=lambda: client
            )
            text = ""
            async for item in provider.stream(ChatRequest((ChatMessage("user", "[[n=6 rate=20]]"),))):
                if isinstance(item, Delta):
                    await asyncio.sleep(0.4)
                    text += item.text
            return text

    assert asyncio.run(go()) == expected_text(1, 6)


def test_the_total_clock_runs_while_the_consumer_takes_its_time(fake: FakeProvider, transport: Transport) -> None:
    async def go() -> None:
        policy = HttpPolicy(allowed_addresses=frozenset({fake.address}), transport=transport)
        async with new_client(policy) as client:
            provider = OpenAIChatProvider(
                base_url=fake.base_url, model="m", clocks=Clocks(total_seconds=1.5), client=lambda: client
            )
            stream = provider.stream(ChatRequest((ChatMessage("user", "[[n=50 rate=20]]"),)))
            await anext(stream)
            await asyncio.sleep(1.7)
            with pytest.raises(errors.TimedOut) as caught:
                await anext(stream)
            assert caught.value.phase == "total"

    asyncio.run(go())


def test_nobody_at_the_door_is_a_failed_connection(fake: FakeProvider, transport: Transport) -> None:
    with socket.socket() as reserved:  # bound and not listening: refused
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"

        async def go() -> Answer:
            policy = HttpPolicy(allowed_addresses=frozenset({address}), transport=transport)
            async with new_client(policy) as client:
                return await collect(
                    OpenAIChatProvider(base_url=f"http://{address}", model="m", client=lambda: client), "在吗"
                )

        answer = asyncio.run(go())
    assert isinstance(answer.error, errors.ConnectFailed)
    assert answer.error.retryable
