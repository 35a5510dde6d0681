"""A vendor's no in our words, with the kind that a configuration may give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers import errors
from providers.clients.failures import refusal

KINDS: Mapping[str, type[errors.ProviderError]] = {
    "bad_request": errors.BadRequest,
    "unauthorized": errors.Unauthorized,
    "unknown_model": errors.UnknownModel,
    "rate_limited": errors.RateLimited,
    "quota_exceeded": errors.QuotaExceeded,
    "content_blocked": errors.ContentBlocked,
    "unavailable": errors.Unavailable,
}


def named(
    status: int | None,
    error: Mapping[str, Any] | None,
    *,
    request_id: str | None = None,
    retry_after: float | None = None,
) -> errors.ProviderError:
    """Return our error for {message, type, code, kind?}; status is None when it came with an answer of 200."""
    found = refusal(status, error, retry_after_seconds=retry_after, request_id=request_id)
    kind = KINDS.get((error or {}).get("kind") or "")
    if kind is None:
        return found
    return kind(
        retry_after_seconds=retry_after,
        provider_request_id=request_id,
        http_status=status,
        vendor_code=found.vendor_code,
        vendor_message=found.vendor_message,
    )
