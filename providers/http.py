"""The shared HTTP client: which addresses it may reach, and how bytes come in.

Two transports behind httpx's interface, chosen by `HttpPolicy.transport`: "fast" is ours, an asyncio protocol
with httptools, made for many slow streams; "stock" is httpx's own. Both resolve a name once, refuse
addresses that are not public, and connect to the very address that was checked, so an answer that changes
between check and connection (DNS rebinding) changes nothing. Neither follows redirects or reads the
environment's proxies. Clocks beyond connecting belong to the clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.cookiejar
import ipaddress
import logging
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import certifi
import httptools
import httpx

from providers.errors import ConnectFailed, Misconfigured

# Extension keys of a request and of a response, next to httpx's own "timeout".
TRUSTED = "providers.trusted_address"  # the operator wrote this address into the environment: no guard
RELEASE = "providers.release"  # call it before aclose() when the reply is over, to keep the connection
READ = "providers.read"  # the next bytes of the body, b"" at its end: spares two generators for each read

_HIGH_WATER_BYTES = 64 * 1024
_HEAD_MAX_BYTES = 64 * 1024
_IDLE_MAX = 256  # kept connections per origin
_LINGER_SECONDS = 1.0
# Public by its number, and a cloud's metadata service all the same (Azure).
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """How this process may talk to providers.

    allowed_addresses holds "host:port" and "ip:port" (IPv6 in brackets) that the guard lets through although
    they are not public.
    """

    allowed_addresses: frozenset[str] = frozenset()
    connect_seconds: float = 10.0
    keepalive_seconds: float = 15.0
    transport: Literal["fast", "stock"] = "fast"


# --- which addresses -------------------------------------------------------------------------------------


def is_public(address: str) -> bool:
    """Return whether this is an address on the open internet, also behind IPv6's ways of wrapping IPv4."""
    try:
        ip: IPAddress = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        packed = ip.packed
        if inner is None and packed[:12] in (bytes.fromhex("0064ff9b") + bytes(8), bytes(12)):
            inner = ipaddress.IPv4Address(packed[12:])  # NAT64, and the old IPv4-compatible form
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip not in _METADATA


def check_addresses(host: str, port: int, found: list[str], allowed: frozenset[str]) -> list[str]:
    """Return the addresses among those found that may be connected to. Raises Misconfigured when none may."""
    if f"{_bracketed(host.lower())}:{port}" in allowed:
        return found
    good = [ip for ip in found if is_public(ip) or f"{_bracketed(ip)}:{port}" in allowed]
    if not good:
        raise Misconfigured(code="address_refused")
    return good


