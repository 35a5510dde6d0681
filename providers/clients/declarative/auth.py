"""The auth step: a token fetched before the first request, kept, and fetched again when it is refused.

Tokens are kept per configuration and credential, in this process only, never written down, and shown by nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from providers import errors
from providers.clients.declarative.conditions import STATUS
from providers.clients.declarative.failures import named
from providers.clients.declarative.pick import pick
from providers.clients.declarative.reducer import error_in
from providers.clients.declarative.schema import AuthStep
from providers.clients.failures import vendor_error
from providers.credentials import Secret

_ENTRIES_MAX = 1000
_SECONDS_MAX = 365 * 86400.0


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """What the auth step gave; good_until is on the event loop's clock, None when the vendor named no end."""

    values: Mapping[str, Secret] = field(repr=False)
    good_until: float | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    token: Token | None = None
    error: errors.ProviderError | None = None
    attempts: int = 0


class TokenCache:
    """Tokens by configuration and credential; one fetch at a time for each, whose result all waiters get."""

    def __init__(self) -> None:
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Entry]] = (
            weakref.WeakKeyDictionary()
        )

    async def get(self, key: str, fetch: Callable[[], Awaitable[Token]], *, stale: Token | None = None) -> Token:
        """Return a good token, fetched if need be; stale was just refused. Raises what fetch raises."""
        loop = asyncio.get_running_loop()
        entries = self._loops.setdefault(loop, {})
        entry = entries.pop(key, None) or _Entry()
        entries[key] = entry  # the last used are at the end
        while len(entries) > _ENTRIES_MAX:
            entries.pop(next(iter(entries)))

        def good() -> Token | None:
            token = entry.token
            if token is None or token is stale:
                return None
            return token if token.good_until is None or loop.time() < token.good_until else None

        if (token := good()) is not None:
            return token
        seen = entry.attempts
        async with entry.lock:
            if (token := good()) is not None:
                return token
            if entry.attempts != seen and entry.error is not None:
                raise entry.error.with_traceback(None)  # who waited need not ask the same again
            entry.error = None  # of an earlier fetch: this one may be given up and have none
            try:
                token = await fetch()
            except errors.ProviderError as error:
                entry.error = error
                raise
            finally:
                entry.attempts += 1
            entry.token, entry.error = token, None
            return token


def cache_key(fingerprint: str, secrets: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """Return what tokens of this configuration with these credentials and values are kept under."""
    said = json.dumps([fingerprint, dict(secrets), dict(values)], sort_keys=True, default=str)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def read_token(step: AuthStep, status: int, body: Any, *, now: float, cut: Callable[[Any], Any]) -> Token:
    """Return the token in an answer of the auth server; now is the event loop's time, cut takes secrets out.

    Raises: what the answer says went wrong, or MalformedReply no_token.
    """
    error = error_in(step.errors, body, {STATUS: status}) or (vendor_error(body) if status != 200 else None)
    if status != 200 or error is not None:
        raise named(status if status != 200 else None, cut(error))
    values: dict[str, Secret] = {}
    for name, path in step.set_data:
        found = pick(body, path)
        if type(found) in (int, str) and found != "":
            values[name] = Secret(str(found))
            continue
        said = vendor_error(body)
        if said is not None and any(said.values()):
            raise named(401, cut(said))
        raise errors.MalformedReply(code="no_token", retryable=False)
    seconds = pick(body, step.expires) if step.expires is not None else None
    if isinstance(seconds, str) and seconds.isdecimal() and len(seconds) < 12:
        seconds = int(seconds)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        return Token(values)
    seconds = min(float(seconds), _SECONDS_MAX)
    return Token(values, now + seconds - min(step.refresh_margin_seconds, seconds / 2))
