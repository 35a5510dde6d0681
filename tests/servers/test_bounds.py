"""What a client may do to one connection before it is refused, over real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.serving import Server, serving

pytestmark = pytest.mark.servers

HEAD = b"POST /api/auth/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = b"a" * 65536
Talk = Callable[[Iterable[bytes]], bytes]


@pytest.fixture(scope="module")
def hasty(serving_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives a request one second to arrive."""
    log: Path = tmp_path_factory.mktemp("hasty") / "server.log"
    with serving("uvicorn", serving_database, log, REQUEST_READ_SECONDS="1") as server:
        yield server


@pytest.fixture
def talk(hasty: Server) -> Iterator[Talk]:
    """Return a function that sends pieces over one connection, and returns all that comes back."""
    host, _, port = hasty.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:

        def say(pieces: Iterable[bytes]) -> bytes:
            heard = b""
            try:
                for piece in pieces:
                    connection.sendall(piece)
                while part := connection.recv(65536):
                    heard += part
            except ConnectionError:
                pass  # refused while we were still talking
            return heard

        yield say


def problem(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    document = json.loads(body)
    assert b"x-request-id: " + document["requestId"].encode() in head
    return int(head.split()[1]), document["code"]


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"GET /livez HTTP/1.1\r\nX-Long: ", PIECE),
        (b"GET /livez HTTP/1.1\r\n", b"X-Many: 1\r\n" * 6000),
        (b"GET /", PIECE),
        (b"GET /livez?", PIECE),
        (CHUNKED + b"2;", PIECE),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-Trailer: 1\r\n" * 6000),
    ],
    ids=["header", "headers", "path", "query", "chunk extension", "trailers"],
)
def test_an_endless_head_is_refused(talk: Talk, first: bytes, piece: bytes) -> None:
    answer = talk([first, *[piece] * 50])
    # A client that goes on talking may lose the answer to a reset; the connection ends either way.
    assert answer == b"" or problem(answer) == (431, "head_too_large")


def test_a_head_too_large_is_told_so(talk: Talk) -> None:
    many = b"X-Many: 1\r\n" * 6500
    assert problem(talk([b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + many])) == (431, "head_too_large")


def test_a_large_head_that_browsers_may_send_is_fine(talk: Talk) -> None:
    cookie = b"Cookie: a=" + b"b" * 32_000 + b"\r\n"
    answer = talk([b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + cookie + b"\r\n"])
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_request_that_is_none_is_a_problem(talk: Talk) -> None:
    assert problem(talk([b"\x16\x03\x01 hello\r\n\r\n"])) == (400, "bad_request")


def test_half_a_head_is_not_waited_for(talk: Talk) -> None:
    assert problem(talk([b"GET /livez HTTP/1.1\r\nHost: loc"])) == (408, "request_timeout")


def test_half_a_body_is_not_waited_for(talk: Talk) -> None:
    assert problem(talk([HEAD + b"Content-Length: 20\r\n\r\n", b'{"user'])) == (408, "request_timeout")


def test_a_silent_connection_is_closed(talk: Talk) -> None:
    assert talk([]) == b""


def test_a_body_in_single_bytes_is_taken(talk: Talk) -> None:
    body = json.dumps({"username": "爱" * 3000}).encode()
    pieces = [b"1\r\n" + body[at : at + 1] + b"\r\n" for at in range(len(body))]
    answer = talk([CHUNKED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), b"".join(pieces), b"0\r\n\r\n"])
    assert problem(answer) == (422, "invalid")


def test_some_requests_may_be_sent_ahead_but_not_thousands(talk: Talk, hasty: Server) -> None:
    ask = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
    answer = talk([(ask + b"\r\n") * 20 + ask + b"Connection: close\r\n\r\n"])
    assert answer.count(b"HTTP/1.1 200 OK") == 21
    with socket.create_connection(hasty.url.removeprefix("http://").split(":"), timeout=10) as connection:  # type: ignore[arg-type]
        connection.sendall((ask + b"\r\n") * 5000)
        heard = b""
        try:
            while part := connection.recv(65536):
                heard += part
        except ConnectionError:
            pass
    assert heard.count(b"HTTP/1.1 200 OK") < 200
