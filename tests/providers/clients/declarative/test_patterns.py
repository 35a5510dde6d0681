"""Regular expressions from a form: the useful ones pass, those that could run away do not."""

from __future__ import annotations

import time

import pytest

from providers.clients.declarative.patterns import PatternRefused, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        (r"^data:\s?(.*)$", 'data: {"a":1}', '{"a":1}'),
        (r"data: (.*)", "data: x", "x"),
        ("data: ", "data: x", "x"),
        (r"^chunk=(.*)$", "other", None),
        (r"^\d+:(.*)$", "17:{}", "{}"),
        (r"^(?:message|result):(.*)$", "result:{}", "{}"),
    ],
)
def test_a_pattern_takes_the_json_out_of_a_line(pattern: str, line: str, found: str | None) -> None:
    assert compile_pattern(pattern).search(line) == found


def test_the_spellings_of_event_streams_are_known() -> None:
    assert compile_pattern(r"^data:\s?(.*)$").means_sse
    assert not compile_pattern(r"^chunk=(.*)$").means_sse


@pytest.mark.parametrize(
    "pattern",
    ["", "(", "(a+)+$", "(a*)*", "(a|a)*b", "(a|b|ab)*c", r"(.*)\1", "(?=a+)b", "^(.*)(.*)(.*)x$", "(.*)(.*)x",
     "a?" * 20 + "a" * 20, "((a{1,50}){1,50}){1,50}", "x" * 300, "[[a]]", "(?:a+|b+)+", "^(?>(a+)+)$",
     "^" + "(a|a)" * 30 + "x", "^" + "(?:a|ab|b)" * 18 + "x"],
)  # fmt: skip
def test_a_pattern_that_could_run_away_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", [r"^\s*(.*)x$", "(.*)x", r"^a*(a*)b$", r"^(a+)b$"])
def test_what_passes_is_quick_on_the_longest_text_it_gets(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    for letter in (" ", "a"):
        line = letter * min(compiled.max_chars, 200_000)
        began = time.process_time()
        compiled.search(line)
        assert time.process_time() - began < 1.0
