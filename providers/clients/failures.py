"""What went wrong, by its name: httpx's exceptions, HTTP statuses, and vendors' words for errors."""

from __future__ import annotations

import datetime as dt
import email.utils
import re
from collections.abc import Mapping
from typing import Any

import httpx

from providers import errors
from providers.credentials import Secret

_RETRY_AFTER_MAX_SECONDS = 3600.0


def from_httpx(error: httpx.HTTPError) -> errors.ProviderError:
    """Return our error for an httpx one that came before any answer."""
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return errors.TimedOut("connect")
        case httpx.ReadTimeout():
            return errors.TimedOut("first")
        case httpx.WriteTimeout():
            return errors.TimedOut("write")
        case httpx.ConnectError():
            return errors.ConnectFailed()
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.ProxyError():
            return errors.Misconfigured(code="bad_endpoint")
        case httpx.RemoteProtocolError() | httpx.NetworkError():
            return errors.ConnectFailed(code="no_answer")
        case _:
            return errors.MalformedReply()


_KINDS: tuple[tuple[re.Pattern[str], type[errors.ProviderError]], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"throttl|rate_?limit|rate_?quota", errors.RateLimited),
        (r"quota|billing|arrear|insufficient_?balance|\b1113\b", errors.QuotaExceeded),
        (r"content_?filter|content_?policy|data_?inspection|sensitive|moderation|\b1301\b", errors.ContentBlocked),
        (r"too_?many|\b1302\b|flow_?limit", errors.RateLimited),
        (r"api_?key|authentication|unauthor|access_?denied|permission|\b1004\b", errors.Unauthorized),
        (r"model_?not_?(found|exist)|unknown_?model|notfounderror", errors.UnknownModel),
        (r"overload|server_?error|internal|unavailable|engine", errors.Unavailable),
        (r"invalid_?(request|param|argument)|bad_?request|context_length", errors.BadRequest),
    )
)


def refusal(
    status: int | None,
    error: Mapping[str, Any] | None,
    *,
    retry_after_seconds: float | None = None,
    request_id: str | None = None,
    secret: Secret | None = None,
) -> errors.ProviderError:
    """Return our error for a vendor's, by HTTP status (None: in the stream) and its {message, type, code}."""
    error = error or {}
    code, kind_word = error.get("code"), error.get("type")
    if status is None and isinstance(code, int) and 400 <= code < 600:
        status = code
    words = f"{code or ''} {kind_word or ''}".lower()
    named = next((kind for pattern, kind in _KINDS if pattern.search(words)), None)
    kind: type[errors.ProviderError]
    if named in (errors.QuotaExceeded, errors.ContentBlocked, errors.UnknownModel):
        kind = named
    elif status == 402:
        kind = errors.QuotaExceeded
    elif status == 429:
        kind = errors.RateLimited
    elif status in (401, 403):
        kind = errors.Unauthorized
    elif status == 404:
        kind = errors.UnknownModel
    elif status is not None and (status >= 500 or status in (408, 425)):
        kind = errors.Unavailable
    elif named is not None:
        kind = named
    else:
        kind = errors.Unavailable if status is None else errors.BadRequest
    message = error.get("message")
    message = message if isinstance(message, str) else None
    if message and secret:
        message = message.replace(secret.reveal(), "•••")
    request_id = without_secret(request_id, secret)
    words_said = [str(word) for word in (code, kind_word) if word not in (None, "")]
    vendor_code = next((word for word in words_said if word != str(status)), None)  # the status is there already
    return kind(
        retry_after_seconds=retry_after_seconds,
        provider_request_id=request_id,
        http_status=status,
        vendor_code=without_secret(vendor_code, secret),
        vendor_message=message,
    )


def without_secret(word: str | None, secret: Secret | None) -> str | None:
    """Return a word of the provider's, None when it quotes our key: such words are stored and logged."""
    return None if word and secret and secret.reveal() in word else word


def vendor_error(value: Any) -> dict[str, Any] | None:
    """Return {message, type, code} of an HTTP error body, in the shapes vendors use."""
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    return {
        "message": value.get("message") or value.get("detail"),
        "type": value.get("type"),
        "code": value.get("code"),
    }


def retry_after_seconds(value: str | None, *, now: dt.datetime | None = None) -> float | None:
    """Return a Retry-After header in seconds, at most an hour, None when there is none to read."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=dt.UTC)
        seconds = (when - (now or dt.datetime.now(dt.UTC))).total_seconds()
    if seconds != seconds:  # NaN
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX_SECONDS)
