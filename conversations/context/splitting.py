"""Cutting a text into passages: at headings first, then paragraphs, then sentences, long ones with an overlap.

Our own, and small: the splitters of the known packages count words between blanks, which Chinese does not have,
or bring a framework along. Knows nothing of Django.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

TARGET_CHARS = 400
"""Paragraphs are joined up to this."""
MOST_CHARS = 700
"""A paragraph longer than this is cut between sentences, and a sentence between characters."""
OVERLAP_CHARS = 80
HEADING_MAX_CHARS = 200
HEADINGS_KEPT = 3

# A sentence with what closes it; a full stop counts before a blank only (3.14).
_SENTENCE = re.compile(r".+?(?:[。！？；!?;…]+[”』」）)\"']*|\.(?=\s)|$)\s*", re.DOTALL)
_MARKDOWN_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*$")
_QUESTION = re.compile(r"(?:\*\*)?(?:Q\s*\d*|问题?\s*\d*)\s*[:：.、]\s*\S", re.IGNORECASE)
_FENCE = re.compile(r"\s*(```|~~~)")
_LOOKED_AT_CHARS = 300
"""A line is a heading or a question by its beginning: long runs of blanks would take the patterns hours."""


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph of a document, or a heading of some level (1 to 6)."""

    text: str
    level: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """One passage: the headings it stands under, and its text."""

    heading: str
    text: str


def blocks_of_text(text: str, *, is_markdown: bool) -> Iterator[Block]:
    """Yield the blocks of a plain or Markdown text; a line that asks ("问：", "Q:") begins a block."""
    lines: list[str] = []
    is_code = False

    def flush() -> Iterator[Block]:
        joined = "\n".join(lines).strip()
        lines.clear()
        if joined:
            yield Block(joined)

    for line in text.splitlines():
        if is_markdown and _FENCE.match(line):
            is_code = not is_code
        heading = _MARKDOWN_HEADING.match(line[:_LOOKED_AT_CHARS]) if is_markdown and not is_code else None
        if heading:
            yield from flush()
            yield Block(heading[2], level=len(heading[1]))
        elif not line.strip() and not is_code:
            yield from flush()
        else:
            if _QUESTION.match(line[:_LOOKED_AT_CHARS]) and not is_code:
                yield from flush()
            lines.append(line.rstrip())
    yield from flush()


def split(blocks: Iterable[Block]) -> Iterator[Piece]:
    """Yield the passages of a document, in its order. A heading with nothing under it is a passage of its own."""
    headings: list[tuple[int, str]] = []
    section: list[str] = []
    is_told = True

    for block in blocks:
        if not block.level:
            section.append(block.text)
            is_told = True
            continue
        is_parent = bool(headings) and block.level > headings[-1][0]  # then it stands in the path of what follows
        yield from _pieces(_path(headings), section, is_told=is_told or is_parent)
        section = []
        headings = [known for known in headings if known[0] < block.level]
        headings.append((block.level, " ".join(block.text.split())[:HEADING_MAX_CHARS]))
        is_told = False
    yield from _pieces(_path(headings), section, is_told=is_told)


def _path(headings: list[tuple[int, str]]) -> str:
    return " › ".join(text for _level, text in headings[-HEADINGS_KEPT:])


def _pieces(heading: str, paragraphs: list[str], *, is_told: bool) -> Iterator[Piece]:
    if not paragraphs:
        if heading and not is_told:
            yield Piece("", heading)
        return
    current = ""
    for part in _parts(paragraphs):
        begins_question = _QUESTION.match(part[:_LOOKED_AT_CHARS]) is not None
        if current and (begins_question or len(current) + len(part) > TARGET_CHARS):
            yield Piece(heading, current)
            current = ""
        current = f"{current}\n{part}" if current else part
    if current:
        yield Piece(heading, current)


def _parts(paragraphs: list[str]) -> Iterator[str]:
    """Yield paragraphs, those that are too long as overlapping runs of sentences."""
    for paragraph in paragraphs:
        if len(paragraph) <= MOST_CHARS:
            yield paragraph
        else:
            yield from _runs(_sentences(paragraph))


def _sentences(text: str) -> Iterator[str]:
    for match in _SENTENCE.finditer(text):
        sentence = match.group()
        for start in range(0, len(sentence), TARGET_CHARS - OVERLAP_CHARS):
            yield sentence[start : start + TARGET_CHARS - OVERLAP_CHARS]


def _runs(sentences: Iterable[str]) -> Iterator[str]:
    """Yield runs of sentences up to the target; each begins with the last sentences of the one before."""
    run: list[str] = []
    size = fresh = 0
    for sentence in sentences:
        if size + len(sentence) > TARGET_CHARS and fresh:
            yield "".join(run).strip()
            kept: list[str] = []
            for last in reversed(run):
                if sum(map(len, kept)) + len(last) > OVERLAP_CHARS:
                    break
                kept.insert(0, last)
            run, size, fresh = kept, sum(map(len, kept)), 0
        run.append(sentence)
        size += len(sentence)
        fresh += 1
    if fresh and (rest := "".join(run).strip()):
        yield rest
