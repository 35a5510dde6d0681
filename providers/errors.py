"""How a provider fails: whose fault, worth retrying, what to say.

ProviderError
  Misconfigured                 ours: no such key, a refused address
  Refused                       the vendor answered no
    BadRequest · Unauthorized · UnknownModel · RateLimited · QuotaExceeded · ContentBlocked
  Unreachable                   nobody answered, or not in time
    ConnectFailed · TimedOut(phase) · Unavailable (5xx)
  Broken                        an answer that is not one
    MalformedReply · StreamCut · StartedOver · ReplyTooLong
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

PublicCode = Literal[
    "provider_unavailable",
    "provider_timeout",
    "provider_rate_limited",
    "provider_rejected",
    "content_blocked",
    "reply_too_long",
    "internal",
]
Phase = Literal["connect", "first", "idle", "total", "write"]

_SAFE_WORD = re.compile(r"[^A-Za-z0-9_.:-]+")


class ProviderError(Exception):
    """A provider did not give a whole reply.

    code is our stable word, public_code the word a client may see (API 3), vendor_code the vendor's own word
    cut to harmless characters. str() is made of these alone: never of a secret, a prompt or a reply.
    vendor_message is the vendor's sentence, for a staff member's test of an endpoint only: it may quote the
    prompt, so it is not in str() and must not be logged.
    """

    code: str = "provider_error"
    public_code: ClassVar[PublicCode] = "provider_unavailable"
    retryable: bool = False

    def __init__(
        self,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
        provider_request_id: str | None = None,
        http_status: int | None = None,
        vendor_code: str | None = None,
        vendor_message: str | None = None,
    ) -> None:
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.provider_request_id = _safe_word(provider_request_id)
        self.http_status = http_status
        self.vendor_code = _safe_word(vendor_code)
        self.vendor_message = vendor_message[:500] if vendor_message else None
        super().__init__(code or self.code)

    def __str__(self) -> str:
        """Return the code and the facts that are safe to log."""
        facts = {"status": self.http_status, "vendor": self.vendor_code, "request": self.provider_request_id}
        return " ".join([self.code, *(f"{name}={value}" for name, value in facts.items() if value is not None)])

    def __repr__(self) -> str:
        """Return the class and what str() says."""
        return f"{type(self).__name__}({self})"


class Misconfigured(ProviderError):
    """Our own setting is wrong: a person has to act."""

    code = "misconfigured"
    public_code = "internal"


class Refused(ProviderError):
    """The provider understood and said no."""

    code = "refused"
    public_code: ClassVar[PublicCode] = "provider_rejected"


class BadRequest(Refused):
    """The provider did not accept the request itself."""

    code = "bad_request"


class Unauthorized(Refused):
    """The key is missing, wrong or not allowed."""

    code = "unauthorized"


class UnknownModel(Refused):
    """There is no such model or path there."""

    code = "unknown_model"


class RateLimited(Refused):
    """Too many requests; retry_after_seconds says when, if the provider did."""

    code = "rate_limited"
    public_code = "provider_rate_limited"
    retryable = True


class QuotaExceeded(Refused):
    """The account has nothing left: waiting a moment does not help, another endpoint does."""

    code = "quota_exceeded"
    public_code = "provider_unavailable"


class ContentBlocked(Refused):
    """The provider will not answer this prompt, or stopped its own answer, for what it says."""

    code = "content_blocked"
    public_code = "content_blocked"


class Unreachable(ProviderError):
    """No answer, or not in time."""

    code = "unreachable"
    retryable = True


class ConnectFailed(Unreachable):
    """No connection: name, address, TLS, or the connection broke before any answer."""

    code = "connect_failed"


class TimedOut(Unreachable):
    """One of the clocks ran out; phase says which."""

    code = "timed_out"
    public_code = "provider_timeout"

    def __init__(self, phase: Phase, *, provider_request_id: str | None = None) -> None:
        super().__init__(code=f"timed_out_{phase}", provider_request_id=provider_request_id)
        self.phase = phase


class Unavailable(Unreachable):
    """The provider says that it cannot now (5xx, overloaded)."""

    code = "unavailable"


class Broken(ProviderError):
    """An answer came, and it is not a whole reply."""

    code = "broken"
    retryable = True


class MalformedReply(Broken):
    """Not an event stream and not a chat completion either: HTML, a redirect, noise, or nothing at all."""

    code = "malformed_reply"


class StreamCut(Broken):
    """The stream ended without saying that the model had finished."""

    code = "stream_cut"


class StartedOver(Broken):
    """Asked to go on with an answer, the model gave another one from its beginning."""

    code = "started_over"
    retryable = False


class ReplyTooLong(Broken):
    """More than our limits allow: a line, a body, or the whole reply."""

    code = "reply_too_long"
    public_code = "reply_too_long"
    retryable = False


def _safe_word(value: str | None) -> str | None:
    """Return value cut to 100 harmless characters, or None when nothing is left."""
    if not value:
        return None
    return _SAFE_WORD.sub("_", value)[:100] or None
