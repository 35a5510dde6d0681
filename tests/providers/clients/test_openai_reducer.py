"""Policy P against every kept byte stream of WIRE 4: whole, as given, byte by byte, cut in two anywhere."""

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from providers.clients.openai_reducer import Reducer

CORPUS = Path(__file__).parents[2] / "wire" / "sse_corpus"
CASES = [
    case
    for path in sorted(CORPUS.glob("*.json"))
    if (case := json.loads(path.read_text()))["protocol"] == "openai_chat"
]


def reduce(case: dict[str, Any], pieces: list[bytes], *, is_short_way: bool = False) -> dict[str, Any]:
    """Return what the reducer makes of these reads, in the corpus's own words.

    is_short_way: reads that are one ordinary token are taken as such.
    """
    reducer = Reducer()
    tokens: list[str] = []
    reasoning = ""
    text = ""

    def take(last: bool = False) -> None:
        nonlocal reasoning, text
        tokens.extend(reducer.texts)
        delta = reducer.take_last() if last else reducer.take()
        if delta is not None:
            text += delta.text
            reasoning += delta.reasoning

    for piece in pieces:
        if is_short_way and (plain := reducer.plain_text(piece)) is not None:
            tokens.append(plain)
            text += plain
            continue
        reducer.feed(piece)
        take()
    reducer.finish()
    take(last=True)
    return {
        "tokens": tokens,
        "text": text,
        "reasoning": reasoning,
        "tool_calls": [
            {"index": c.index, "id": c.id, "name": c.name, "arguments": c.arguments} for c in reducer.tool_calls
        ],
        "finish_reason": reducer.finish_reason,
        "usage": reducer.usage,
        "error": reducer.error,
        "done": reducer.done,
        "malformed_events": reducer.malformed_events,
        "complete": reducer.is_complete,
    }


def expected(case: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """Return the corpus's expectation for the words that the reducer answers."""
    return {name: case["expected"][name] for name in got}


def cut(data: bytes, offsets: list[int]) -> list[bytes]:
    """Return data as reads that begin at these offsets."""
    edges = [0, *offsets, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_the_corpus_is_all_there() -> None:
    assert len(CASES) == 44


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_case_reads_the_same_however_its_bytes_arrive(case: dict[str, Any]) -> None:
    data = base64.b64decode(case["bytes_base64"])
    whole = reduce(case, [data])
    assert whole == expected(case, whole)
    assert reduce(case, cut(data, case["chunk_splits"])) == whole
    assert reduce(case, [data[i : i + 1] for i in range(len(data))]) == whole


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_case_reads_the_same_cut_in_two_at_any_offset(case: dict[str, Any]) -> None:
    data = base64.b64decode(case["bytes_base64"])
    whole = reduce(case, [data])
    # The 210 kB case would take minutes at every offset: its ends byte by byte, its middle in wide steps.
    offsets = (
        range(len(data))
        if len(data) < 5000
        else [*range(300), *range(300, len(data) - 300, 9973), *range(len(data) - 300, len(data))]
    )
    for offset in offsets:
        assert reduce(case, cut(data, [offset])) == whole, offset


def by_event(data: bytes) -> list[bytes]:
    """Return data as servers send it that flush after each event."""
    return [event + b"\n\n" for event in data.split(b"\n\n")[:-1]] + [data.split(b"\n\n")[-1]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_short_way_for_single_tokens_reads_the_same(case: dict[str, Any]) -> None:
    data = base64.b64decode(case["bytes_base64"])
    for pieces in (by_event(data), cut(data, case["chunk_splits"]), [data]):
        assert reduce(case, pieces, is_short_way=True) == reduce(case, pieces)


def test_the_short_way_is_taken_by_an_ordinary_token() -> None:
    head = b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
    token = 'data: {"choices":[{"index":0,"delta":{"content":"你好"},"finish_reason":null}]}\n\n'.encode()
    reducer = Reducer()
    assert reducer.plain_text(head) is None
    reducer.feed(head)
    assert reducer.plain_text(token) == "你好"
    assert (reducer.payloads, reducer.take()) == (2, None)


@pytest.mark.parametrize(
    "token",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"index":1,"delta":{"content":"a"},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a\\u0000"},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"usage":{"n":1}}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a","x":1},"finish_reason":null}]}\n\n',
        b"data: [DONE]\n\n",
        b"",
    ],
)
def test_the_short_way_refuses_everything_else_and_takes_nothing(token: bytes) -> None:
    reducer = Reducer()
    reducer.feed(b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n')
    assert reducer.plain_text(token) is None
    assert (reducer.payloads, reducer.texts) == (1, [])
