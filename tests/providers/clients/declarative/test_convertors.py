"""The named functions, and the signer against the vendor's own vectors."""

from __future__ import annotations

import base64
import datetime as dt
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from providers import errors
from providers.clients.declarative.convertors import CONVERTORS
from providers.clients.declarative.signers import SIGNERS
from providers.signing import volcengine_headers

WIRE = Path(__file__).parents[3] / "wire"
VECTORS = json.loads((WIRE / "volc_sign_vectors.json").read_text())["cases"]
# The Node signer leaves the hash of an empty body out; we always send it, and the server reads SignedHeaders.
SIGNED = [case for case in VECTORS if case["name"] != "node_empty_body"]

TALK = [
    {"role": "system", "content": "你是助手"},
    {"role": "assistant", "content": "欢迎"},
    {"role": "user", "content": "一"},
    {"role": "user", "content": "二"},
    {"role": "assistant", "content": "三"},
    {"role": "user", "content": "四"},
]


def convert(name: str, value: Any, now: float = 0.0) -> Any:
    """Return what the named convertor makes of the value."""
    return CONVERTORS[name](value, now)


def test_the_zhipu_token_equals_the_official_one_of_the_same_moment() -> None:
    captured = json.loads((WIRE / "provider_requests.json").read_text())["zhipu_chat_stream_jwt"]
    official = captured["requests"][0]["headers"]["Authorization"]
    payload = json.loads(base64.urlsafe_b64decode(official.split(".")[1] + "=="))
    assert convert("zhipu_jwt", "Bearer id.secret", payload["timestamp"] / 1000) == official


@pytest.mark.parametrize("key", ["", "no-dot", "Bearer ", "Bearer .secret", "Bearer id."])
def test_a_zhipu_key_without_two_halves_is_misconfigured(key: str) -> None:
    with pytest.raises(errors.Misconfigured) as caught:
        convert("zhipu_jwt", key)
    assert "secret" not in str(caught.value)


def test_messages_become_what_each_vendor_wants() -> None:
    assert convert("only_system", TALK) == "你是助手"
    assert convert("only_system", TALK[1:]) is None
    assert convert("without_system", TALK) == TALK[1:]
    assert convert("to_gemini_system", TALK) == {"parts": [{"text": "你是助手"}], "role": "user"}
    assert convert("to_gemini_system", TALK[1:]) is None
    assert convert("to_gemini_contents", TALK[:3]) == [
        {"parts": [{"text": "欢迎"}], "role": "model"},
        {"parts": [{"text": "一"}], "role": "user"},
    ]
    assert convert("to_ernie_messages", [*TALK, {"role": "assistant", "content": "五"}]) == [
        {"role": "user", "content": "一\n二"},
        {"role": "assistant", "content": "三"},
        {"role": "user", "content": "四"},
    ]
    assert convert("last_user_text", TALK) == "四"
    assert convert("to_base64", "Basic ak:sk") == "Basic YWs6c2s="


def test_a_convertor_of_messages_refuses_anything_else() -> None:
    with pytest.raises(errors.Misconfigured):
        convert("only_system", "text")


@pytest.mark.parametrize("case", SIGNED, ids=lambda case: case["name"])
def test_the_volcengine_signature_equals_the_vendors(case: dict[str, Any]) -> None:
    headers = volcengine_headers(
        method=case["method"],
        host=case["host"],
        path=case["path"],
        query=[(name, value) for name, value in case["query"]],
        headers={n: v for n, v in case["signed_header_values"].items() if n != "host"},
        body=base64.b64decode(case["body_base64"]),
        access_key=case["access_key"],
        secret_key=case["secret_key"],
        session_token=case["session_token"],
        region=case["region"],
        service=case["service"],
        now=moment(case),
    )
    assert headers["Authorization"] == case["expected"]["authorization"]
    assert headers["X-Content-Sha256"] == case["expected"]["payload_sha256"]


@pytest.mark.parametrize("case", [c for c in SIGNED if c["profile"] == "py"], ids=lambda case: case["name"])
def test_the_signer_signs_the_final_request_alike(case: dict[str, Any]) -> None:
    query = urlencode([tuple(pair) for pair in case["query"]], quote_via=quote)
    url = f"https://{case['host']}{quote(case['path'])}?{query}"
    settings = {n: case[n] or "" for n in ("access_key", "secret_key", "session_token", "region", "service")}
    sent = {
        "Content-Type" if n == "content-type" else n: v
        for n, v in case["signed_header_values"].items()
        if n != "host"
    }
    body = base64.b64decode(case["body_base64"])
    now = moment(case).timestamp()
    headers = SIGNERS["volcengine"].sign(case["method"], url, sent, body, settings, now)
    assert headers["Authorization"] == case["expected"]["authorization"]


def moment(case: dict[str, Any]) -> dt.datetime:
    """Return when the case was signed."""
    return dt.datetime.strptime(case["x_date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
