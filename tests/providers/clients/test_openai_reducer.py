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


def reduce(case: dict[str, Any], pieces: list[bytes]) -> dict[str, Any]:
    """Return what the reducer makes of these reads, in the corpus's own words."""
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
