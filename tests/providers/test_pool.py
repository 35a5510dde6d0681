"""Choice and health: priority, weight, load, the breaker, and clients that live as long as their configuration."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from providers import errors
from providers.clients.dashscope_app import DashScopeAppProvider
from providers.clients.openai_chat import OpenAIChatProvider
from providers.clients.scripted import ScriptedProvider
from providers.credentials import Secret
from providers.http import HttpPolicy, new_client
from providers.pool import CREDENTIALS_KEPT, FAILURES_TO_OPEN, OPEN_SECONDS, Pool, probe
from providers.registry import EndpointConfig, Grant, Snapshot, stand_in_endpoint
from tests.fakes.provider import FakeProvider, expected_text


class Clock:
    """A clock that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def endpoint(number: int, **fields: Any) -> EndpointConfig:
    """Return an endpoint."""
    kept = {
        "name": f"e{number}",
        "dialect": "openai",
        "model": "m",
        "base_url": "https://api.example.com",
        **fields,
    }
    return EndpointConfig(id=number, **kept)


def names(pool: Pool, *endpoints: EndpointConfig) -> list[str]:
    """Return the order in which a reply would try these."""
    return [e.name for e in pool.attempts(Snapshot(1, endpoints))]


def test_lower_priority_numbers_are_tried_first() -> None:
    assert names(Pool(), endpoint(1, priority=5), endpoint(2, priority=1), endpoint(3, priority=9)) == [
        "e2",
        "e1",
        "e3",
    ]


def test_work_is_shared_by_weight_among_equals() -> None:
    pool = Pool()
    light, heavy = endpoint(1, weight=1), endpoint(2, weight=3)
    chosen = []
    for _ in range(40):
        first = next(pool.attempts(Snapshot(1, (light, heavy))))
        pool.breaker(first).begin()
        chosen.append(first.name)
    assert (chosen.count("e1"), chosen.count("e2")) == (10, 30)


def test_one_that_rests_is_tried_when_no_healthy_one_fits() -> None:
    pool = Pool()
    ill, unfit = endpoint(1, priority=1), endpoint(2, priority=2)
    for _ in range(FAILURES_TO_OPEN):
        pool.breaker(ill).failed(errors.Unavailable())
    assert names(pool, ill, unfit) == ["e2"]
    tried = pool.attempts(Snapshot(1, (ill, unfit)), lambda e: e is not unfit)
    assert [e.name for e in tried] == ["e1"]


def test_failures_in_a_row_open_the_breaker_and_rest_doubles() -> None:
    clock = Clock()
    pool = Pool(clock=clock)
    ill, well = endpoint(1, priority=1), endpoint(2, priority=2)
    breaker = pool.breaker(ill)
    for _ in range(FAILURES_TO_OPEN):
        assert names(pool, ill, well) == ["e1", "e2"]
        breaker.failed(errors.Unavailable())
    assert breaker.state == "open"
    assert names(pool, ill, well) == ["e2"]
    clock.now += OPEN_SECONDS + 0.1
    assert breaker.state == "half-open"
    assert names(pool, ill, well) == ["e1", "e2"]
    breaker.begin()
    assert names(pool, ill, well) == ["e2"], "one probe at a time"
    breaker.failed(errors.TimedOut("first"))
    breaker.end()
    clock.now += OPEN_SECONDS + 0.1
    assert breaker.state == "open", "the second rest is twice as long"
    clock.now += OPEN_SECONDS
    breaker.begin()
    breaker.succeeded()
    breaker.end()
    assert (breaker.state, breaker.failures, breaker.live) == ("closed", 0, 0)


def test_many_that_fail_at_once_make_one_rest() -> None:
    clock = Clock()
    breaker = Pool(clock=clock).breaker(endpoint(1))
    for _ in range(100):
        breaker.begin()
    for _ in range(100):
        breaker.failed(errors.Unavailable())
        breaker.end()
    clock.now += OPEN_SECONDS + 0.1
    assert breaker.state == "half-open"


@pytest.mark.parametrize("error", [None, errors.BadRequest()])
def test_a_probe_that_tells_nothing_makes_room_for_another(error: errors.ProviderError | None) -> None:
    clock = Clock()
    breaker = Pool(clock=clock).breaker(endpoint(1))
    breaker.begin()  # a long reply, from before
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(errors.Unavailable())
    clock.now += OPEN_SECONDS + 0.1
    is_probe = breaker.begin()
    assert not breaker.allows()
    if error is not None:
        breaker.failed(error)
    breaker.end(is_probe=is_probe)
    assert breaker.allows()


