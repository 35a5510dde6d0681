"""Bar 1: every kept byte stream reads the same through the ready configurations, however its bytes arrive."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from providers import errors
from providers.clients.declarative.configs import load
from providers.clients.declarative.reducer import MappedReducer
from providers.clients.declarative.schema import Section, parse_config
from providers.clients.openai_reducer import read_usage
from providers.types import Usage

CORPUS = Path(__file__).parents[3] / "wire" / "sse_corpus"
CASES = [json.loads(path.read_text()) for path in sorted(CORPUS.glob("*.json"))]
OTHERS = [case for case in CASES if case["protocol"] != "openai_chat"]
FITTING = {
    "openai_chat": ("openai", "chat"),
    "anthropic_messages": ("anthropic", "chat"),
    "ollama_ndjson": ("ollama_native", "chat"),
    "dashscope_app": ("dashscope_app", "chat"),
    "dashscope_app_cumulative": ("dashscope_app", "cumulative"),
    "ernie": ("ernie", "chat"),
}
# The words that vendors use for counts where the configuration maps the counts themselves.
COUNTS = {
    "73_ollama_native_ndjson": Usage(11, 2),
    "76_dashscope_app_cumulative": Usage(54, 8),
}


def section_for(protocol: str) -> Section:
    """Return the section of the ready configuration that fits."""
    name, mapi = FITTING[protocol]
    return parse_config(load(name)).sections[mapi]


def reduce(section: Section, pieces: list[bytes]) -> dict[str, Any]:
    """Return what the section makes of these reads, in the corpus's words."""
    reducer = MappedReducer(section)
    text = reasoning = ""
    for piece in [*pieces, None]:
        if piece is None:
            reducer.finish()
        else:
            reducer.feed(piece)
        delta = reducer.take_last() if piece is None else reducer.take()
        if delta is not None:
            text += delta.text
            reasoning += delta.reasoning
    error = reducer.error
    return {
        "text": text,
        "reasoning": reasoning,
        "tool_calls": [
            {"index": c.index, "id": c.id, "name": c.name, "arguments": c.arguments} for c in reducer.tool_calls
        ],
        "finish_reason": reducer.finish_reason,
        "usage": reducer.finished().usage,
        "error": None if error is None else {name: error[name] for name in ("message", "type", "code")},
        "malformed_events": reducer.malformed_events,
        "complete": reducer.is_complete,
    }


def expected(case: dict[str, Any]) -> dict[str, Any]:
    """Return the corpus's expectation in the words of reduce()."""
    words = ("text", "reasoning", "tool_calls", "finish_reason", "error", "malformed_events", "complete")
    usage = COUNTS.get(case["name"]) or read_usage(case["expected"]["usage"])
    return {**{word: case["expected"][word] for word in words}, "usage": usage}


def cut(data: bytes, offsets: list[int]) -> list[bytes]:
    """Return data as reads that begin at these offsets."""
    return [data[a:b] for a, b in itertools.pairwise([0, *offsets, len(data)])]


def test_every_protocol_of_the_corpus_has_a_configuration() -> None:
    assert {case["protocol"] for case in CASES} == set(FITTING)
    assert (len(CASES), len(OTHERS)) == (52, 8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_case_reads_the_same_however_its_bytes_arrive(case: dict[str, Any]) -> None:
    section, data = section_for(case["protocol"]), base64.b64decode(case["bytes_base64"])
    assert reduce(section, [data]) == expected(case)
    assert reduce(section, cut(data, case["chunk_splits"])) == expected(case)
    assert reduce(section, [data[i : i + 1] for i in range(len(data))]) == expected(case)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case["name"])
def test_a_case_reads_the_same_cut_in_two_at_any_offset(case: dict[str, Any]) -> None:
    section, data = section_for(case["protocol"]), base64.b64decode(case["bytes_base64"])
    for offset in range(len(data)):
        assert reduce(section, cut(data, [offset])) == expected(case), offset


@pytest.mark.parametrize(
    "name", ["azure", "deepseek", "moonshot", "zhipu", "zhipu_jwt", "minimax", "volc_ark", "spark_http"]
)
def test_every_configuration_of_that_shape_reads_the_openai_corpus(name: str) -> None:
    section = parse_config(load(name)).sections["chat"]
    for case in CASES:
        if case["protocol"] == "openai_chat":
            data = base64.b64decode(case["bytes_base64"])
            assert reduce(section, [data]) == expected(case), case["name"]


