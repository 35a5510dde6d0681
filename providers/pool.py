"""Which endpoint answers: choice by priority, weight and load, a circuit breaker each, clients, a test call.

State is this process's own: each worker finds out for itself whether an endpoint is ill.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import httpx

from providers import errors
from providers.base import ChatProvider
from providers.clients.dashscope_app import DashScopeAppProvider
from providers.clients.declarative.client import provider_from_config
from providers.clients.declarative.stored import check_stored
from providers.clients.openai_chat import OpenAIChatProvider
from providers.clients.scripted import ScriptedProvider
from providers.credentials import Secret
from providers.http import close_shared_clients, new_client, shared_client
from providers.registry import EndpointConfig, Snapshot, policy_from_settings
from providers.types import ChatMessage, ChatRequest, Delta, Finished, Usage

logger = logging.getLogger(__name__)

FAILURES_TO_OPEN = 5
OPEN_SECONDS = 15.0
OPEN_MAX_SECONDS = 240.0
_REST_MAX_SECONDS = 300.0
RETRY_PAUSE_SECONDS = 0.3
RETRY_AFTER_MAX_SECONDS = 3.0
RETRY_BUDGET = 10.0
RETRY_EARNED = 0.1
CREDENTIALS_KEPT = 1024
# What says nothing about the endpoint's health: the question or its answer was at fault.
_NOT_ITS_FAULT = (errors.BadRequest, errors.ContentBlocked, errors.StartedOver, errors.ReplyTooLong)


# Who is told no, or cannot ask, may hold the wrong key or an empty account: others may fare better.
_ABOUT_THE_KEY = (errors.Refused, errors.Misconfigured)


@dataclass(slots=True)
class Breaker:
    """The health of one endpoint, or of one key there, as this process sees it.

    Closed: calls go through. After FAILURES_TO_OPEN failures in a row it opens: the endpoint is left alone
    for a while, twice as long each time. Then one call may probe (half-open): success closes it, failure opens it.
    """

    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    live: int = 0
    rest_seconds: float = 0.0
    open_until: float = 0.0
    is_probing: bool = False
    calls: deque[float] = field(default_factory=deque, repr=False)

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        if self.open_until == 0.0:
            return "closed"
        return "open" if self.clock() < self.open_until else "half-open"

    def allows(self) -> bool:
        """Return whether a call may go through now."""
        state = self.state
        return state == "closed" or (state == "half-open" and not self.is_probing)

    def begin(self) -> bool:
        """Count a call in; return whether it is the probe."""
        self.live += 1
        self.calls.append(self.clock())
        self.calls_in_a_minute()
        is_probe = self.state == "half-open" and not self.is_probing
        self.is_probing = self.is_probing or is_probe
        return is_probe

    def calls_in_a_minute(self) -> int:
        """Return how many calls began within the last minute."""
        oldest = self.clock() - 60.0
        while self.calls and self.calls[0] <= oldest:
            self.calls.popleft()
        return len(self.calls)

    def end(self, *, is_probe: bool = False) -> None:
        """Count a call out, whatever came of it: a probe that told nothing makes room for another."""
        self.live = max(0, self.live - 1)
        if is_probe or self.live == 0:
            self.is_probing = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call in, and out at the end. Entered before anything is awaited: others choose meanwhile."""
        is_probe = self.begin()
        try:
            yield
        finally:
            self.end(is_probe=is_probe)

    def succeeded(self) -> None:
        """The endpoint gave a token or a whole reply."""
        self.failures = 0
        self.rest_seconds = self.open_until = 0.0
        self.is_probing = False

    def failed(self, error: errors.ProviderError) -> None:
        """The endpoint failed before it gave anything."""
        if isinstance(error, _NOT_ITS_FAULT):
            return
        self.failures += 1
        now = self.clock()
        if isinstance(error, errors.RateLimited) and error.retry_after_seconds:
            # It is well and wants to be left alone: nothing is learned by trying sooner.
            # A longer rest that has begun is not cut short by it.
            self.open_until = max(self.open_until, now + min(error.retry_after_seconds, _REST_MAX_SECONDS))
            self.is_probing = False
        elif self.is_probing or (self.failures >= FAILURES_TO_OPEN and self.state != "open"):
            # Not again while it rests: what fails then had begun before, and is the same outage.
            self.rest_seconds = min(max(self.rest_seconds * 2, OPEN_SECONDS), OPEN_MAX_SECONDS)
            self.open_until = now + self.rest_seconds
            self.is_probing = False


