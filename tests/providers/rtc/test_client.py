"""Calls of the RTC OpenAPI: the bytes that were signed are sent, and every kind of answer is understood."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import httpx
import pytest

from providers import errors
from providers.credentials import Secret
from providers.http import HttpPolicy, new_client
from providers.rtc.client import RtcAccount, RtcAnswer, call
from providers.signing import volcengine_headers

ACCESS, SECRET = "AKLT-for-tests", "c2VjcmV0LWZvci10ZXN0cw=="
BODY = {
    "AppId": "661e",
    "RoomId": "1-房间",
    "AgentConfig": {"WelcomeMessage": "你好，世界😀", "TargetUserId": ["u"]},
}
OK = b'{"Result":"ok","ResponseMetadata":{"RequestId":"2026-1","Action":"StartVoiceChat"}}'


def account(base_url: str = "https://rtc.volcengineapi.com", **changes: Any) -> RtcAccount:
    """An account whose calls go there."""
    given = {"access_key_id": Secret(ACCESS), "secret_key": Secret(SECRET), "base_url": base_url}
    return RtcAccount(**{**given, **changes})


def ask(handle: Callable[[httpx.Request], httpx.Response], **changes: Any) -> RtcAnswer:
    """Return the answer to StartVoiceChat by a platform that is this function."""

    async def go() -> RtcAnswer:
        async with new_client(HttpPolicy(), transport=httpx.MockTransport(handle)) as client:
            return await call(
                account(**changes), "StartVoiceChat", BODY, policy=HttpPolicy(), seconds=5, client=client
            )

    return asyncio.run(go())


def answered(status: int, body: bytes) -> httpx.Response:
    """A response that has not been read yet, as a transport gives it."""
    return httpx.Response(status, stream=httpx.ByteStream(body))


class Recorder(BaseHTTPRequestHandler):
    """Keeps what arrives and answers as its server was told to."""

    def do_POST(self) -> None:
        """Answer one call."""
        server = cast(Any, self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append((self.path, dict(self.headers.items()), body))
        server.answer(self)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def say(handler: BaseHTTPRequestHandler, status: int = 200, body: bytes = OK) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def platform() -> Iterator[Any]:
    """A real server on loopback."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.seen, server.answer = [], say
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.address = f"127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def call_over(platform: Any, transport: str, *, allowed: bool = True, seconds: float = 5) -> RtcAnswer:
    policy = HttpPolicy(
        allowed_addresses=frozenset({platform.address} if allowed else ()), transport=cast(Any, transport)
    )

    async def go() -> RtcAnswer:
        async with new_client(policy) as client:
            return await call(
                account(f"http://{platform.address}"),
                "StartVoiceChat",
                BODY,
                policy=policy,
                seconds=seconds,
                client=client,
            )

    return asyncio.run(go())


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_the_very_bytes_that_were_signed_are_sent(platform: Any, transport: str) -> None:
    assert call_over(platform, transport).is_ok
    ((path, headers, body),) = platform.seen
    assert path == "/?Action=StartVoiceChat&Version=2024-12-01"
    assert json.loads(body) == BODY
    assert "你好，世界😀".encode() in body
    assert headers["X-Content-Sha256"] == hashlib.sha256(body).hexdigest()
    found = re.fullmatch(
        r"HMAC-SHA256 Credential=AKLT-for-tests/(\d{8})/cn-north-1/rtc/request, "
        r"SignedHeaders=content-type;host;x-content-sha256;x-date, Signature=[0-9a-f]{64}",
        headers["Authorization"],
    )
    assert found and headers["X-Date"].startswith(found[1])
    again = volcengine_headers(
        method="POST",
        host=headers["Host"],
        query=[("Action", "StartVoiceChat"), ("Version", "2024-12-01")],
        headers={"Content-Type": headers["Content-Type"]},
        body=body,
        access_key=ACCESS,
        secret_key=SECRET,
        region="cn-north-1",
        service="rtc",
        now=dt.datetime.strptime(headers["X-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC),
    )
    assert again["Authorization"] == headers["Authorization"]


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_a_private_address_is_not_called(platform: Any, transport: str) -> None:
    with pytest.raises(errors.Misconfigured, match="address_refused"):
        call_over(platform, transport, allowed=False)
    assert platform.seen == []


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_a_platform_that_says_nothing_is_given_up(platform: Any, transport: str) -> None:
    done = threading.Event()
    platform.answer = lambda handler: done.wait(5)
    with pytest.raises(errors.TimedOut, match="timed_out_total"):
        call_over(platform, transport, seconds=0.2)
    done.set()


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_a_platform_that_drips_is_given_up(platform: Any, transport: str) -> None:
    done = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not done.wait(0.02):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    platform.answer = drip
    with pytest.raises(errors.TimedOut, match="timed_out_total"):
        call_over(platform, transport, seconds=0.3)
    done.set()


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_a_platform_that_hangs_up_may_have_acted(platform: Any, transport: str) -> None:
    platform.answer = lambda handler: handler.connection.shutdown(2)
    with pytest.raises(errors.ConnectFailed, match="no_answer"):
        call_over(platform, transport)


def test_nobody_there_is_another_thing_than_no_answer() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Recorder) as closed:
        address = f"127.0.0.1:{closed.server_address[1]}"
    policy = HttpPolicy(allowed_addresses=frozenset({address}))

    async def go() -> None:
        async with new_client(policy) as client:
            given = account(f"http://{address}")
            await call(given, "StopVoiceChat", {}, policy=policy, seconds=5, client=client)

    with pytest.raises(errors.ConnectFailed, match="connect_failed"):
        asyncio.run(go())


@pytest.mark.parametrize(
    ("status", "body", "code", "is_ok"),
    [
        (200, OK, None, True),
        (200, b'{"Result":{},"ResponseMetadata":{"RequestId":"r"}}', None, True),
        (200, b'{"Result":null,"ResponseMetadata":{"Error":{"Code":"InvalidParameter","Message":"m"}}}',
         "InvalidParameter", False),
        (200, b'{"ResponseMetadata":{"Error":{"CodeN":100004}}}', "100004", False),
        (200, b'{"ResponseMetadata":{"Error":"no"}}', "Error", False),
        (401, b'{"ResponseMetadata":{"Error":{"Code":"SignatureDoesNotMatch"}}}', "SignatureDoesNotMatch", False),
        (429, b'{"ResponseMetadata":{"RequestId":"r"}}', "Http429", False),
    ],
)  # fmt: skip
def test_an_envelope_is_understood_and_kept_verbatim(status: int, body: bytes, code: str, is_ok: bool) -> None:
    answer = ask(lambda request: answered(status, body))
    assert (answer.status, answer.body, answer.error_code, answer.is_ok) == (status, body, code, is_ok)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (502, b"<html><h1>502 Bad Gateway</h1></html>", "html_answer"),
        (200, b"\n <!doctype html>", "html_answer"),
        (200, b"", "not_an_envelope"),
        (200, b"{", "not_an_envelope"),
        (200, b"[]", "not_an_envelope"),
        (200, b'{"code":401,"message":"x"}', "not_an_envelope"),
        (200, b'{"ResponseMetadata":[]}', "not_an_envelope"),
        (200, b"[" * 100_000, "not_an_envelope"),
        (200, b"\xff\xfe", "not_an_envelope"),
    ],
)
def test_what_is_no_envelope_is_no_answer(status: int, body: bytes, code: str) -> None:
    with pytest.raises(errors.MalformedReply) as refusal:
        ask(lambda request: answered(status, body))
    assert (refusal.value.code, refusal.value.http_status) == (code, status)


