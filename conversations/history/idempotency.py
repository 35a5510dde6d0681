"""Retries that never double anything: a key is claimed once per membership, and kept for a day."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from django.db import connection

from conversations.errors import BadRequest, Invalid

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


@dataclass(frozen=True, slots=True)
class Claimed:
    """What an earlier request with the same key made."""

    conversation_id: int | None
    user_message_id: int | None
    reply_id: int | None


def claim_key(site_id: int, membership_id: int, key: str, body_hash: str) -> Claimed | None:
    """Return what an earlier request with this key made; None when this one is the first, and now owns it.

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
            [site_id, membership_id, key, body_hash],
        )
        if cursor.fetchone() is not None:
            return None
        cursor.execute(
            "SELECT body_hash, conversation_id, user_message_id, reply_id FROM conversations_idempotency_key"
            " WHERE site_id = %s AND membership_id = %s AND key = %s",
            [site_id, membership_id, key],
        )
        earlier_hash, *made = cursor.fetchone()
    if earlier_hash != body_hash:
        raise Invalid("idempotency_mismatch")
    return Claimed(*made)
