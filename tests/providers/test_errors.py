"""Failures: each has a public code, a stable code of its own, and a text that is safe to log."""

import re
from pathlib import Path

import pytest

from providers import errors

PUBLIC = {
    errors.Misconfigured: "internal",
    errors.BadRequest: "provider_rejected",
    errors.Unauthorized: "provider_rejected",
    errors.UnknownModel: "provider_rejected",
    errors.RateLimited: "provider_rate_limited",
    errors.QuotaExceeded: "provider_unavailable",
    errors.ContentBlocked: "content_blocked",
    errors.ConnectFailed: "provider_unavailable",
    errors.Unavailable: "provider_unavailable",
    errors.MalformedReply: "provider_unavailable",
    errors.StreamCut: "provider_unavailable",
    errors.StartedOver: "provider_unavailable",
    errors.ReplyTooLong: "reply_too_long",
}


def leaves(kind: type[errors.ProviderError]) -> set[type[errors.ProviderError]]:
    """Return the kinds that are raised."""
    below = kind.__subclasses__()
    return {leaf for child in below for leaf in leaves(child)} if below else {kind}


def test_every_kind_has_a_public_code() -> None:
    assert leaves(errors.ProviderError) == {*PUBLIC, errors.TimedOut}
    assert {kind: kind().public_code for kind in PUBLIC} == PUBLIC
    assert errors.TimedOut("idle").public_code == "provider_timeout"


def test_every_kind_has_a_code_of_its_own() -> None:
    codes = [kind().code for kind in PUBLIC] + [errors.TimedOut("idle").code]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", PUBLIC)
def test_the_text_never_holds_what_the_vendor_said(kind: type[errors.ProviderError]) -> None:
    error = kind(
        vendor_message="密钥 sk-secret 有误",
        vendor_code="bad code\nwith line",
        provider_request_id="req 1\r\n",
        http_status=400,
    )
    assert str(error) == f"{kind.code} status=400 vendor=bad_code_with_line request=req_1_"
    assert "sk-secret" not in repr(error)
    assert error.vendor_message == "密钥 sk-secret 有误"


def test_a_timeout_names_its_clock() -> None:
    assert (errors.TimedOut("first").code, errors.TimedOut("first").retryable) == ("timed_out_first", True)


def test_every_code_is_in_the_documentation() -> None:
    root = Path(__file__).parents[2]
    documented = set(re.findall(r"`([a-z_]+)`", (root / "docs" / "providers.md").read_text()))
    sources = [path.read_text() for path in (root / "providers").rglob("*.py") if "migrations" not in path.parts]
    used = {code for source in sources for code in re.findall(r'\bcode="([a-z_]+)"', source)}
    used |= {kind.code for kind in [*PUBLIC, errors.Refused, errors.Unreachable, errors.Broken]}
    used |= {errors.TimedOut(phase).code for phase in ("connect", "first", "idle", "total", "write")}
    assert len(used) > 30
    assert used - documented == set()