GEMINI = (
    'data: {"candidates":[{"content":{"parts":[{"text":"你"},{"text":"好"}],"role":"model"}}],'
    '"responseId":"r1"}\r\n\r\n'
    'data: {"candidates":[{"content":{"parts":[{"text":"！"}],"role":"model"},"finishReason":"STOP"}],'
    '"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":3}}\r\n\r\n'
).encode()
GENERATION = (
    'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"output":{"choices":[{"message":{"content":"你","role":"assistant"},'
    '"finish_reason":"null"}]},"usage":{"input_tokens":9,"output_tokens":1},"request_id":"q1"}\n\n'
    'id:2\nevent:result\n:HTTP_STATUS/200\ndata:{"output":{"choices":[{"message":{"content":"好","role":"assistant"},'
    '"finish_reason":"stop"}]},"usage":{"input_tokens":9,"output_tokens":2},"request_id":"q1"}\n\n'
).encode()


@pytest.mark.parametrize(
    ("name", "data", "text", "finish", "usage"),
    [
        ("gemini", GEMINI, "你好！", "STOP", Usage(4, 3)),
        ("dashscope_generation", GENERATION, "你好", "stop", Usage(9, 2)),
    ],
)
def test_the_protocols_without_a_kept_stream_read_what_their_documents_show(
    name: str, data: bytes, text: str, finish: str, usage: Usage
) -> None:
    section = parse_config(load(name)).sections["chat"]
    for offset in range(len(data)):
        got = reduce(section, cut(data, [offset]))
        assert (got["text"], got["finish_reason"], got["usage"], got["complete"]) == (text, finish, usage, True)


def small(**options: Any) -> Section:
    """Return a section that maps `t` to text and `f` to the finish reason, with these options."""
    resp = [{"name": "content", "value": "t"}, {"name": "finish_reason", "value": "f"}]
    chat = {"url": "https://a.example", "resp": resp, **options}
    return parse_config({"name": "小", "chat": chat}).sections["chat"]


def test_lines_are_taken_apart_by_chunk_match_and_others_dropped() -> None:
    section = small(chunk_match=r"^chunk=(.*)$")
    data = 'hello\nchunk={"t":"上\u2028"}\r\nnoise {"t":"x"}\nchunk={"t":"海","f":"stop"}\n'
    data += 'chunk=[DONE]\nchunk={"t":"y"}'
    for offset in range(len(data.encode())):
        got = reduce(section, cut(data.encode(), [offset]))
        assert (got["text"], got["finish_reason"], got["complete"]) == ("上\u2028海", "stop", True)


def test_cumulative_text_that_takes_something_back_is_an_error() -> None:
    section = small(cumulative=True)
    good = [b'{"t":"a"}\n', b'{"t":"ab"}\n', b'{"t":""}\n', b'{"t":"a"}\n', b'{"t":"abc","f":"stop"}\n']
    assert reduce(section, good)["text"] == "abc"
    with pytest.raises(errors.MalformedReply):
        reduce(section, [b'{"t":"a"}\n{"t":"xb"}\n'])


def test_a_filter_blanks_its_field_only_and_by_mapped_or_raw_names() -> None:
    by_mapped = small(chunk_filter={"name": "finish_reason", "op": "==", "value": "stop", "field": "content"})
    by_raw = small(filters=[{"name": "kind", "op": "!=", "value": "say", "field": "content"}])
    assert reduce(by_mapped, [b'{"t":"a"}\n{"t":"all","f":"stop"}\n'])["text"] == "a"
    got = reduce(by_raw, [b'{"t":"a","kind":"say"}\n{"t":"b","kind":"think","f":"stop"}\n'])
    assert (got["text"], got["finish_reason"]) == ("a", "stop")


def test_a_stream_that_ends_before_its_done_is_not_complete() -> None:
    section = small(done_when=[{"name": "end", "op": "==", "value": True}], finish_completes=False)
    assert not reduce(section, [b'{"t":"a","f":"normal"}\n'])["complete"]
    assert reduce(section, [b'{"t":"a","f":"normal","end":true}\n{"t":"b"}\n'])["text"] == "a"


def test_the_text_of_what_is_not_json_can_end_a_stream() -> None:
    section = small(chunk_match=r"^data:\s?(.*)$", done_when={"name": "__data", "op": "==", "value": "BYE"})
    got = reduce(section, [b'data: {"t":"a"}\n\ndata: BYE\n\ndata: {"t":"b"}\n\n'])
    assert (got["text"], got["complete"]) == ("a", True)


def test_a_whole_answer_may_be_printed_over_many_lines() -> None:
    answer = json.dumps({"t": "整", "deep": {"a": [1, 2]}}, ensure_ascii=False, indent=2).encode()
    for section in (small(), small(mode="whole")):
        got = reduce(section, cut(answer, [1, 5, 9]))
        assert (got["text"], got["complete"]) == ("整", True)


def test_a_line_longer_than_the_limit_is_refused_in_every_form() -> None:
    for section in (small(), small(chunk_match="^x=(.*)$")):
        reducer = MappedReducer(section, line_max_bytes=100)
        with pytest.raises(errors.ReplyTooLong):
            for _ in range(50):
                reducer.feed(b"x=" + b"a" * 20)
