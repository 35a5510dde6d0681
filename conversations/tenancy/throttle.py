"""How often: one counter per key and minute, in the database, so that all workers count together."""

from __future__ import annotations

import hashlib

from django.conf import settings
from django.db import connection

from conversations.errors import Limited

KEY_MAX_CHARS = 160


def spend(key: str, per_minute: int) -> None:
    """Count one use of `key` in this minute of the database's clock.

    Raises: Limited with the seconds until the next minute, when that was more than `per_minute`.
    """
    if not settings.THROTTLE:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO conversations_rate_window AS counter (key, minute, uses)
            VALUES (%s, floor(extract(epoch FROM statement_timestamp()) / 60)::bigint, 1)
            ON CONFLICT (key, minute) DO UPDATE SET uses = counter.uses + 1
            RETURNING uses, ceil(60 - extract(epoch FROM statement_timestamp()) %% 60)::int
            """,
            [key[:KEY_MAX_CHARS]],
        )
        row = cursor.fetchone()
    assert row is not None, "INSERT … RETURNING gives a row"
    uses, seconds_left = row
    if uses > per_minute:
        raise Limited(retry_after_seconds=max(1, seconds_left))


def spend_sign_in(username: str, address: str) -> None:
    """Count one attempt to sign in with this name from this address. Call it outside a transaction.

    Raises: Limited.
    """
    who = hashlib.sha256(f"{username}\n{address}".encode("utf-8", "surrogatepass")).hexdigest()
    spend(f"sign-in:{who}", settings.THROTTLE_SIGN_INS_PER_MINUTE)


def spend_send(membership_id: int) -> None:
    """Count one message sent by this member.

    Raises: Limited.
    """
    spend(f"send:{membership_id}", settings.THROTTLE_SENDS_PER_MINUTE)
