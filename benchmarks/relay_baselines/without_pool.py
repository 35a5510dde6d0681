"""What pool and ledger cost: the product with one endpoint, one client, and no row of the ledger.

Only for measuring (benchmarks/pool_cost.py). Everything else is the product's own, log and seal too; what is left
out is named here, and a name that is not there any more stops the start instead of measuring nothing.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")

from chatsite.asgi import application as product
from conversations.generation import actions, ledger, store
from conversations.generation import engine as engines
from providers import pool as pools
from providers.base import ChatProvider
from providers.errors import ProviderError
from providers.pool import Breaker, Pool
from providers.registry import EndpointConfig, Snapshot

NOTHING_COUNTED = {"input_tokens": 0, "output_tokens": 0, "cost_micros": None}


def without(statement: str, *names: str) -> str:
    """Return the statement without these parts of its WITH.

    Raises: LookupError for a part that is not there.
    """
    for name in names:
        part = rf"\n +{name} AS \(.*?\),(?=\n +\w+ AS \()"
        statement, found = re.subn(part, "", statement, flags=re.DOTALL)
        if found != 1:
            raise LookupError(f"{name}: {found} times in {statement}")
    return statement


class NoBreaker(Breaker):
    """Counts no call and judges nothing."""

    def call(self) -> AbstractContextManager[None]:
        """Let the call through."""
        return nullcontext()

    def succeeded(self) -> None:
        """Learn nothing."""

    def failed(self, error: ProviderError) -> None:
        """Learn nothing."""


class OneEndpoint(Pool):
    """Always the first endpoint, with one client and no health, limits, budget or choice."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._health = NoBreaker()
        self._only: ChatProvider | None = None

    def count_reply(self) -> None:
        """Count nothing."""

    def attempts(self, snapshot: Snapshot, *more: Any, **named: Any) -> Iterator[EndpointConfig]:
        """Return the first endpoint alone."""
        return iter(snapshot.endpoints[:1])

    def breaker(self, endpoint: EndpointConfig, *more: Any, **named: Any) -> Breaker:
        """Return the health that is none."""
        return self._health

    def provider_for(self, endpoint: EndpointConfig, *more: Any, **named: Any) -> ChatProvider:
        """Return the only client."""
        if self._only is None:
            self._only = super().provider_for(endpoint, *more, **named)
        return self._only


def worker_alone(run: Any) -> dict[str, Any]:
    """Return what the seal needs even without a ledger."""
    return {"worker": run.worker_id}


def replace(owner: Any, name: str, other: Any) -> None:
    """Put something else in the place of a name that has to be there."""
    getattr(owner, name)
    setattr(owner, name, other)


replace(pools, "Pool", OneEndpoint)
replace(ledger, "ledger_values", worker_alone)
replace(ledger, "estimated_cost", lambda run: NOTHING_COUNTED)
replace(engines.Engine, "_live_endpoints", lambda engine: {})
replace(actions, "_SEND", without(actions._SEND, "ledger"))
replace(store, "SEAL", without(store.SEAL, "used", "ledger"))


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve the product, if its engine is made as expected."""
    if scope["type"] == "lifespan" and not isinstance(engines.engine()._pool, OneEndpoint):
        raise LookupError("the engine's pool")
    await product(scope, receive, send)
