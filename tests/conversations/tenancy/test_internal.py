"""Internal callers: every recorded case, the order of the checks, one use each, and two secrets at a time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.db import connection

from conversations.generation.sweeper import keep_house
from conversations.models import InternalCaller, InternalNonce
from conversations.tenancy.internal import BadSignature, accept_internal_call, sign_internal, string_to_sign
from providers.fields import keep_secret, move_secret
from tests.world import World, make_internal_caller, make_world

VECTORS = json.loads((Path(__file__).parents[2] / "wire" / "rtc" / "internal_hmac_vectors.json").read_text())
CASES = {case["name"]: case for case in VECTORS["cases"]}
SECRET = VECTORS["secrets"]["java-mock"]
NOW = 1775132115

pytestmark = pytest.mark.django_db


@pytest.fixture
def caller(world: World) -> InternalCaller:
    """The server of the recorded cases."""
    return make_internal_caller(world.acorn, "java-mock", secret=SECRET)


def raw_query(case: dict[str, Any]) -> bytes:
    """The query as a client would send it."""
    return urlencode([tuple(pair) for pair in case["query"]], quote_via=quote).encode()


def present(case: dict[str, Any], **changes: Any) -> str:
    """Present a call; return why it was refused, "" when it was not."""
    headers = {**case["headers"], **changes.pop("headers", {})}
    call = {
        "method": case["method"],
        "path": case["path"],
        "query_string": raw_query(case),
        "body": case["body"].encode(),
        "now": float(case["verify_at"]),
        "headers": [(name.lower().encode(), str(value).encode()) for name, value in headers.items() if value],
    }
    try:
        accept_internal_call(**{**call, **changes})
    except BadSignature as error:
        return error.reason
    return ""


def signed(*, secret: str = SECRET, **changes: Any) -> dict[str, Any]:
    """A call that is well signed as it stands."""
    case = {**CASES["ok"], **changes}
    text = string_to_sign(
        method=case["method"],
        path=case["path"],
        query_string=raw_query(case),
        timestamp=case["timestamp"],
        nonce=case["nonce"],
        key_id=case["key_id"],
        body=case["body"].encode(),
    )
    case["headers"] = {
        "X-Internal-Key-Id": case["key_id"],
        "X-Internal-Timestamp": case["timestamp"],
        "X-Internal-Nonce": case["nonce"],
        "X-Internal-Signature": sign_internal(secret, text),
    }
    return case


def nonces() -> list[str]:
    return sorted(InternalNonce.across_sites.values_list("nonce", flat=True))


def test_there_are_seventeen_cases() -> None:
    assert len(CASES) == 17


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_cases(caller: InternalCaller, name: str) -> None:
    case = CASES[name]
    if case["reason"] == "replay":
        assert present(CASES["ok"]) == ""
    assert present(case) == (case["reason"] or "")
    assert nonces() == ([case["nonce"]] if case["valid"] or case["reason"] == "replay" else [])


@pytest.mark.parametrize("name", CASES)
def test_the_text_that_is_signed(name: str) -> None:
    case = CASES[name]
    if case["reason"] == "signature":
        return  # its parts were changed after signing
    assert case["string_to_sign"] == string_to_sign(
        method=case["method"],
        path=case["path"],
        query_string=raw_query(case),
        timestamp=case["timestamp"],
        nonce=case["nonce"],
        key_id=case["key_id"],
        body=case["body"].encode(),
    )


def test_each_check_comes_before_those_that_follow_it(caller: InternalCaller) -> None:
    wrong = {
        "X-Internal-Signature": "v1=00",
        "X-Internal-Nonce": "short",
        "X-Internal-Timestamp": "1",
        "X-Internal-Key-Id": "nobody",
    }
    seen = []
    assert present(CASES["ok"]) == ""
    for count in range(len(wrong) + 1):
        seen.append(present(CASES["ok"], headers=dict(list(wrong.items())[:count])))
    seen.append(present(CASES["ok"], headers={**wrong, "X-Internal-Signature": ""}))
    assert seen == ["replay", "signature", "nonce", "timestamp", "key", "headers"]


@pytest.mark.parametrize("name", list(CASES["ok"]["headers"]))
def test_a_missing_and_a_doubled_header_are_refused(caller: InternalCaller, name: str) -> None:
    assert present(CASES["ok"], headers={name: ""}) == "headers"
    pairs = [(key.lower().encode(), value.encode()) for key, value in CASES["ok"]["headers"].items()]
    doubled = [*pairs, (name.lower().encode(), CASES["ok"]["headers"][name].encode())]
    with pytest.raises(BadSignature, match="headers"):
        accept_internal_call(
            method="POST", path="/proxy", query_string=b"", headers=doubled, body=b"", now=float(NOW)
        )
    assert nonces() == []


@pytest.mark.parametrize(
    "timestamp", ["１７７５１３２１１５", "1775132115.0", "-1775132115", "+1775132115", "1e9", "9" * 13]
)
def test_a_timestamp_is_plain_digits(caller: InternalCaller, timestamp: str) -> None:
    assert present(signed(timestamp=timestamp)) in ("timestamp", "headers")


@pytest.mark.parametrize("nonce", ["x" * 15, "x" * 129, "x" * 15 + "é", "x" * 16 + "\n", "x" * 15 + "/"])
def test_a_nonce_is_of_a_known_shape(caller: InternalCaller, nonce: str) -> None:
    # A line end around a header's value is not part of it: that one is another nonce, not signed for.
    assert present(CASES["ok"], headers={"X-Internal-Nonce": nonce}) in ("nonce", "signature")
    assert nonces() == []


@pytest.mark.parametrize("signature", ["", "v1=", "v2=" + "0" * 64, "v1=" + "é" * 32, "0" * 64])
def test_what_is_no_signature_is_refused(caller: InternalCaller, signature: str) -> None:
    assert present(CASES["ok"], headers={"X-Internal-Signature": signature}) in ("signature", "headers")
    assert nonces() == []


def test_a_forged_call_does_not_burn_the_nonce_of_a_good_one(caller: InternalCaller) -> None:
    assert present(CASES["wrong_secret"]) == "signature"
    assert present(CASES["ok"]) == ""


def test_two_secrets_are_good_while_one_replaces_the_other(caller: InternalCaller) -> None:
    move_secret(caller, "secret", "previous_secret")
    keep_secret(caller, "secret", "new-secret-for-tests-only-0123456789")
    caller.save()
    assert present(signed(nonce="n" * 16)) == ""
    assert present(signed(nonce="m" * 16, secret="new-secret-for-tests-only-0123456789")) == ""
    keep_secret(caller, "previous_secret", "")
    caller.save()
    assert present(signed(nonce="o" * 16)) == "signature"
    assert present(signed(nonce="p" * 16, secret="\0")) == "signature"


def test_a_caller_or_a_site_that_is_off_is_unknown(caller: InternalCaller) -> None:
    InternalCaller.across_sites.update(is_active=False)
    assert present(CASES["ok"]) == "key"
    InternalCaller.across_sites.update(is_active=True)
    caller.site.is_active = False
    caller.site.save()
    assert present(CASES["ok"]) == "key"


def test_the_same_nonce_is_anothers_own(caller: InternalCaller, world: World) -> None:
    make_internal_caller(world.birch, "node-mock", secret=SECRET)
    assert present(signed()) == ""
    assert present(signed(key_id="node-mock")) == ""


def test_queries_that_look_alike_after_decoding_are_not_alike(caller: InternalCaller) -> None:
    texts = {
        string_to_sign(
            method="POST", path="/proxy", query_string=raw, timestamp="1", nonce="n", key_id="k", body=b""
        )
        for raw in (b"a=%FF", b"a=%FE", b"a=%EF%BF%BD", b"a=", b"a=+", b"a=%2B")
    }
    assert len(texts) == 6


def test_the_house_forgets_nonces_only_when_they_cannot_come_again(caller: InternalCaller) -> None:
    assert present(signed(nonce="young-nonce-0000")) == present(signed(nonce="older-nonce-0000")) == ""
    with connection.cursor() as cursor:
        for nonce, seconds in (("young-nonce-0000", 600), ("older-nonce-0000", 901)):
            cursor.execute(
                "UPDATE conversations_internal_nonce SET seen_at = clock_timestamp() - %s * interval '1 second'"
                " WHERE nonce = %s",
                [seconds, nonce],
            )
    keep_house()
    assert nonces() == ["young-nonce-0000"]


@pytest.mark.django_db(transaction=True)
def test_of_many_uses_at_once_one_is_accepted(transactional_db: None) -> None:
    make_internal_caller(make_world().acorn, "java-mock", secret=SECRET)

    def use(_: int) -> str:
        try:
            return present(CASES["ok"])
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as threads:
        answers = sorted(threads.map(use, range(6)))
    assert answers == ["", *["replay"] * 5]
