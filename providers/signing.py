"""Signatures of whole requests, as pure functions: clients and the RTC proxy both build on them."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from urllib.parse import quote

_UNRESERVED = "-_.~"


def volcengine_headers(
    *,
    method: str,
    host: str,
    path: str = "/",
    query: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    access_key: str,
    secret_key: str,
    session_token: str | None = None,
    region: str,
    service: str,
    now: dt.datetime,
) -> dict[str, str]:
    """Return the headers to add to a Volcengine OpenAPI request: X-Date, X-Content-Sha256, Authorization, …

    Shape:  "HMAC-SHA256 Credential=<key>/<date>/<region>/<service>/request, SignedHeaders=…, Signature=<64 hex>"
    Units:  now is aware UTC; the vendor allows 15 minutes. body is the very bytes that are sent.
    headers are those given that shall be signed beside host; the names of all are compared in lower case.
    Source: WIRE 1; equal to the vendor's signers in tests/wire/volc_sign_vectors.json.
    """
    moment = now.astimezone(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    added = {"X-Date": moment, "X-Content-Sha256": digest}
    if session_token:
        added["X-Security-Token"] = session_token
    plain_host = host.removesuffix(":443").removesuffix(":80")
    signed = {name.lower(): value for name, value in {**(headers or {}), **added}.items()} | {"host": plain_host}
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        (
            method.upper(),
            quote(path or "/", safe="/" + _UNRESERVED),
            "&".join(
                f"{quote(name, safe=_UNRESERVED)}={quote(value, safe=_UNRESERVED)}"
                for name, value in sorted(query, key=lambda pair: pair[0])
            ),
            "".join(f"{name}:{signed[name]}\n" for name in sorted(signed)),
            names,
            digest,
        )
    )
    scope = f"{moment[:8]}/{region}/{service}/request"
    to_sign = "\n".join(("HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = secret_key.encode()
    for word in (moment[:8], region, service, "request"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    added["Authorization"] = (
        f"HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return added