def test_an_endless_answer_is_given_up() -> None:
    with pytest.raises(errors.ReplyTooLong):
        ask(lambda request: answered(200, b" " * (1024 * 1024 + 1)))


@pytest.mark.parametrize(
    "base_url",
    ["", "rtc.volcengineapi.com", "ftp://x.example", "https://u:p@x.example", "https://x.example/path",
     "https://x.example/?a=1", "https://", "https://x.example:99999", "https://x\n.example"],
)  # fmt: skip
def test_a_url_that_is_no_endpoint_is_not_called(base_url: str) -> None:
    with pytest.raises(errors.Misconfigured, match="bad_endpoint"):
        ask(lambda request: pytest.fail("called"), base_url=base_url)


@pytest.mark.parametrize("missing", ["access_key_id", "secret_key"])
def test_an_account_without_keys_is_not_called(missing: str) -> None:
    with pytest.raises(errors.Misconfigured, match="no_account_keys"):
        ask(lambda request: pytest.fail("called"), **{missing: Secret("")})


def test_a_session_token_is_signed_and_sent() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answered(200, OK)

    assert ask(handle, session_token=Secret("STS-temporary")).is_ok
    assert seen[0].headers["X-Security-Token"] == "STS-temporary"
    assert "x-date;x-security-token," in seen[0].headers["Authorization"]


@pytest.mark.parametrize("host", ["rtc.volcengineapi.com:443", "RTC.VolcEngineAPI.com"])
def test_the_signed_host_is_the_one_that_is_sent(host: str) -> None:
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Host"])
        return answered(200, OK)

    assert ask(handle, base_url=f"https://{host}").is_ok
    assert seen == ["rtc.volcengineapi.com"]


def test_no_key_shows_in_an_error_or_a_repr() -> None:
    def quote(request: httpx.Request) -> httpx.Response:
        return answered(500, f"<p>{request.headers['Authorization']} {SECRET}</p>".encode())

    with pytest.raises(errors.MalformedReply) as refusal:
        ask(quote)
    shown = f"{refusal.value!s} {refusal.value!r} {account()!r}"
    assert ACCESS not in shown and SECRET not in shown