def test_an_endpoint_that_was_away_for_a_while_still_counts_the_replies_it_runs() -> None:
    pool = Pool(clock=Clock())
    small = endpoint(1, concurrency_max=1)
    pool.breaker(small).begin()
    pool.forget_missing(Snapshot(2, ()))
    assert names(pool, small) == []


def test_a_probe_that_was_stopped_makes_room_for_the_next_while_older_replies_run() -> None:
    clock = Clock()
    breaker = Pool(clock=clock).breaker(endpoint(1))
    assert breaker.begin() is False  # an older reply, still running
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(errors.Unavailable())
    clock.now += OPEN_SECONDS
    assert breaker.begin() is True
    assert not breaker.allows()
    breaker.end(is_probe=True)  # its reader stopped it: nothing was learned
    assert breaker.allows()


def test_when_all_are_open_they_are_tried_all_the_same() -> None:
    pool = Pool(clock=Clock())
    only = endpoint(1)
    for _ in range(FAILURES_TO_OPEN):
        pool.breaker(only).failed(errors.ConnectFailed())
    assert pool.breaker(only).state == "open"
    assert names(pool, only) == ["e1"]


@pytest.mark.parametrize("error", [errors.BadRequest(), errors.ContentBlocked(), errors.ReplyTooLong()])
def test_a_bad_question_is_not_the_endpoints_fault(error: errors.ProviderError) -> None:
    breaker = Pool(clock=Clock()).breaker(endpoint(1))
    for _ in range(50):
        breaker.failed(error)
    assert breaker.state == "closed"


def test_retry_after_is_honoured_at_once() -> None:
    clock = Clock()
    breaker = Pool(clock=clock).breaker(endpoint(1))
    breaker.failed(errors.RateLimited(retry_after_seconds=7))
    assert breaker.state == "open"
    clock.now += 7.1
    assert breaker.allows()


def test_a_short_retry_after_does_not_cut_a_longer_rest_short() -> None:
    clock = Clock()
    breaker = Pool(clock=clock).breaker(endpoint(1))
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(errors.Unavailable())
    breaker.failed(errors.RateLimited(retry_after_seconds=1))  # of a call that began before
    clock.now += OPEN_SECONDS - 0.1
    assert breaker.state == "open"
    clock.now += 0.2
    assert breaker.state == "half-open"


def test_a_model_that_starts_over_is_not_ill() -> None:
    breaker = Pool(clock=Clock()).breaker(endpoint(1))
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(errors.StartedOver())
    assert breaker.state == "closed"


def test_a_breaker_that_opens_meanwhile_counts() -> None:
    pool = Pool(clock=Clock())
    first, second = endpoint(1, priority=1), endpoint(2, priority=2)
    attempts = pool.attempts(Snapshot(1, (first, second, endpoint(3, priority=3))))
    assert next(attempts).name == "e1"
    pool.breaker(second).failed(errors.RateLimited(retry_after_seconds=60))
    assert next(attempts).name == "e3"


def test_an_endpoint_with_as_many_replies_as_it_may_have_is_left_out() -> None:
    pool = Pool(clock=Clock())
    small, reserve = endpoint(1, priority=1, concurrency_max=2), endpoint(2, priority=2)
    for _ in range(2):
        assert names(pool, small, reserve) == ["e1", "e2"]
        pool.breaker(small).begin()
    assert names(pool, small, reserve) == ["e2"]
    assert names(pool, small) == []
    pool.breaker(small).end()
    assert names(pool, small) == ["e1"]


def test_requests_are_counted_over_any_minute() -> None:
    clock = Clock()
    pool = Pool(clock=clock)
    slow = endpoint(1, requests_per_minute=3)
    for _ in range(3):
        pool.breaker(slow).begin()
        pool.breaker(slow).end()
        clock.now += 10
    assert names(pool, slow) == []
    clock.now += 30.1
    assert names(pool, slow) == ["e1"], "the first call is a minute ago"
    pool.breaker(slow).begin()
    assert names(pool, slow) == []


@pytest.mark.parametrize(("limit", "workers", "share"), [(8, 4, 2), (7, 4, 1), (2, 4, 1), (10, 1, 10)])
def test_workers_share_a_limit_equally_and_have_at_least_one(limit: int, workers: int, share: int) -> None:
    pool = Pool(clock=Clock())
    pool.workers = workers
    shared = endpoint(1, concurrency_max=limit)
    for _ in range(share):
        assert pool.has_room(shared)
        pool.breaker(shared).begin()
    assert not pool.has_room(shared)


