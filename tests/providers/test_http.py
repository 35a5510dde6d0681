"""The shared client: the address guard, connections that are kept or closed, pausing, TLS; both transports."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from providers import http
from providers.clients.openai_chat import OpenAIChatProvider
from providers.errors import ConnectFailed, Misconfigured
from providers.http import (
    FastTransport,
    HttpPolicy,
    StockTransport,
    check_addresses,
    is_public,
    new_client,
    resolve,
)
from providers.types import ChatMessage, ChatRequest, Delta
from tests.fakes.provider import FakeProvider, expected_text
from tests.providers.conftest import Transport, collect

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """Serve raw TCP for the length of the block and give the port; connections end with it."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Return one request, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")), 0
    )
    return head + await reader.readexactly(length)


def eventually(claim: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until the claim is true; fail when it never is."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def client_for(transport: Transport, port: int, **policy: Any) -> httpx.AsyncClient:
    """Return a client that may reach this port."""
    allowed = frozenset({f"127.0.0.1:{port}"})
    return new_client(HttpPolicy(allowed_addresses=allowed, transport=transport, **policy))


# --- the guard


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "100.100.100.200", "0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1",
        "198.18.0.1", "168.63.129.16", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:f5ff:fffe", "::127.0.0.1", "2001:db8::1",
        "not an address", "",
    ],
)  # fmt: skip
def test_an_address_that_is_not_the_open_internet_is_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(Misconfigured):
        check_addresses("api.example.com", 443, [address], frozenset())


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "203.107.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_a_public_address_is_let_through(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "::1"])
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises((Misconfigured, ConnectFailed)):
        resolve(host, 80)


@pytest.mark.parametrize("entry", ["localhost:8080", "127.0.0.1:8080"])
def test_the_allow_list_names_host_and_port_or_address_and_port(entry: str) -> None:
    assert check_addresses("localhost", 8080, ["127.0.0.1"], frozenset({entry})) == ["127.0.0.1"]
    with pytest.raises(Misconfigured):
        check_addresses("localhost", 8081, ["127.0.0.1"], frozenset({entry}))
    with pytest.raises(Misconfigured):
        check_addresses("other", 8080, ["127.0.0.2"], frozenset({entry}))


def test_the_allow_list_knows_ipv6_in_brackets() -> None:
    assert check_addresses("::1", 80, ["::1"], frozenset({"[::1]:80"})) == ["::1"]


def test_of_mixed_answers_only_the_public_are_used() -> None:
    assert check_addresses("x.example", 443, ["10.0.0.1", "8.8.8.8"], frozenset()) == ["8.8.8.8"]


def test_the_address_that_was_checked_is_the_one_connected_to(transport: Transport) -> None:
    """DNS rebinding: the name answers otherwise each time it is asked, and is asked once for a connection."""
    asked: list[str] = []
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_request(reader))
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        writer.close()

    async def go() -> None:
        loop = asyncio.get_running_loop()

        async def getaddrinfo(host: Any, port: Any, **kwargs: Any) -> list[Any]:
            if str(host) == "rebind.test":
                asked.append(host)
                host = "127.0.0.1" if len(asked) == 1 else "127.0.0.9"
            return [(2, 1, 6, "", (host, port))]

        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment]
        async with listening(handler) as port, client_for(transport, port) as client:
            assert (await client.post(f"http://rebind.test:{port}/v1")).text == "ok"
            assert len(asked) == 1
            assert f"host: rebind.test:{port}".encode() in heads[0].lower()
            with pytest.raises(Misconfigured):
                await client.post(f"http://rebind.test:{port}/v1")

    asyncio.run(go())
    assert (len(asked), len(heads)) == (2, 1)


def test_a_private_address_is_refused_before_anything_is_sent(transport: Transport, fake: FakeProvider) -> None:
    fake.reset()

    async def go() -> None:
        async with new_client(HttpPolicy(transport=transport)) as client:
            provider = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            answer = await collect(provider, "你好")
            assert isinstance(answer.error, Misconfigured)
            assert answer.error.code == "address_refused"

    asyncio.run(go())
    assert fake.stats()["requests"] == 0


