"""The signers that a configuration may name: they see the final request and add headers to it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from providers import errors
from providers.signing import volcengine_headers


@dataclass(frozen=True, slots=True)
class Signer:
    """A function over the final request, and the settings it needs and may have."""

    sign: Callable[[str, str, Mapping[str, str], bytes, Mapping[str, str], float], dict[str, str]]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()


def _volcengine(
    method: str, url: str, headers: Mapping[str, str], body: bytes, settings: Mapping[str, str], now: float
) -> dict[str, str]:
    if not all(settings.get(name) for name in SIGNERS["volcengine"].required):
        raise errors.Misconfigured(code="missing_credential")
    parts = urlsplit(url)
    kept = {
        name: value
        for name, value in headers.items()
        if name.lower() == "content-type" or name[:2] in ("X-", "x-")
    }
    return volcengine_headers(
        method=method,
        host=parts.netloc,
        path=unquote(parts.path) or "/",
        query=parse_qsl(parts.query, keep_blank_values=True),
        headers=kept,
        body=body,
        access_key=settings["access_key"],
        secret_key=settings["secret_key"],
        session_token=settings.get("session_token") or None,
        region=settings["region"],
        service=settings["service"],
        now=dt.datetime.fromtimestamp(now, dt.UTC),
    )


SIGNERS: Mapping[str, Signer] = {
    "volcengine": Signer(
        _volcengine,
        required=frozenset({"access_key", "secret_key", "region", "service"}),
        optional=frozenset({"session_token"}),
    ),
}