def test_an_ill_endpoint_over_its_limit_is_not_tried_even_when_all_are_ill() -> None:
    pool = Pool(clock=Clock())
    only = endpoint(1, concurrency_max=1)
    pool.breaker(only).begin()
    for _ in range(FAILURES_TO_OPEN):
        pool.breaker(only).failed(errors.ConnectFailed())
    assert names(pool, only) == []


def test_a_client_lives_as_long_as_its_configuration() -> None:
    pool = Pool()
    before = endpoint(1)
    provider = pool.provider_for(before)
    assert isinstance(provider, OpenAIChatProvider)
    assert pool.provider_for(replace(before)) is provider
    changed = pool.provider_for(replace(before, model="m-2"))
    assert changed is not provider
    pool.forget_missing(Snapshot(2, ()))
    assert pool.provider_for(before) is not provider


def test_a_scripted_endpoint_plays_the_script_of_its_parameters() -> None:
    scripted = endpoint(1, dialect="scripted", base_url="", params={"script": [{"text": "剧本"}]})
    assert isinstance(Pool().provider_for(scripted), ScriptedProvider)
    result = asyncio.run(probe(scripted))
    assert (result.is_ok, result.sample, result.finish_reason) == (True, "剧本", "stop")


def test_a_probe_says_how_a_real_call_went(fake: FakeProvider) -> None:
    async def go(question: str, seconds: float = 5.0) -> Any:
        async with new_client(HttpPolicy(allowed_addresses=frozenset({fake.address}))) as client:
            return await probe(
                endpoint(1, base_url=fake.base_url),
                client=client,
                question=question,
                seconds=seconds,
            )

    good = asyncio.run(go("[[n=5 ttft=50]]"))
    assert (good.is_ok, good.sample, good.error_code) == (True, expected_text(1, 5), None)
    assert 50 <= good.first_token_ms <= good.latency_ms
    refused = asyncio.run(go("[[fault=401]]"))
    assert (refused.is_ok, refused.error_code) == (False, "unauthorized")
    assert refused.vendor_message == "Fake failure 401: 密钥或请求有误"
    assert "密钥" not in repr(refused)
    assert asyncio.run(go("[[fault=stall after=0]]", 0.3)).error_code == "timed_out_first"
    assert asyncio.run(go("[[fault=empty]]")).error_code == "empty_reply"
    assert len(asyncio.run(go("[[fault=endless]]")).sample) == 200


def test_the_stand_in_answers_a_probe() -> None:
    result = asyncio.run(probe(stand_in_endpoint()))
    assert result.is_ok
    assert "替身" in result.sample


def test_a_pool_without_endpoints_has_no_attempts() -> None:
    assert names(Pool()) == []


def test_the_shared_client_is_made_from_the_settings(settings: Any) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = []

    async def go() -> bool:
        pool = Pool()
        client = pool._client()
        await pool.close()
        return isinstance(client, httpx.AsyncClient) and client.is_closed

    assert asyncio.run(go())


def test_each_dialect_has_its_client() -> None:
    pool = Pool()
    application = pool.provider_for(endpoint(1, dialect="dashscope_app", base_url="", model="app-1"))
    assert isinstance(application, DashScopeAppProvider)
    assert type(pool.provider_for(endpoint(2))) is OpenAIChatProvider


def with_key(config: EndpointConfig, number: int, key: str = "sk-own-0123456789") -> EndpointConfig:
    """Return the endpoint as somebody else calls it."""
    return replace(config, api_key=Secret(f"{key}{number}"), credential=f"site:{number}")