def test_trust_of_one_endpoint_opens_no_connection_to_another(transport: Transport, fake: FakeProvider) -> None:
    async def go() -> None:
        async with new_client(HttpPolicy(transport=transport)) as client:
            trusted = OpenAIChatProvider(
                base_url=fake.base_url, model="m", is_trusted_address=True, client=lambda: client
            )
            staff = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            assert (await collect(trusted, "你好")).error is None
            assert isinstance((await collect(staff, "你好")).error, Misconfigured)

    asyncio.run(go())


# --- requests and connections


def test_a_request_goes_out_whole_and_once(transport: Transport) -> None:
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    async def go() -> None:
        async with listening(handler) as port, client_for(transport, port) as client:
            response = await client.post(f"http://127.0.0.1:{port}/v1/x?y=%20z", content="你好".encode())
            assert (response.status_code, response.text) == (200, "ok")
            head, _, body = seen[0].partition(b"\r\n\r\n")
            assert head.startswith(b"POST /v1/x?y=%20z HTTP/1.1\r\n")
            lines = [line.lower() for line in head.split(b"\r\n")]
            assert lines.count(f"host: 127.0.0.1:{port}".encode()) == 1
            assert b"accept-encoding: identity" in lines
            assert b"content-length: 6" in lines
            assert body == "你好".encode()

    asyncio.run(go())


def test_a_prompt_is_let_go_of_while_its_answer_comes(fake: FakeProvider) -> None:
    asked: list[weakref.ref[httpx.Request]] = []

    async def hook(request: httpx.Request) -> None:
        asked.append(weakref.ref(request))

    async def go() -> None:
        async with client_for("fast", fake.port) as client:
            client.event_hooks["request"].append(hook)
            provider = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            request = ChatRequest((ChatMessage("user", "[[n=5 gap=50]]"),))
            async with aclosing(provider.stream(request)) as items:
                await anext(items)
                assert [ref() for ref in asked] == [None]

    asyncio.run(go())


def test_a_connection_is_kept_for_the_next_request(transport: Transport, fake: FakeProvider) -> None:
    async def go() -> int:
        before = fake.stats()["connections"]
        async with client_for(transport, fake.port) as client:
            provider = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            for _ in range(5):
                assert (await collect(provider, "[[n=3]]")).error is None
                await asyncio.sleep(0.05)
        return int(fake.stats()["connections"]) - before - 1  # stats itself connects

    assert asyncio.run(go()) <= (1 if transport == "fast" else 5)


def test_a_connection_that_died_in_the_pool_is_replaced_silently(transport: Transport) -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(OK)  # keep-alive, says the answer
        await writer.drain()
        writer.close()

    async def go() -> None:
        async with listening(handler) as port, client_for(transport, port) as client:
            for _ in range(3):
                assert (await client.post(f"http://127.0.0.1:{port}/", content=b"x")).text == "ok"
                await asyncio.sleep(0.02)

    asyncio.run(go())
    assert connections == 3


def test_a_pooled_connection_that_dies_on_use_is_retried_once_before_any_answer() -> None:
    """The race a keep-alive pool always has: the server closes while the next request is on its way."""
    requests: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = len(requests)
        requests.append(0)
        while True:
            await read_request(reader)
            requests[mine] += 1
            if mine == 0 and requests[mine] == 2:
                writer.close()
                return
            writer.write(OK)

    async def go() -> None:
        async with listening(handler) as port, client_for("fast", port) as client:
            for _ in range(2):
                assert (await client.post(f"http://127.0.0.1:{port}/", content=b"x")).text == "ok"

    asyncio.run(go())
    assert requests == [2, 1]


def test_a_fresh_connection_that_dies_is_not_retried(transport: Transport) -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.close()

    async def go() -> None:
        async with listening(handler) as port, client_for(transport, port) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(f"http://127.0.0.1:{port}/", content=b"x")

    asyncio.run(go())
    assert connections == 1


