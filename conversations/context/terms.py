"""What a text is searched by: pairs of Chinese characters, and words of other scripts, as PostgreSQL's lexemes.

Knows nothing of Django: the process that reads files uses it too. Each lexeme begins with the site's id, so that
one index serves all sites and the size of the others changes nothing (core PostgreSQL cannot put a number and a
text search vector into one GIN index).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_WIDE = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "\u3041-\u30ff\u31f0-\u31ff\uac00-\ud7af"  # kana, hangul
)
_RUN = re.compile(f"([{_WIDE}]+)|([^\\W_{_WIDE}]+)")
WORD_MAX_CHARS = 48
PREFIX_FROM_CHARS = 4
"""A word of so many letters also finds longer ones: refund, refunds."""
POSITION_MAX = 16_383  # PostgreSQL's own limit

# Words that ask rather than say: they find questions, not answers, and weigh little in a query.
_ASKING_WORDS = (
    "怎么 么办 怎样 么样 如何 什么 为什 为何 请问 问一 一下 是否 能不 不能 可不 不可 可以 能否 有没 没有 是不 不是"
    " 哪里 哪儿 哪个 哪些 多少 几个 吗 呢 吧 啊 呀 的话 一个 这个 那个 我想 想问 想要 我要 我的 你们 告诉 诉我"
    " 知道"
)
ASKING = frozenset(_ASKING_WORDS.split())
_ASKING_WEIGHT = 0.25


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """One thing a query asks for: the lexeme, whether longer ones count too, and how much it matters."""

    text: str
    is_prefix: bool = False
    weight: float = 1.0

    def as_tsquery(self, site_id: int) -> str:
        """Return it as the text of a tsquery."""
        return f"'{site_id}:{self.text}'{':*' if self.is_prefix else ''}"


def fold(text: str) -> str:
    """Return the text without differences that do not matter: full width, case."""
    return unicodedata.normalize("NFKC", text).casefold()


def lexemes(text: str) -> Iterator[str]:
    """Yield what a stored text is found by, in order: pairs of characters, the last of each run alone, words."""
    for match in _RUN.finditer(fold(text)):
        wide, word = match.groups()
        if wide is None:
            yield word[:WORD_MAX_CHARS]
            continue
        for start in range(len(wide) - 1):
            yield wide[start : start + 2]
        yield wide[-1]


def query_terms(text: str, *, most: int = 64) -> list[QueryTerm]:
    """Return what a query asks for, each once, in its order; at most so many."""
    terms: dict[str, QueryTerm] = {}
    for match in _RUN.finditer(fold(text)):
        wide, word = match.groups()
        if wide is None:
            word = word[:WORD_MAX_CHARS]
            found = [QueryTerm(word, is_prefix=len(word) >= PREFIX_FROM_CHARS and not word.isdigit())]
        elif len(wide) == 1:
            # A character alone: pairs that begin with it, or itself at the end of a run.
            found = [QueryTerm(wide, is_prefix=True, weight=_weight(wide))]
        else:
            found = [
                QueryTerm(pair, weight=_weight(pair)) for pair in (wide[i : i + 2] for i in range(len(wide) - 1))
            ]
        for term in found:
            terms.setdefault(term.text, term)
            if len(terms) == most:
                return list(terms.values())
    return list(terms.values())


def _weight(text: str) -> float:
    return _ASKING_WEIGHT if text in ASKING else 1.0


def as_tsvector(site_id: int, *, heading: str, text: str) -> tuple[str, int]:
    """Return the text of a tsvector, and how many lexemes it counts; the heading's weigh more (A)."""
    places: dict[str, list[str]] = {}
    position = 0
    for part, weight in ((heading, "A"), (text, "")):
        for lexeme in lexemes(part):
            position += 1
            places.setdefault(lexeme, []).append(f"{min(position, POSITION_MAX)}{weight}")
    vector = " ".join(f"'{site_id}:{lexeme}':{','.join(found[:255])}" for lexeme, found in places.items())
    return vector, position
