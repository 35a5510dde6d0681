"""Calls of a site's own backend: signed, bounded, and nowhere near a private address."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from providers.calls import (
    Answer,
    CallFailed,
    Secret,
    call_backend,
    compile_call,
    fill_text,
    internal_headers,
    member_header,
)
from providers.http import close_shared_clients

NAMES = frozenset({"pageContext", "member", "secret"})
SECRET = Secret("sk-canary-0123456789")
VECTORS = json.loads(
    (Path(__file__).parents[1] / "wire" / "internal_hmac_vectors.json").read_text(encoding="utf-8")
)


class Backend(BaseHTTPRequestHandler):
    """Answers as its path says, and remembers what it was asked."""

    seen: list[dict[str, Any]] = []

    def answer(self) -> None:
        """Answer one call."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append(
            {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body.decode()}
        )
        way = self.path.split("?")[0].strip("/").split("/")[0]
        if way == "slow":
            time.sleep(1)
        status = {"moved": 302, "broken": 500}.get(way, 200)
        kind = {"picture": "image/png", "html": "text/html; charset=utf-8"}.get(way, "application/json")
        said = {
            "large": b'"' + b"x" * 100_000 + b'"',
            "garbage": b"{not json",
            "html": "<b>好</b>".encode(),
            "bytes": b"\xff\xfe\xff",
        }.get(way, '{"id": 7, "state": "已发货"}'.encode())
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(said)))
        if way == "zipped":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Location", "/order")
        self.end_headers()
        with suppress(BrokenPipeError):  # who was slow is not heard to the end
            self.wfile.write(said)

    do_GET = do_POST = answer

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def backend(settings: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    Backend.seen = []
    address = f"127.0.0.1:{server.server_address[1]}"
    settings.PROVIDER_ALLOWED_ADDRESSES = [address]
    yield f"http://{address}"
    server.shutdown()
    thread.join()
    server.server_close()


def call(config: dict[str, Any], values: dict[str, Any] | None = None, **more: Any) -> Answer:
    async def run() -> Answer:
        try:
            return await call_backend(
                compile_call(config, names=NAMES),
                {"pageContext": {}, **(values or {})},
                **{"secret": Secret(""), "key_id": "site-1", **more},
            )
        finally:
            await close_shared_clients()

    return asyncio.run(run())


def trouble(config: dict[str, Any], **more: Any) -> str:
    with pytest.raises(CallFailed) as caught:
        call(config, **more)
    return caught.value.code


def test_values_are_filled_in_as_data_and_never_as_structure(backend: str) -> None:
    context = {"id": "7/../8?x=1#", "note": '"}, {"admin": true', "tags": ["a", 1]}
    answer = call(
        {
            "method": "POST",
            "url": f"{backend}/order/${{pageContext.id}}",
            "query": {"q": "${pageContext.note}", "none": "${pageContext.nothing}"},
            "headers": {"X-Nick": "n-${pageContext.tags[1]}"},
            "body": {"note": "${pageContext.note}", "tags": "${pageContext.tags}", "secret": "$${secret}"},
        },
        {"pageContext": context},
    )
    assert answer.value == {"id": 7, "state": "已发货"}
    (seen,) = Backend.seen
    assert seen["path"] == "/order/7%2F..%2F8%3Fx%3D1%23?q=%22%7D%2C%20%7B%22admin%22%3A%20true"
    assert seen["headers"]["X-Nick"] == "n-1"
    assert json.loads(seen["body"]) == {"note": context["note"], "tags": ["a", 1], "secret": "${secret}"}
    assert not [name for name in seen["headers"] if name.startswith("X-Internal") or name == "X-Member"]


def test_with_a_secret_the_request_and_the_member_are_signed(backend: str) -> None:
    config = {"url": f"{backend}/order?b=2&a=1", "headers": {"Authorization": "Bearer ${secret}"}}
    call(config, secret=SECRET, identity={"site": 1, "userId": 5, "nickname": "爱丽丝"})
    headers = Backend.seen[0]["headers"]
    assert headers["Authorization"] == f"Bearer {SECRET.reveal()}"
    to_sign = "\n".join(
        (
            "v1",
            "GET",
            "/order",
            "a=1&b=2",
            headers["X-Internal-Timestamp"],
            headers["X-Internal-Nonce"],
            "site-1",
            hashlib.sha256(b"").hexdigest(),
        )
    )
    signature = hmac.new(SECRET.reveal().encode(), to_sign.encode(), hashlib.sha256).hexdigest()
    assert headers["X-Internal-Signature"] == f"v1={signature}"
    said, _, mark = headers["X-Member"].rpartition(".")
    assert mark == hmac.new(SECRET.reveal().encode(), said.encode(), hashlib.sha256).hexdigest()
    claims = said.removeprefix("v1.")
    identity = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert abs(identity.pop("iat") - time.time()) < 5 and identity.pop("exp") - time.time() > 290
    assert identity == {"site": 1, "userId": 5, "nickname": "爱丽丝"}


@pytest.mark.parametrize(
    "case", [case for case in VECTORS["cases"] if case["valid"]], ids=lambda case: str(case["name"])
)
def test_our_signature_is_the_one_of_the_vectors(case: dict[str, Any]) -> None:
    headers = internal_headers(
        case["method"],
        f"http://x{case['path']}?{urlencode([tuple(pair) for pair in case['query']])}",
        case["body"].encode(),
        secret=Secret(VECTORS["secrets"][case["key_id"]]),
        key_id=case["key_id"],
        now=float(case["timestamp"]),
        nonce=case["nonce"],
    )
    assert headers == {name: case["headers"][name] for name in headers}


@pytest.mark.parametrize(
    ("way", "code"),
    [
        ("moved", "status_302"),
        ("broken", "status_500"),
        ("large", "answer_too_large"),
        ("garbage", "malformed_json"),
        ("bytes", "malformed_json"),
        ("picture", "not_text"),
        ("zipped", "encoded"),
    ],
)
def test_an_answer_that_cannot_be_used_is_named(backend: str, way: str, code: str) -> None:
    assert trouble({"url": f"{backend}/{way}"}) == code
    assert len(Backend.seen) == 1


def test_a_text_is_an_answer_too(backend: str) -> None:
    assert call({"url": f"{backend}/html"}).text == "<b>好</b>"


def test_a_slow_backend_is_left_alone(backend: str) -> None:
    began = time.monotonic()
    assert trouble({"url": f"{backend}/slow"}, seconds=0.2) == "timed_out"
    assert time.monotonic() - began < 0.8


@pytest.mark.parametrize("host", ["127.0.0.1:9", "169.254.169.254", "10.0.0.1", "[::1]:9", "localhost:9"])
def test_private_addresses_are_refused(host: str) -> None:
    assert trouble({"url": f"http://{host}/"}) == "address_refused"


def test_a_value_that_would_end_a_header_is_refused(backend: str) -> None:
    config = {"url": f"{backend}/order", "headers": {"X-A": "${pageContext.a}"}}
    assert trouble(config, values={"pageContext": {"a": "x\r\nX-B: y"}}) == "bad_header_value"


@pytest.mark.parametrize("name", ["X-Member", "x-internal-signature", "X-Internal-Key-Id"])
def test_no_template_writes_what_only_we_sign(name: str) -> None:
    with pytest.raises(ValueError, match="is not for a template"):
        compile_call({"url": "https://example.com/", "headers": {name: "${pageContext.a}"}}, names=NAMES)


def test_nothing_secret_shows_in_a_repr(backend: str) -> None:
    compiled = compile_call({"url": f"{backend}/x", "headers": {"X-A": "${secret}"}}, names=NAMES)
    assert SECRET.reveal() not in repr(compiled) + repr(SECRET)
    assert SECRET.reveal() not in member_header({"site": 1}, secret=SECRET, now=0)


def test_a_text_is_filled_by_paths_alone() -> None:
    values = {"pageContext": {"a": {"b": [1, {"c": "好"}]}, "n": None}}
    assert fill_text("${pageContext.a.b[1].c}|${pageContext.n}|${pageContext.x}|$${y}", values) == "好|||${y}"
    assert fill_text("${pageContext.a}", values) == '{"b": [1, {"c": "好"}]}'
    assert fill_text("${pageContext.a.__class__}", values) == ""
