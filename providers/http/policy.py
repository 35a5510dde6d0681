"""How this process may talk to providers: the policy, and what both transports share."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cache
from typing import Literal

import certifi

# Extension keys of a request and of a response, next to httpx's own "timeout".
TRUSTED = "providers.trusted_address"  # the operator wrote this address into the environment: no guard
RELEASE = "providers.release"  # call it before aclose() when the reply is over, to keep the connection
POUR = "providers.pour"  # hands the body to a function as it comes, while READ waits: spares a task's wake-up
READ = "providers.read"  # the next bytes of the body, b"" at its end: spares two generators for each read

IDLE_MAX = 256  # kept connections per origin
Origin = tuple[str, str, int, bool]  # scheme, host, port, trusted: what connections are kept by


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """How this process may talk to providers.

    allowed_addresses holds "host:port" and "ip:port" (IPv6 in brackets) that the guard lets through although
    they are not public.
    """

    allowed_addresses: frozenset[str] = frozenset()
    connect_seconds: float = 10.0
    keepalive_seconds: float = 15.0
    transport: Literal["fast", "stock"] = "fast"


def shares(addresses: list[str], timeout: float | None) -> list[tuple[str, float | None]]:
    """Return each address with its share of the connect clock: one black hole must not eat the others' time."""
    share = timeout / len(addresses) if timeout is not None and addresses else None
    return [(address, share) for address in addresses]


@cache
def default_ssl_context() -> ssl.SSLContext:
    """Return this process's verifying TLS context, with the system's authorities and certifi's.

    Slim images have none of their own. Reading them takes 50 ms, so it is done once.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
