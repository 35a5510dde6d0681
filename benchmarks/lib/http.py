"""A small HTTP/1.1 client on raw asyncio sockets: it sees every byte and can stop at any of them."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

Address = tuple[str, int]
CONNECT_SECONDS = 5.0


class BadResponse(Exception):
    """The peer sent bytes that are not an HTTP/1.1 response."""


class ResponseReader:
    """Feed it bytes in any portions; it knows the head, and gives back the decoded body as it comes."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.is_finished = False
        self.chunk_ends: list[int] = []
        self._buffer = bytearray()
        self._left: int | None = None
        self._is_chunked = False
        self._body_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body that these bytes complete."""
        self._buffer += data
        if self.status is None and not self._read_head():
            return b""
        return self._read_chunks() if self._is_chunked else self._read_plain()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *rest = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        if not first.startswith("HTTP/1.1 "):
            raise BadResponse(first[:80])
        for line in rest:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.status = int(first.split(" ", 2)[1])
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if not self._is_chunked and "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
        if self.status in (204, 304):
            self._left = 0
        return True

    def _read_plain(self) -> bytes:
        body = bytes(self._buffer if self._left is None else self._buffer[: self._left])
        self._buffer.clear()
        if self._left is not None:
            self._left -= len(body)
            self.is_finished = self._left == 0
        return body

    def _read_chunks(self) -> bytes:
        out = bytearray()
        while not self.is_finished:
            if self._left is None:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    break
                self._left = int(bytes(self._buffer[:end]).split(b";")[0], 16) + 2
                del self._buffer[: end + 2]
                if self._left == 2:
                    self.is_finished = True
                    break
            payload = min(len(self._buffer), max(self._left - 2, 0))
            out += self._buffer[:payload]
            taken = min(len(self._buffer), self._left)
            del self._buffer[:taken]
            self._left -= taken
            if self._left:
                break
            self._left = None
            self.chunk_ends.append(self._body_bytes + len(out))
        self._body_bytes += len(out)
        return bytes(out)


@dataclass
class Answer:
    """One whole response."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """Return the body as JSON, or None when it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def code(self) -> str:
        """The stable word of a problem+json answer, or an empty string."""
        value = self.json()
        return str(value.get("code", "")) if isinstance(value, dict) else ""


def request_bytes(method: str, path: str, headers: dict[str, str], body: bytes | None) -> bytes:
    """Return the request as it goes on the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


async def connect(
    address: Address, *, receive_bytes: int | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connected pair; `receive_bytes` makes the kernel's receive buffer small, for slow readers."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock)


def cut(writer: asyncio.StreamWriter, *, is_reset: bool = False) -> None:
    """Close the connection now: politely with FIN, or with RST as a phone that lost its network."""
    if is_reset:
        sock = writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if is_reset else writer.close()


async def fetch(
    address: Address,
    method: str,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    payload: object | None = None,
    timeout: float = 30.0,
) -> Answer:
    """Return the whole response of one request on its own connection.

    Raises: OSError when the peer refuses or cuts, TimeoutError, BadResponse.
    """
    body = None if payload is None else json.dumps(payload, ensure_ascii=False).encode()
    async with asyncio.timeout(timeout):
        reader, writer = await connect(address)
        try:
            writer.write(request_bytes(method, path, headers or {}, body))
            response = ResponseReader()
            parts = bytearray()
            while not response.is_finished:
                data = await reader.read(65536)
                if not data:
                    break
                parts += response.feed(data)
        finally:
            writer.close()
    is_whole = response.is_finished or not ({"content-length", "transfer-encoding"} & set(response.headers))
    if response.status is None or not is_whole:
        raise ConnectionResetError("the connection ended inside the response")
    return Answer(response.status, response.headers, bytes(parts))
