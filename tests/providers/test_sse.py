"""The event decoder: the standard's own examples, odd line ends, limits, and every way of cutting bytes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.errors import ReplyTooLong
from providers.sse import Event, EventDecoder, loads


def decode(*pieces: bytes, **options: int) -> list[Event]:
    """Return all events of these reads. Raises what the decoder failed with."""
    decoder = EventDecoder(**options)
    events = [event for piece in pieces for event in decoder.feed(piece)] + decoder.finish()
    if decoder.failure is not None:
        raise decoder.failure
    return events


def data(*pieces: bytes) -> list[bytes]:
    """Return the data of all events of these reads."""
    return [event.data for event in decode(*pieces)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        # https://html.spec.whatwg.org/multipage/server-sent-events.html, the examples of section 9.2.6
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         [b"first event", b"second event", b" third event"]),
        (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
        # blank data is no event for us (policy P 3)
        (b"data\n\ndata\ndata\n\ndata:", []),
        (b"retry: 10\nevent: x\n\n\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [b"a", b"b", b"c"]),
        (b"data: a\r\n\ndata: b\r\n\r", [b"a", b"b"]),
        ("data: 甲\u2028乙\u2029丙\u0085\x0b\x0c丁\n\n".encode(), ["甲\u2028乙\u2029丙\u0085\x0b\x0c丁".encode()]),
        (b"data: [DONE]", [b"[DONE]"]),
        (b"data: a\ndata: [DONE]\n\n", [b"a\n[DONE]"]),
        (b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n', [b'{"a":1}', b'{"b":2}', b"[DONE]"]),
    ],
)  # fmt: skip
def test_a_stream_gives_its_events_however_it_is_cut(stream: bytes, expected: list[bytes]) -> None:
    assert data(stream) == expected
    assert data(*(stream[i : i + 1] for i in range(len(stream)))) == expected
    for offset in range(len(stream)):
        assert data(stream[:offset], stream[offset:]) == expected


PARTS = [b"data: ", b"data:", b"{}", b'{"a":"\xe4\xbd\xa0"}', b"[DONE]", b"\n", b"\r", b"\r\n", b"\n\n", b":"]
PARTS += [b"event: x", b"\xef\xbb\xbf", b" ", b"a", b"\xff"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PARTS), max_size=30), st.lists(st.integers(0, 120), max_size=8))
def test_any_bytes_cut_anywhere_give_the_same_events(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    assert decode(*(stream[a:b] for a, b in pairwise(edges))) == decode(stream)


def test_an_event_has_its_name() -> None:
    assert decode(b"event: error\ndata: x\n\ndata: y\n\n") == [Event(b"x", "error"), Event(b"y")]


def test_events_come_with_the_read_that_completes_them() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\ndata: b\n\nda") == [Event(b"a"), Event(b"b")]
    assert decoder.feed(b"ta: c\r\n\r") == [Event(b"c")]
    assert decoder.feed(b"\ndata: [DONE]\n") == [Event(b"[DONE]")]


def test_a_server_without_blank_lines_is_not_held_back() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b'data: {"a":1}\n') == []
    assert decoder.feed(b'data: {"a":2}\n') == [Event(b'{"a":1}')]


def test_the_tail_is_marked() -> None:
    assert decode(b'data: {"a"') == [Event(b'{"a"', is_tail=True)]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * 2000 + b"\n\n"],
        [b"x" * 600, b"x" * 600],
        [b"data: a\n" + b"x" * 1200],
        [b"data: a\n"] + [b"data: " + b"y" * 300 + b"\n"] * 4,
        [b": " + b"z" * 2000 + b"\n"],
    ],
)
def test_a_line_or_event_over_the_limit_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(ReplyTooLong):
        decode(*pieces, line_max_bytes=1000)


def test_what_came_before_a_line_over_the_limit_counts() -> None:
    decoder = EventDecoder(line_max_bytes=100)
    assert decoder.feed(b"data: a\n\ndata: " + b"x" * 200 + b"\n\n") == [Event(b"a")]
    assert decoder.failure is not None
    assert (decoder.feed(b"data: b\n\n"), decoder.finish()) == ([], [])


def test_many_small_events_are_not_a_long_line() -> None:
    assert len(decode(b"data: x\n\n" * 5000, line_max_bytes=1000)) == 5000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":"\\ud800"}', {"a": "\ud800"}),
        (b'{"a":"b\xffd"}', {"a": "b\ufffdd"}),
        (b'{"a":Infinity}', {"a": float("inf")}),
        ('{"a":"你好"}'.encode(), {"a": "你好"}),
    ],
)
def test_json_that_strict_parsers_refuse_is_read(text: bytes, value: object) -> None:
    assert loads(text) == value


@pytest.mark.parametrize("text", [b"{", b"", b"[" * 100_000, b"{not json}"])
def test_what_is_not_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        loads(text)