REFUSALS: list[errors.ProviderError] = [
    errors.Unauthorized(),
    errors.QuotaExceeded(),
    errors.RateLimited(),
    errors.RateLimited(retry_after_seconds=60),
    errors.UnknownModel(),
    errors.Misconfigured(code="bad_api_key"),
    errors.MalformedReply(code="no_token"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.code)
def test_a_refused_key_rests_alone(error: errors.ProviderError) -> None:
    pool = Pool(clock=Clock())
    shared = endpoint(1)
    theirs, others = with_key(shared, 7), with_key(shared, 8)
    for _ in range(FAILURES_TO_OPEN):
        pool.breaker(theirs).failed(error)
    assert pool.breaker(theirs).state == "open"
    assert {pool.breaker(e).state for e in (shared, others)} == {"closed"}


def test_the_endpoints_own_key_rests_alone_too() -> None:
    pool = Pool(clock=Clock())
    shared = endpoint(1)
    for _ in range(FAILURES_TO_OPEN):
        pool.breaker(shared).failed(errors.Unauthorized())
    assert (pool.breaker(shared).state, pool.breaker(with_key(shared, 7)).state) == ("open", "closed")


def test_an_outage_is_everybodys_and_so_is_its_end() -> None:
    clock = Clock()
    pool = Pool(clock=clock)
    shared = endpoint(1)
    callers = [shared, with_key(shared, 7), with_key(shared, 8)]
    for number in range(FAILURES_TO_OPEN):
        pool.breaker(callers[number % 3]).failed(errors.Unavailable())
    assert [pool.breaker(e).state for e in callers] == ["open"] * 3
    clock.now += OPEN_SECONDS + 0.1
    with pool.breaker(callers[1]).call():
        assert not pool.breaker(callers[2]).allows(), "one probe at a time, whoever it is"
        pool.breaker(callers[1]).succeeded()
    assert [pool.breaker(e).state for e in callers] == ["closed"] * 3


def test_a_probe_with_a_wrong_key_tells_nothing_of_the_line() -> None:
    clock = Clock()
    pool = Pool(clock=clock)
    shared = endpoint(1)
    for _ in range(FAILURES_TO_OPEN):
        pool.breaker(shared).failed(errors.Unavailable())
    clock.now += OPEN_SECONDS + 0.1
    with pool.breaker(with_key(shared, 7)).call():
        pool.breaker(with_key(shared, 7)).failed(errors.Unauthorized())
    assert (pool.breaker(shared).state, pool.breaker(shared).allows()) == ("half-open", True)


def test_all_keys_count_against_the_limits_of_the_endpoint() -> None:
    pool = Pool(clock=Clock())
    shared = endpoint(1, concurrency_max=2, requests_per_minute=3)
    pool.breaker(shared).begin()
    pool.breaker(with_key(shared, 7)).begin()
    assert names(pool, with_key(shared, 8)) == []
    pool.breaker(shared).end()
    assert names(pool, with_key(shared, 8)) == ["e1"]
    pool.breaker(with_key(shared, 8)).begin()
    pool.breaker(with_key(shared, 8)).end()
    assert names(pool, shared) == [], "three requests in this minute"


def test_a_new_key_does_not_wait_for_the_rest_of_the_old_one() -> None:
    pool = Pool(clock=Clock())
    wrong, right = with_key(endpoint(1), 7, "sk-wrong-"), with_key(endpoint(1), 7, "sk-right-")
    for _ in range(FAILURES_TO_OPEN):
        pool.breaker(wrong).failed(errors.Unauthorized())
    assert pool.breaker(replace(wrong, api_key=Secret("sk-wrong-7"))).state == "open", "decrypted anew"
    assert pool.breaker(right).state == "closed"


def test_each_key_has_its_client_and_only_those_in_use_are_kept() -> None:
    pool = Pool(clock=Clock())
    shared = endpoint(1)
    first = pool.provider_for(with_key(shared, 0))
    assert first is not pool.provider_for(shared)
    assert pool.provider_for(with_key(shared, 0)) is first
    for number in range(CREDENTIALS_KEPT):
        pool.provider_for(with_key(shared, number))
        pool.breaker(with_key(shared, number))
    assert (len(pool._providers), len(pool._keys), len(pool._lines)) == (CREDENTIALS_KEPT, CREDENTIALS_KEPT, 1)


def test_keys_that_no_snapshot_knows_are_forgotten() -> None:
    pool = Pool(clock=Clock())
    shared = endpoint(1)
    kept, taken = with_key(shared, 7), with_key(shared, 8)
    clients = [pool.provider_for(e) for e in (shared, kept, taken)]
    pool.breaker(taken)
    pool.forget_missing(Snapshot(2, (shared,), {7: {1: Grant(kept.credential, kept.api_key)}}))
    assert [pool.provider_for(e) is c for e, c in zip((shared, kept, taken), clients, strict=True)] == [
        True,
        True,
        False,
    ]
    pool.forget_missing(Snapshot(3, ()))
    assert (len(pool._providers), len(pool._keys)) == (0, 0)