def resolve(host: str, port: int, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return the addresses of host that may be reached, blocking. Raises Misconfigured or ConnectFailed."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(code="name_not_found") from error
    return check_addresses(host, port, _unique(infos), allowed)


async def aresolve(host: str, port: int, allowed: frozenset[str] | None) -> list[str]:
    """Return the addresses of host that may be reached; allowed None trusts them all."""
    if _is_address(host):
        found = [host]
    else:
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(code="name_not_found") from error
        found = _unique(infos)
    return found if allowed is None else check_addresses(host, port, found, allowed)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _unique(infos: list[Any]) -> list[str]:
    """Return the addresses of getaddrinfo's answer, each once, in its order, with an IPv6 scope kept."""
    found: dict[str, None] = {}
    for _family, _type, _proto, _name, address in infos:
        scope = address[3] if len(address) > 3 else 0
        found[f"{address[0]}%{scope}" if scope and "%" not in address[0] else address[0]] = None
    return list(found)


# --- the fast transport ----------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection: one exchange at a time, body handed over read by read.

    Reading from the socket pauses while the consumer is more than 64 KiB behind.
    """

    def __init__(self, on_end: Callable[[_Connection], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.is_closed = False
        self.is_reused = False
        self.idle_since = 0.0
        self.in_pool = False
        self._on_end = on_end
        self._begin()

    def _begin(self) -> None:
        self.parser: Any = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_bytes = 0
        self.has_bytes = False
        self.has_head = False
        self.is_complete = False
        self.can_keep = False
        self.is_framed = False
        self.error: httpx.TransportError | None = None
        self.is_paused = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self.on_complete: Callable[[], None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self.in_pool:
            self.abort()  # nobody asked: whatever this is, it is not an answer to the next request
            return
        self.has_bytes = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.can_keep = False
            if not self.is_complete:
                self._fail(httpx.RemoteProtocolError("not an HTTP/1.1 answer"))
                return
        if not self.has_head:
            self.head_bytes += len(data)
            if self.head_bytes > _HEAD_MAX_BYTES:
                self._fail(httpx.RemoteProtocolError("the response head is too long"))
            return
        if self._body_bytes > _HIGH_WATER_BYTES and not self.is_paused and self.transport is not None:
            self.is_paused = True
            self.transport.pause_reading()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def eof_received(self) -> bool:
        self.is_closed = True
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._ended(exc)
        self._on_end(self)

    # httptools

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.can_keep = False  # a second answer to one question

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.has_head:
            return
        status = self.parser.get_status_code()
        if status < 200:  # 100 Continue and its like precede the answer
            self.headers = []
            return
        self.status = status
        self.can_keep = self.parser.should_keep_alive()
        self.is_framed = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        if self.is_complete:
            return
        self._body.append(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        if not self.has_head or self.is_complete:
            return
        self.is_complete = True
        if self.on_complete is not None:
            self.loop.call_soon(self.on_complete)

    # the exchange

    def send(self, data: bytes) -> None:
        """Begin an exchange by writing a request."""
        assert self.transport is not None
        self._begin()
        self.transport.write(data)

    async def head(self) -> None:
        """Wait for the response head. Raises httpx errors."""
        while not self.has_head:
            if self.error is not None:
                raise self.error
            waiter = self._waiter = self.loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None

    async def read(self) -> bytes:
        """Return what has arrived since the last read, or wait for it; b"" is the end of the body."""
        while True:
            body = self._body
            if body:
                data = body[0] if len(body) == 1 else b"".join(body)
                self._body = []
                self._body_bytes = 0
                return data
            if self.is_complete:
                return b""
            if self.error is not None:
                raise self.error
            if self.is_paused and self.transport is not None and not self.is_closed:
                self.is_paused = False
                self.transport.resume_reading()
            self._waiter = waiter = self.loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None

    def abort(self) -> None:
        """Close the socket now, whatever is in flight."""
        self.is_closed = True
        if self.transport is not None:
            self.transport.abort()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _ended(self, exc: Exception | None) -> None:
        if self.is_complete or self.error is not None:
            return
        if exc is None and self.has_head and not self.is_framed:
            self.is_complete = True  # a body that ends with its connection
            self.can_keep = False
            self._wake()
        elif exc is None:
            self._fail(httpx.RemoteProtocolError("the connection closed before the answer was whole"))
        else:
            self._fail(httpx.ReadError("the connection broke"))

    def _fail(self, error: httpx.TransportError) -> None:
        self.error = error
        self.can_keep = False
        self._wake()
        if self.transport is not None and not self.is_closed:
            self.transport.abort()


class _Body(httpx.AsyncByteStream):
    """The body of one response; closing it gives the connection back or ends it."""

    def __init__(self, connection: _Connection, give_back: Callable[[_Connection], None]) -> None:
        self._connection: _Connection | None = connection
        self._give_back = give_back
        self._linger = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        assert connection is not None
        read = connection.read
        while data := await read():
            yield data

    def release(self) -> None:
        """Say that the reply is over: the rest of the body is only its end, and worth a moment's wait."""
        self._linger = True

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.is_complete and connection.can_keep and not connection.is_closed:
            self._give_back(connection)
        elif self._linger and connection.can_keep and connection.is_framed and not connection.is_closed:
            _linger(connection, self._give_back)
        else:
            connection.abort()


def _linger(connection: _Connection, give_back: Callable[[_Connection], None]) -> None:
    """Keep the connection if its body ends within a second, else close it."""
    timer = connection.loop.call_later(_LINGER_SECONDS, connection.abort)

    def ended() -> None:
        if not timer.cancelled():
            timer.cancel()
            give_back(connection) if connection.can_keep and not connection.is_closed else connection.abort()

    connection.on_complete = ended


class FastTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 for streamed replies on asyncio and httptools; no limit on open connections."""

    def __init__(self, policy: HttpPolicy, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._ssl_context = ssl_context
        self._idle: dict[tuple[str, str, int, bool], deque[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return the response as soon as its head is there."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        key = (url.scheme, url.host, port, bool(request.extensions.get(TRUSTED)))
        data = await _request_bytes(request)
        timeout = (request.extensions.get("timeout") or {}).get("connect", self._policy.connect_seconds)
        connection = self._take_idle(key)
        while True:
            if connection is None:
                connection = await self._connect(key, timeout)
            try:
                connection.send(data)
                await connection.head()
                break
            except httpx.TransportError as error:
                connection.abort()
                if connection.is_reused and not connection.has_bytes:
                    connection = None  # it died in the pool: nobody has seen this request
                    continue
                error.request = request
                raise
            except BaseException:
                connection.abort()
                raise
        body = _Body(connection, lambda c: self._give_back(key, c))
        return httpx.Response(
            connection.status,
            headers=connection.headers,
            stream=body,
            extensions={"http_version": b"HTTP/1.1", RELEASE: body.release, READ: connection.read},
        )

    async def aclose(self) -> None:
        """Close all connections, also those in use."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        for connection in list(self._open):
            connection.in_pool = False
            connection.abort()
        await asyncio.sleep(0)  # let the transports run their connection_lost

    async def _connect(self, key: tuple[str, str, int, bool], timeout: float | None) -> _Connection:
        scheme, host, port, is_trusted = key
        loop = asyncio.get_running_loop()
        context: ssl.SSLContext | None = None
        if scheme == "https":
            context = self._ssl_context = self._ssl_context or default_ssl_context()
        try:
            async with asyncio.timeout(timeout):
                addresses = await aresolve(host, port, None if is_trusted else self._policy.allowed_addresses)
                for address, seconds in _shares(addresses, timeout):
                    try:
                        async with asyncio.timeout(seconds):
                            _, connection = await loop.create_connection(
                                lambda: _Connection(self._on_end),
                                address,
                                port,
                                ssl=context,
                                server_hostname=host if context is not None else None,
                            )
                        self._open.add(connection)
                        return connection
                    except (OSError, TimeoutError) as error:  # TLS failures are OSErrors too
                        if address == addresses[-1]:
                            if isinstance(error, TimeoutError):
                                raise
                            raise httpx.ConnectError("no connection") from error
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time") from error
        raise httpx.ConnectError("the name has no address")

    def _take_idle(self, key: tuple[str, str, int, bool]) -> _Connection | None:
        connections = self._idle.get(key)
        oldest = time.monotonic() - self._policy.keepalive_seconds
        while connections:
            connection = connections.pop()
            connection.in_pool = False
            if not connection.is_closed and connection.idle_since >= oldest:
                connection.is_reused = True
                return connection
            connection.abort()
        return None

    def _give_back(self, key: tuple[str, str, int, bool], connection: _Connection) -> None:
        connections = self._idle.setdefault(key, deque())
        if self._is_closed or connection.is_closed or len(connections) >= _IDLE_MAX:
            connection.abort()
            return
        if connection.is_paused and connection.transport is not None:
            connection.is_paused = False
            connection.transport.resume_reading()  # so that the end of an idle connection is seen
        connection.idle_since = time.monotonic()
        connection.in_pool = True
        connections.append(connection)
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(self._policy.keepalive_seconds, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long, and come back while there is any left."""
        self._sweeper = None
        now = time.monotonic()
        oldest = now - self._policy.keepalive_seconds
        first: float | None = None
        for key in list(self._idle):
            connections = self._idle[key]
            while connections and connections[0].idle_since <= oldest:
                connection = connections.popleft()
                connection.in_pool = False
                connection.abort()
            if not connections:
                del self._idle[key]
            else:
                since = connections[0].idle_since
                first = since if first is None else min(first, since)
        if first is not None:
            delay = max(first + self._policy.keepalive_seconds - now, 0.1)
            self._sweeper = asyncio.get_running_loop().call_later(delay, self._sweep)

    def _on_end(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if not connection.in_pool:
            return
        for connections in self._idle.values():
            with contextlib.suppress(ValueError):
                connections.remove(connection)
                return


async def _request_bytes(request: httpx.Request) -> bytes:
    """Return the request as it goes over the wire."""
    body = await request.aread()
    target = request.url.raw_path
    lines = [request.method.encode("ascii") + b" " + target + b" HTTP/1.1"]
    names = set()
    for name, value in request.headers.raw:
        if b"\n" in value or b"\r" in value or b"\0" in value:
            raise httpx.LocalProtocolError("a header value holds a line end", request=request)
        names.add(name.lower())
        lines.append(name + b": " + value)
    if b"host" not in names:
        lines.append(b"Host: " + request.url.netloc)
    return b"\r\n".join([*lines, b"", body])


def _shares(addresses: list[str], timeout: float | None) -> list[tuple[str, float | None]]:
    """Return each address with its share of the connect clock: one black hole must not eat the others' time."""
    share = timeout / len(addresses) if timeout is not None and addresses else None
    return [(address, share) for address in addresses]


def default_ssl_context() -> ssl.SSLContext:
    """Return a verifying TLS context with the system's authorities and certifi's (slim images have none)."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


# --- httpx's own transport, guarded ----------------------------------------------------------------------


class StockTransport(httpx.AsyncBaseTransport):
    """httpx's transport behind the same address guard.

    One inner transport per origin and address: httpx pools by address once the URL names it, and a TLS
    connection made for one name must not carry another's key.
    """

    def __init__(self, policy: HttpPolicy, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._ssl_context = ssl_context
        self._inner: dict[tuple[str, str, int, bool], httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to a checked address and return the response when its head is there."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        is_trusted = bool(request.extensions.get(TRUSTED))
        timeouts = dict(request.extensions.get("timeout") or {})
        connect_seconds = timeouts.get("connect", self._policy.connect_seconds)
        try:
            async with asyncio.timeout(connect_seconds):
                addresses = await aresolve(url.host, port, None if is_trusted else self._policy.allowed_addresses)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no address in time", request=request) from error
        key = (url.scheme, url.host, port, is_trusted)
        inner = self._inner.get(key)
        if inner is None:
            context = self._ssl_context = self._ssl_context or default_ssl_context()
            limits = httpx.Limits(
                max_connections=None,
                max_keepalive_connections=_IDLE_MAX,
                keepalive_expiry=self._policy.keepalive_seconds,
            )
            inner = httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)
            self._inner[key] = inner
        body = await request.aread()
        for address, seconds in _shares(addresses, connect_seconds):
            sent = httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers.raw,  # Host keeps the name
                content=body,
                extensions={
                    **request.extensions,
                    "sni_hostname": url.host,
                    "timeout": {**timeouts, "connect": seconds},
                },
            )
            try:
                return await inner.handle_async_request(sent)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise httpx.ConnectError("the name has no address", request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        for inner in self._inner.values():
            await inner.aclose()
        self._inner.clear()


# --- the client ------------------------------------------------------------------------------------------


def new_client(policy: HttpPolicy, *, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """Return a client that follows the policy; transport replaces the policy's own (tests)."""
    for name in ("httpx", "httpcore"):  # at INFO they log URLs
        logging.getLogger(name).setLevel(logging.WARNING)
    if transport is None:
        transport = FastTransport(policy) if policy.transport == "fast" else StockTransport(policy)
    client = httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=policy.connect_seconds),
        headers={"User-Agent": "chatsite", "Accept-Encoding": "identity"},
    )
    # One client serves all endpoints: a cookie set by one must never reach another.
    client.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return client


_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[HttpPolicy, httpx.AsyncClient]] = (
    weakref.WeakKeyDictionary()
)


def shared_client(policy: HttpPolicy) -> httpx.AsyncClient:
    """Return the one client of the running event loop for this policy."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    client = clients.get(policy)
    if client is None or client.is_closed:
        client = clients[policy] = new_client(policy)
    return client


async def close_shared_clients() -> None:
    """Close the clients of the running event loop; the last thing a process does with its loop."""
    for client in _clients.pop(asyncio.get_running_loop(), {}).values():
        await client.aclose()
