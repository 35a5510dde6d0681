"""Which server is asking: the signature of internal callers (WIRE 7), and that each is good for one use.

The signature covers method, path, query and body; a header of its own would be covered by nothing, so whom a
caller acts for stands in the body.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable
from typing import Literal
from urllib.parse import parse_qsl, quote

from django.db import connection

from conversations.db import tenant
from conversations.models import InternalCaller
from providers.fields import secret_of

log = logging.getLogger(__name__)

WINDOW_SECONDS = 300
NONCE_KEEP_SECONDS = 900
"""At least twice the window: a timestamp may lie as far ahead as behind."""
HEADERS = ("x-internal-key-id", "x-internal-timestamp", "x-internal-nonce", "x-internal-signature")

Reason = Literal["headers", "key", "timestamp", "nonce", "signature", "replay"]

_TIMESTAMP = re.compile(r"[0-9]{1,12}\Z")
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,128}\Z")


class BadSignature(Exception):
    """The call is not signed as it must be; the reason is for the log, the caller learns none."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def has_internal_headers(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a call claims to come from an internal caller."""
    return any(name.lower().startswith(b"x-internal-") for name, _ in headers)


def string_to_sign(
    *, method: str, path: str, query_string: bytes, timestamp: str, nonce: str, key_id: str, body: bytes
) -> str:
    """Return the text that the signature is made of.

    Shape:  "v1" \\n METHOD \\n path \\n canonical query \\n timestamp \\n nonce \\n key id \\n hex(sha256(body))
    Source: WIRE 7; tests/wire/rtc/internal_hmac_vectors.json.
    """
    # Bytes that are no UTF-8 go through unchanged: two queries never look like one.
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, errors="surrogateescape")
    canonical_query = "&".join(f"{_quote(name)}={_quote(value)}" for name, value in sorted(pairs))
    digest = hashlib.sha256(body).hexdigest()
    return "\n".join(("v1", method.upper(), path, canonical_query, timestamp, nonce, key_id, digest))


def sign_internal(secret: str, text: str) -> str:
    """Return the signature of a text as it stands in the header: `v1=<64 hex>`."""
    return "v1=" + hmac.new(secret.encode(), text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def accept_internal_call(
    *,
    method: str,
    path: str,
    query_string: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    now: float,
) -> InternalCaller:
    """Return the server that signed this call, with its site; the call's nonce is used up by it.

    Checked in the order of WIRE 7. The nonce is stored last, and in a transaction of its own: nobody can burn
    another's nonces, and a call that fails later cannot be replayed either.
    Raises: BadSignature; providers.errors.Misconfigured, when the stored secret cannot be read.
    """
    try:
        given = _one_each(headers)
        caller = _caller_of(given["x-internal-key-id"])
        _check_signature(caller, given, method, path, query_string, body, now)
        _use_up(caller, given["x-internal-nonce"])
    except BadSignature as error:
        log.warning("internal_call_refused", extra={"reason": error.reason, "path": path})
        raise
    return caller


def _one_each(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, value in headers:
        name = raw_name.lower().decode("latin-1")
        if name in HEADERS:
            if name in found:
                raise BadSignature("headers")
            found[name] = value.decode("latin-1").strip()
    if any(not found.get(name) for name in HEADERS):
        raise BadSignature("headers")
    return found


def _caller_of(key_id: str) -> InternalCaller:
    """Return the caller of this key id. It is looked up among all sites, since it says which one is meant."""
    if len(key_id) > 64 or not key_id.isascii():
        raise BadSignature("key")
    rows = InternalCaller.across_sites.select_related("site")
    caller = rows.filter(key_id=key_id, is_active=True, site__is_active=True).first()
    if caller is None:
        raise BadSignature("key")
    return caller


def _check_signature(
    caller: InternalCaller,
    given: dict[str, str],
    method: str,
    path: str,
    query_string: bytes,
    body: bytes,
    now: float,
) -> None:
    timestamp, nonce = given["x-internal-timestamp"], given["x-internal-nonce"]
    if not _TIMESTAMP.match(timestamp) or abs(now - int(timestamp)) > WINDOW_SECONDS:
        raise BadSignature("timestamp")
    if not _NONCE.match(nonce):
        raise BadSignature("nonce")
    text = string_to_sign(
        method=method,
        path=path,
        query_string=query_string,
        timestamp=timestamp,
        nonce=nonce,
        key_id=caller.key_id,
        body=body,
    )
    shown = given["x-internal-signature"].encode("latin-1", "replace")
    is_good = False
    for name in ("secret", "previous_secret"):
        secret = secret_of(caller, name).reveal()
        # Both are tried whatever the first gave: the time of an answer tells nothing.
        is_equal = hmac.compare_digest(sign_internal(secret or "\0", text).encode(), shown)
        is_good = is_good or (is_equal and bool(secret))
    if not is_good:
        raise BadSignature("signature")


def _use_up(caller: InternalCaller, nonce: str) -> None:
    with tenant(caller.site_id), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO conversations_internal_nonce (site_id, caller_id, nonce, seen_at)"
            " VALUES (%s, %s, %s, clock_timestamp()) ON CONFLICT DO NOTHING",
            [caller.site_id, caller.pk, nonce],
        )
        if cursor.rowcount != 1:
            raise BadSignature("replay")


def _quote(text: str) -> str:
    return quote(text, safe="-_.~", errors="surrogateescape")
