"""The benchmarks' own client must be right before it may judge the product."""

import asyncio
import contextlib
import json
import socket
import threading
from itertools import accumulate
from typing import Any

import pytest

from benchmarks.lib.http import ResponseReader
from benchmarks.lib.sse import EventDecoder, Piece, Reading, read_stream

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-Message-Id: 812\r\n"
    b"X-User-Message-Id: 811\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def event(offset: int, name: str, payload: object) -> bytes:
    data = json.dumps(payload, ensure_ascii=False)
    return f"id: 812-{offset}\nevent: {name}\ndata: {data}\n\n".encode()


def done(offset: int) -> bytes:
    payload = {"messageId": 812, "createdAt": "2026-11-20T08:14:05+08:00", "status": "complete"}
    return event(offset, "done", {**payload, "finishReason": "stop", "usage": None, "referenceCard": None})


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


REPLY = (b": ok\n\n", event(2, "message", {"token": "你好"}), event(4, "message", {"token": "😀\n"}), done(4))


def piece_of(*parts: bytes) -> Piece:
    """Return what a client would make of these body bytes."""
    piece, decoder = Piece(status=200, headers={"x-message-id": "812"}), EventDecoder()
    piece.events = decoder.feed(b"".join(parts))
    piece.violations = decoder.violations
    return piece


def read_from(raw: bytes, **how: Any) -> Piece:
    """Return the piece that `read_stream` makes of a server that says these bytes and hangs up."""

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection, contextlib.suppress(ConnectionError):
                connection.recv(65536)
                connection.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        piece = asyncio.run(read_stream(server.getsockname(), "GET", "/", timeout=5, **how))
        thread.join()
        return piece


def test_a_chunked_response_is_the_same_whole_and_byte_by_byte() -> None:
    raw = HEAD + chunked(*REPLY)
    whole, split = ResponseReader(), ResponseReader()
    body = whole.feed(raw)
    assert body == b"".join(REPLY)
    assert b"".join(split.feed(raw[i : i + 1]) for i in range(len(raw))) == body
    assert (split.status, split.headers, split.is_finished) == (whole.status, whole.headers, True)
    assert split.chunk_ends == whole.chunk_ends == list(accumulate(map(len, REPLY)))


def test_a_response_with_a_length_ends_there() -> None:
    response = ResponseReader()
    assert response.feed(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}") == b"{}"
    assert response.is_finished


def test_a_whole_stream_is_read_without_a_violation() -> None:
    piece = read_from(HEAD + chunked(*REPLY))
    assert (piece.ended, piece.status, piece.message_id, piece.text) == ("finished", 200, 812, "你好😀\n")
    assert piece.violations == []


@pytest.mark.parametrize("count", range(0, len(HEAD + chunked(*REPLY)), 7))
def test_a_cut_shows_exactly_the_bytes_before_it_and_the_rest_completes_it(count: int) -> None:
    piece = read_from(HEAD + chunked(*REPLY), cut_after_bytes=count)
    assert (piece.ended, piece.received_bytes) == ("cut", count)
    reading = Reading(message_id=812)
    reading.absorb(piece, start=0)
    assert "你好😀\n".startswith(reading.text)
    rest = "你好😀\n"[len(reading.text) :]
    reading.absorb(
        piece_of(*([event(4, "message", {"token": rest})] if rest else []), done(4)), start=len(reading.text)
    )
    assert (reading.text, reading.status(), reading.violations) == ("你好😀\n", "complete", [])


def test_a_stream_that_ends_without_a_terminal_event_is_no_answer() -> None:
    piece = read_from(HEAD + chunked(*REPLY[:-1]))
    assert (piece.ended, piece.terminal, piece.violations) == ("finished", None, [])


def test_a_connection_that_is_cut_off_is_not_finished() -> None:
    piece = read_from(HEAD + chunked(*REPLY)[:40])
    assert (piece.ended, piece.terminal, piece.violations) == ("eof", None, [])


def test_a_write_that_ends_inside_an_event_is_a_violation() -> None:
    parts = (REPLY[1][:20], REPLY[1][20:] + REPLY[2] + REPLY[3])
    assert read_from(HEAD + chunked(*parts)).violations == ["a write that ends inside an event"]


@pytest.mark.parametrize(
    ("parts", "breach"),
    [
        ((event(3, "message", {"token": "你好"}),), "id 812-3 where 812-2 belongs"),
        (
            (event(2, "message", {"token": "你好"}), event(2, "message", {"token": "你好"})),
            "id 812-2 where 812-4 belongs",
        ),
        ((event(0, "message", {"token": ""}),), "an empty token at 812-0"),
    ],
)
def test_ids_that_do_not_count_characters_are_violations(parts: tuple[bytes, ...], breach: str) -> None:
    reading = Reading()
    reading.absorb(piece_of(*parts), start=0)
    assert reading.violations == [breach]


def test_a_replay_that_says_something_else_is_a_violation() -> None:
    reading = Reading(message_id=812, text="你坏")
    reading.absorb(piece_of(event(2, "message", {"token": "你好"})), start=0)
    assert reading.violations == ["replayed text differs before 812-2: '你坏' became '你好'"]


def test_an_end_that_changes_is_a_violation() -> None:
    reading = Reading(text="你好")
    reading.absorb(piece_of(done(2)), start=2)
    error = {
        "message": "x",
        "code": "interrupted",
        "retryable": True,
        "messageId": 812,
        "status": "interrupted",
    }
    reading.absorb(piece_of(event(2, "error", {**error, "savedChars": 2})), start=2)
    assert [breach.partition(":")[0] for breach in reading.violations] == ["the end changed"]


def test_raw_line_separators_are_violations() -> None:
    decoder = EventDecoder()
    decoder.feed(event(1, "message", {"token": "\u2028"}))
    assert len(decoder.violations) == 1