def test_an_idle_connection_is_closed_after_a_while(transport: Transport, fake: FakeProvider) -> None:
    async def go() -> None:
        async with client_for(transport, fake.port, keepalive_seconds=0.2) as client:
            open_before = fake.stats()["open_connections"]
            assert (await client.post(f"{fake.base_url}/nothing", content=b"x")).status_code == 404
            await asyncio.sleep(0.6)
            if transport == "stock":  # httpcore closes expired connections when it is next used
                return
            assert fake.stats()["open_connections"] == open_before

    asyncio.run(go())


def test_an_answer_nobody_asked_for_does_not_reach_the_next_request() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + OK.replace(b"ok", b"NO"))
        await writer.drain()
        await read_request(reader)
        writer.write(OK.replace(b"ok", b"NO"))

    async def go() -> None:
        async with listening(handler) as port, client_for("fast", port) as client:
            for _ in range(3):
                assert (await client.post(f"http://127.0.0.1:{port}/", content=b"x")).text == "ok"

    asyncio.run(go())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil close", "until close"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", "old"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "x"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nab\r\n1\r\nc\r\n0\r\nT: x\r\n\r\n",
            "abc",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
    ],
)
def test_every_framing_of_a_body_is_read(transport: Transport, answer: bytes, body: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for position in range(len(answer)):
            writer.write(answer[position : position + 1])
            await asyncio.sleep(0)
        writer.close()

    async def go() -> None:
        async with listening(handler) as port, client_for(transport, port) as client:
            assert (await client.post(f"http://127.0.0.1:{port}/", content=b"x")).text == body

    asyncio.run(go())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200_000,
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_a_broken_answer_is_an_httpx_error(transport: Transport, answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def go() -> None:
        async with listening(handler) as port, client_for(transport, port) as client:
            with pytest.raises(httpx.TransportError):
                await client.post(f"http://127.0.0.1:{port}/", content=b"x")

    asyncio.run(go())


def test_a_line_end_in_a_header_is_refused() -> None:
    async def go() -> None:
        async with client_for("fast", 1) as client:
            with pytest.raises(httpx.LocalProtocolError):
                await client.post("http://127.0.0.1:1/", headers=[(b"X-Key", b"a\r\nX-Evil: b")])

    asyncio.run(go())


def closed_after_ms(fake: FakeProvider, since: float) -> float:
    """Return how long after this moment the provider saw its one client go."""
    eventually(lambda: fake.stats()["closed_by_client_count"] == 1)
    [gone] = fake.stats()["closed_by_client"]
    return float(gone["unix_ms"]) - since * 1000


def test_closing_a_stream_closes_its_socket_at_once(transport: Transport, fake: FakeProvider) -> None:
    async def go() -> None:
        async with client_for(transport, fake.port) as client:
            provider = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            stream = provider.stream(ChatRequest((ChatMessage("user", "[[n=1000 rate=20]]"),)))
            async with aclosing(stream):
                assert isinstance(await anext(stream), Delta)
                began = time.time()
            assert await asyncio.to_thread(closed_after_ms, fake, began) < 500

    fake.reset()
    asyncio.run(go())


def test_cancelling_the_reader_closes_its_socket_at_once(transport: Transport, fake: FakeProvider) -> None:
    async def go() -> None:
        async with client_for(transport, fake.port) as client:
            provider = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            task = asyncio.create_task(collect(provider, "[[fault=stall]]"))
            await asyncio.to_thread(eventually, lambda: fake.stats()["tokens"] == 3)
            began = time.time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(closed_after_ms, fake, began) < 500

    fake.reset()
    asyncio.run(go())


def test_a_reader_that_does_not_pull_pauses_the_provider(transport: Transport, fake: FakeProvider) -> None:
    def it_stands_still() -> bool:
        before = fake.stats()["bytes_sent"]
        time.sleep(0.4)
        return bool(before == fake.stats()["bytes_sent"])

    async def go() -> str:
        async with client_for(transport, fake.port) as client:
            provider = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            stream = provider.stream(ChatRequest((ChatMessage("user", "[[fault=endless]]"),)))
            async with aclosing(stream):
                first = await anext(stream)
                assert isinstance(first, Delta)
                await asyncio.to_thread(eventually, it_stands_still)
                text = first.text
                while len(text) < 60_000:
                    item = await anext(stream)
                    assert isinstance(item, Delta)
                    text += item.text
        return text

    fake.reset()
    text = asyncio.run(go())
    assert expected_text(1, 60_000).startswith(text[:60_000])


def test_there_is_no_limit_of_a_hundred_connections(transport: Transport, fake: FakeProvider) -> None:
    async def go() -> None:
        async with client_for(transport, fake.port) as client:
            provider = OpenAIChatProvider(base_url=fake.base_url, model="m", client=lambda: client)
            tasks = [asyncio.create_task(collect(provider, "[[fault=stall]]")) for _ in range(150)]
            await asyncio.to_thread(eventually, lambda: fake.stats()["open_streams"] == 150)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    fake.reset()
    asyncio.run(go())


# --- TLS


def certificate(directory: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Return a self-signed certificate file for this name, and a server context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


@pytest.mark.parametrize(("asked", "is_good"), [("localhost", True), ("127.0.0.1", False)])
def test_tls_checks_the_name_and_not_the_address(
    transport: Transport, tmp_path: Path, asked: str, is_good: bool
) -> None:
    path, server_context = certificate(tmp_path, "localhost")
    names: list[str] = []
    server_context.sni_callback = lambda _s, name, _c: names.append(name)
    trusted = ssl.create_default_context(cafile=str(path))

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)

    async def go() -> None:
        async with listening(handler, ssl=server_context) as port:
            policy = HttpPolicy(allowed_addresses=frozenset({f"{asked}:{port}"}), transport=transport)
            kind = FastTransport if transport == "fast" else StockTransport
            async with new_client(policy, transport=kind(policy, ssl_context=trusted)) as client:
                if is_good:
                    response = await client.post(f"https://{asked}:{port}/", content=b"x")
                    assert (response.text, names) == ("ok", ["localhost"])
                else:
                    with pytest.raises(httpx.ConnectError):
                        await client.post(f"https://{asked}:{port}/", content=b"x")

    asyncio.run(go())


def test_an_unknown_authority_is_refused(transport: Transport, tmp_path: Path) -> None:
    _, server_context = certificate(tmp_path, "localhost")

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async def go() -> None:
        async with listening(handler, ssl=server_context) as port:
            policy = HttpPolicy(allowed_addresses=frozenset({f"localhost:{port}"}), transport=transport)
            async with new_client(policy) as client:
                with pytest.raises(httpx.ConnectError):
                    await client.post(f"https://localhost:{port}/", content=b"x")

    asyncio.run(go())


# --- the client


def test_the_client_takes_nothing_from_the_environment_and_keeps_no_cookies(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b; Path=/\r\n\r\n"))

    async def go() -> None:
        async with listening(handler) as port, client_for(transport, port) as client:
            for _ in range(2):
                assert (await client.post(f"http://127.0.0.1:{port}/", content=b"x")).status_code == 200

    asyncio.run(go())
    assert len(seen) == 2
    assert not any(b"cookie" in request.lower() for request in seen)


def test_urls_are_not_logged(transport: Transport, fake: FakeProvider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def go() -> None:
        async with client_for(transport, fake.port) as client:
            await client.post(f"{fake.base_url}/chat/completions?secret=1", content=b"{}")

    asyncio.run(go())
    assert "secret" not in caplog.text


def test_one_client_serves_one_loop() -> None:
    policy = HttpPolicy()

    async def go() -> httpx.AsyncClient:
        client = http.shared_client(policy)
        assert http.shared_client(policy) is client
        await http.close_shared_clients()
        assert client.is_closed
        assert http.shared_client(policy) is not client
        await http.close_shared_clients()
        return client

    assert asyncio.run(go()) is not asyncio.run(go())