@dataclass(frozen=True, slots=True)
class Health:
    """What a call depends on: the line to the endpoint, for whoever calls, and the key that it is called with.

    An outage rests the line, for all. A refusal rests the key: nobody pays for another's wrong or empty one.
    """

    line: Breaker
    key: Breaker

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`: the worse of the two."""
        return max(self.line.state, self.key.state, key=("closed", "half-open", "open").index)

    @property
    def live(self) -> int:
        """How many calls are under way at the endpoint, with whatever key."""
        return self.line.live

    @property
    def failures(self) -> int:
        """How many failures in a row there were."""
        return self.line.failures + self.key.failures

    def allows(self) -> bool:
        """Return whether a call may go through now."""
        return self.line.allows() and self.key.allows()

    def begin(self) -> bool:
        """Count a call in; return whether it is a probe."""
        probes = [self.line.begin(), self.key.begin()]
        return any(probes)

    def end(self, *, is_probe: bool = False) -> None:
        """Count a call out, whatever came of it."""
        self.line.end(is_probe=is_probe)
        self.key.end(is_probe=is_probe)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call in, and out at the end. Entered before anything is awaited: others choose meanwhile."""
        with self.line.call(), self.key.call():
            yield

    def succeeded(self) -> None:
        """The endpoint gave a token or a whole reply."""
        self.line.succeeded()
        self.key.succeeded()

    def failed(self, error: errors.ProviderError) -> None:
        """The endpoint failed before it gave anything."""
        is_about_the_key = isinstance(error, _ABOUT_THE_KEY) or error.code == "no_token"
        (self.key if is_about_the_key else self.line).failed(error)


class Pool:
    """Chooses endpoints and keeps their clients. One per process; used on one event loop, without locks."""

    def __init__(
        self,
        *,
        client: Callable[[], httpx.AsyncClient] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client or (lambda: shared_client(policy_from_settings()))
        self._clock = clock
        self._lines: dict[str, Breaker] = {}
        # By endpoint and credential, the latest last: keys of people are many, and only those in use are kept.
        self._keys: OrderedDict[tuple[str, str], tuple[Secret | None, Breaker]] = OrderedDict()
        self._providers: OrderedDict[tuple[str, str], tuple[EndpointConfig, ChatProvider]] = OrderedDict()
        self._budget = RETRY_BUDGET
        self.workers = 1
        """How many workers share the limits of the endpoints, as the last heartbeat said."""

    def has_room(self, endpoint: EndpointConfig) -> bool:
        """Return whether this worker's share of the endpoint's limits allows one more call now.

        Shares are equal, and at least one call: a limit below the number of workers is not kept exactly.
        """
        line = self._line(endpoint)
        at_once, per_minute = endpoint.concurrency_max, endpoint.requests_per_minute
        if at_once is not None and line.live >= max(1, at_once // self.workers):
            return False
        return per_minute is None or line.calls_in_a_minute() < max(1, per_minute // self.workers)

    def count_reply(self) -> None:
        """Count a reply that is asked for: ten of them earn one retry."""
        self._budget = min(RETRY_BUDGET, self._budget + RETRY_EARNED)

    def pause_before_retry(self, error: errors.ProviderError) -> float | None:
        """Return how many seconds to wait before the one retry of a reply that has no token yet; None: do not.

        Spends from a budget, so that a brown-out is not made worse by everybody trying twice. Who waited for
        a clock to run out has waited long enough.
        """
        if not error.retryable or isinstance(error, errors.TimedOut) or self._budget < 1:
            return None
        pause = error.retry_after_seconds if error.retry_after_seconds is not None else RETRY_PAUSE_SECONDS
        if pause > RETRY_AFTER_MAX_SECONDS:
            return None
        self._budget -= 1
        return pause

    def attempts(
        self, snapshot: Snapshot, fits: Callable[[EndpointConfig], bool] = lambda endpoint: True
    ) -> Iterator[EndpointConfig]:
        """Yield the endpoints to try that fit, best first: by priority, then the least loaded for its weight.

        Endpoints whose breaker is open come only when all are open: better a call that may fail than a
        certain failure. Those over their limits do not come at all. Evaluated lazily: a breaker that opens
        meanwhile counts.
        """
        tried: set[str] = set()
        for only_healthy in (True, False):
            if not only_healthy and tried:
                return
            while True:
                candidates = [
                    endpoint
                    for endpoint in snapshot.endpoints
                    if endpoint.key not in tried
                    and fits(endpoint)
                    and (not only_healthy or self.breaker(endpoint).allows())
                    and self.has_room(endpoint)
                ]
                if not candidates:
                    break
                best = min(candidates, key=self._rank)
                tried.add(best.key)
                yield best

    def provider_for(self, endpoint: EndpointConfig) -> ChatProvider:
        """Return the client of this endpoint, made once per configuration."""
        place = endpoint.key_and_credential
        kept = self._providers.get(place)
        if kept is None or kept[0] != endpoint:
            kept = self._providers[place] = (endpoint, self._new_provider(endpoint))
        self._providers.move_to_end(place)
        while len(self._providers) > CREDENTIALS_KEPT:
            self._providers.popitem(last=False)  # Who is using it holds it.
        return kept[1]

    def breaker(self, endpoint: EndpointConfig) -> Health:
        """Return the health of this endpoint with its key; the caller reports: begin, succeeded or failed, end."""
        place = endpoint.key_and_credential
        kept = self._keys.get(place)
        if kept is None or not (kept[0] is endpoint.api_key or kept[0] == endpoint.api_key):
            # Another key than before begins anew: it was changed because the old one was refused, perhaps.
            kept = self._keys[place] = (endpoint.api_key, Breaker(self._clock))
        self._keys.move_to_end(place)
        while len(self._keys) > CREDENTIALS_KEPT:
            self._keys.popitem(last=False)  # Calls under way report to what they hold.
        return Health(self._line(endpoint), kept[1])

    def _rank(self, endpoint: EndpointConfig) -> tuple[int, float, int]:
        health = self.breaker(endpoint)
        return (endpoint.priority, (health.live + 1) / endpoint.weight, health.failures)

    def _line(self, endpoint: EndpointConfig) -> Breaker:
        line = self._lines.get(endpoint.key)
        if line is None:
            line = self._lines[endpoint.key] = Breaker(self._clock)
        return line

    def forget_missing(self, snapshot: Snapshot) -> None:
        """Drop clients and breakers of endpoints and keys that are gone; running replies keep what they hold.

        A line with replies under way stays: should the endpoint come back, they count against its limit.
        Keys that no snapshot knows, those of people, are dropped each time: they come with the next reply.
        """
        keys = {endpoint.key: {""} for endpoint in snapshot.endpoints}
        for grants in snapshot.grants.values():
            for endpoint_id, grant in grants.items():
                keys.get(f"row:{endpoint_id}", set()).add(grant.credential)

        def is_there(place: tuple[str, str]) -> bool:
            return place[1] in keys.get(place[0], ())

        for places in (self._providers, self._keys):
            for place in [place for place in places if not is_there(place)]:
                del places[place]
        self._lines = {key: line for key, line in self._lines.items() if key in keys or line.live}

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        await close_shared_clients()

    def _new_provider(self, endpoint: EndpointConfig) -> ChatProvider:
        if endpoint.dialect == "scripted":
            script = endpoint.params.get("script")
            step = endpoint.params.get("step_seconds", 0.03)
            return ScriptedProvider(script if isinstance(script, list) else None, step_seconds=float(step))
        if endpoint.dialect == "declarative":
            stored = check_stored(endpoint.config)
            return provider_from_config(
                stored.config,
                **stored.options(),
                api_key=endpoint.api_key,
                model=endpoint.model,
                base_url=endpoint.base_url,
                params=endpoint.params,
                clocks=endpoint.clocks,
                is_trusted_address=endpoint.is_trusted_address,
                client=self._client,
            )
        client = DashScopeAppProvider if endpoint.dialect == "dashscope_app" else OpenAIChatProvider
        return client(
            base_url=endpoint.base_url,
            model=endpoint.model,
            api_key=endpoint.api_key,
            params=endpoint.params,
            clocks=endpoint.clocks,
            is_trusted_address=endpoint.is_trusted_address,
            client=self._client,
        )


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a test call to one endpoint found; sample and vendor_message are for staff only, and hold no key."""

    is_ok: bool
    latency_ms: int
    first_token_ms: int | None = None
    sample: str = field(default="", repr=False)
    finish_reason: str | None = None
    usage: Usage | None = None
    error_code: str | None = None
    vendor_message: str | None = field(default=None, repr=False)


async def probe(
    endpoint: EndpointConfig,
    *,
    client: httpx.AsyncClient | None = None,
    question: str = "请只回答两个字：你好",
    seconds: float = 30.0,
    sample_chars: int = 200,
) -> ProbeResult:
    """Return how a small streamed call to this endpoint went; never raises for what the endpoint does.

    Without a client it makes one of its own for the call: a probe may run on any event loop.
    """
    if client is None:
        async with new_client(policy_from_settings()) as own:
            return await probe(endpoint, client=own, question=question, seconds=seconds, sample_chars=sample_chars)
    began = time.monotonic()
    first: float | None = None
    pieces: list[str] = []
    finished: Finished | None = None
    error: errors.ProviderError | None = None

    def since(moment: float) -> int:
        return round((moment - began) * 1000)

    try:
        async with asyncio.timeout(seconds):
            provider = Pool(client=lambda: client).provider_for(endpoint)
            stream = provider.stream(ChatRequest((ChatMessage("user", question),)))
            async with aclosing(stream):
                async for item in stream:
                    if isinstance(item, Delta):
                        first = first or time.monotonic()
                        pieces.append(item.text or item.reasoning)
                        if sum(map(len, pieces)) >= sample_chars:
                            break
                    else:
                        finished = item
    except TimeoutError:
        error = errors.TimedOut("total" if first else "first")
    except errors.ProviderError as failure:
        error = failure
    return ProbeResult(
        is_ok=error is None and first is not None,
        latency_ms=since(time.monotonic()),
        first_token_ms=None if first is None else since(first),
        sample=_without_key("".join(pieces), endpoint)[:sample_chars],
        finish_reason=finished.finish_reason if finished else None,
        usage=finished.usage if finished else None,
        error_code=error.code if error else (None if first else "empty_reply"),
        vendor_message=_without_key(error.vendor_message, endpoint) if error and error.vendor_message else None,
    )


def _without_key(text: str, endpoint: EndpointConfig) -> str:
    """Return what a provider said with our key masked: some quote it when they refuse it."""
    key = endpoint.api_key.reveal() if endpoint.api_key else ""
    return text.replace(key, str(endpoint.api_key)) if key else text
