"""Retries that never double anything: a key is claimed once per membership, and kept for a day."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from django.db import connection

from conversations.errors import BadRequest, Invalid
from conversations.models import IdempotencyKey, Membership

_KEY = re.compile(r"[\x21-\x7e]{8,128}\Z")


def clean_key(value: str | None) -> str | None:
    """Return the key of an Idempotency-Key header, or None when there is none.

    Raises: BadRequest bad_idempotency_key.
    """
    if value is not None and not _KEY.match(value):
        raise BadRequest("bad_idempotency_key")
    return value


def hash_body(operation: str, body: Any) -> str:
    """Return the hash by which two bodies are the same: of their values, not of their bytes."""
    text = json.dumps([operation, body], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def claim_key(membership: Membership, key: str, body_hash: str) -> IdempotencyKey | None:
    """Return the row of an earlier request with this key; None when this one is the first, and now owns it.

    The insert waits for a concurrent first request to commit; if that one fails, its key goes with it.
    Raises: Invalid idempotency_mismatch, when the earlier request had another body.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO conversations_idempotency_key AS known (site_id, membership_id, key, body_hash, created_at)
            VALUES (%s, %s, %s, %s, clock_timestamp())
            ON CONFLICT (site_id, membership_id, key) DO UPDATE
                SET body_hash = excluded.body_hash, created_at = excluded.created_at,
                    conversation_id = NULL, user_message_id = NULL, reply_id = NULL
                WHERE known.created_at < clock_timestamp() - interval '24 hours'
            RETURNING 1
            """,
            [membership.site_id, membership.pk, key, body_hash],
        )
        if cursor.fetchone() is not None:
            return None
    earlier: IdempotencyKey = IdempotencyKey.objects.visible_to(membership).get(key=key)
    if earlier.body_hash != body_hash:
        raise Invalid("idempotency_mismatch")
    return earlier
