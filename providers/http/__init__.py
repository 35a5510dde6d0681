"""The shared HTTP client: which addresses it may reach, and how bytes come in.

Two transports behind httpx's interface, chosen by `HttpPolicy.transport`: "fast" is ours, "stock" is httpx's own.
Both resolve a name once, refuse addresses that are not public, and connect to the very address that was
checked. Neither follows redirects or reads the environment's proxies. Clocks beyond connecting belong to the
clients.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import logging
import weakref

import httpx

from providers.http.addresses import check_addresses, is_public, resolve
from providers.http.fast import FastTransport
from providers.http.policy import POUR, READ, RELEASE, TRUSTED, HttpPolicy
from providers.http.stock import StockTransport

__all__ = [
    "POUR",
    "READ",
    "RELEASE",
    "TRUSTED",
    "FastTransport",
    "HttpPolicy",
    "StockTransport",
    "check_addresses",
    "close_shared_clients",
    "forget_exchange",
    "is_public",
    "new_client",
    "resolve",
    "shared_client",
]


def new_client(policy: HttpPolicy, *, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """Return a client that follows the policy; transport replaces the policy's own (tests)."""
    for name in ("httpx", "httpcore"):  # at INFO they log URLs
        logging.getLogger(name).setLevel(logging.WARNING)
    if transport is None:
        transport = FastTransport(policy) if policy.transport == "fast" else StockTransport(policy)
    client = httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=policy.connect_seconds),
        headers={"User-Agent": "chatsite", "Accept-Encoding": "identity"},
    )
    # One client serves all endpoints: a cookie set by one must never reach another.
    client.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return client


_SENT = httpx.Request("POST", "http://sent.invalid")
_READ = httpx.Headers()


def forget_exchange(response: httpx.Response) -> None:
    """Let the body of a response come without its heads: whoever calls this has read what it needs of them.

    httpx keeps both to the end of the body, the request with its own body: a whole prompt.
    """
    response.request = _SENT
    response.headers = _READ


_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[HttpPolicy, httpx.AsyncClient]] = (
    weakref.WeakKeyDictionary()
)


def shared_client(policy: HttpPolicy) -> httpx.AsyncClient:
    """Return the one client of the running event loop for this policy."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    client = clients.get(policy)
    if client is None or client.is_closed:
        client = clients[policy] = new_client(policy)
    return client


async def close_shared_clients() -> None:
    """Close the clients of the running event loop; the last thing a process does with its loop."""
    for client in _clients.pop(asyncio.get_running_loop(), {}).values():
        await client.aclose()
