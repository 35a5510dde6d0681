"""What a text is searched by: pairs of Chinese characters, and words of other scripts, as PostgreSQL's lexemes.

Knows nothing of Django: the process that reads files uses it too. Each lexeme begins with the site's id, so that
one index serves all sites and the size of the others changes nothing (core PostgreSQL cannot put a number and a
text search vector into one GIN index).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from conversations.context.synonyms import other_words

_WIDE = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "\u3041-\u30ff\u31f0-\u31ff\uac00-\ud7af"  # kana, hangul
)
_RUN = re.compile(f"([{_WIDE}]+)|([^\\W_{_WIDE}]+)")
WORD_MAX_CHARS = 48
PREFIX_FROM_CHARS = 4
"""A word of so many letters also finds longer ones: refund, refunds."""
POSITION_MAX = 16_383  # PostgreSQL's own limit

# Characters that hold a sentence together rather than say what it is about. A pair of them weighs little in a
# query, a pair with one of them half; alone they are not asked for beside others.
_FUNCTION_TEXT = (
    "的了吗呢吧啊呀嘛么着过得地所之其我你您他她它们咱俺自己这那哪谁什怎咋样如何为啥几多少是有没无不别未"
    "能可以会要想需应该得必须行让把被给跟和与或及并而但却也都就还又再才只很太更最大概约左右一下个些点儿里"
    "在到去来往从对向由于因按用做干弄搞办请问说叫帮现在时候后前中间上下内外等吧"
)
FUNCTION = frozenset(_FUNCTION_TEXT)
PAIR_WEIGHTS = (1.0, 0.5, 0.1)
"""What a pair with none, one or two of these weighs."""
SINGLE_WEIGHT = 0.4
"""What a character of a longer run weighs beside its pairs: 离了婚 has no pair of 离婚, and means it."""
SYNONYM_WEIGHT = 0.6


@dataclass(frozen=True, slots=True)
class QueryTerm:
    """One thing a query asks for: the lexeme, whether longer ones count too, and how much it matters."""

    text: str
    is_prefix: bool = False
    weight: float = 1.0
    is_other_word: bool = False
    """A synonym: it may be found instead, and is not missed."""

    def as_tsquery(self, site_id: int) -> str:
        """Return it as the text of a tsquery."""
        return f"'{site_id}:{self.text}'{':*' if self.is_prefix else ''}"


def fold(text: str) -> str:
    """Return the text without differences that do not matter: full width, case."""
    return unicodedata.normalize("NFKC", text).casefold()


def lexemes(text: str) -> Iterator[str]:
    """Yield what a stored text is found by, in order: characters and pairs of them, words."""
    for match in _RUN.finditer(fold(text)):
        wide, word = match.groups()
        if wide is None:
            yield word[:WORD_MAX_CHARS]
            continue
        for start, character in enumerate(wide):
            yield character
            if start + 1 < len(wide):
                yield wide[start : start + 2]


def query_terms(text: str, *, most: int = 96) -> list[QueryTerm]:
    """Return what a query asks for, each once, its own words first; at most so many."""
    folded = fold(text)
    terms: dict[str, QueryTerm] = {}
    for term in _asked_for(folded):
        known = terms.get(term.text)
        if known is None or known.weight < term.weight:
            terms[term.text] = term
    for word in other_words(folded):
        for term in _asked_for(word):
            if len(term.text) > 1 or len(word) == 1:
                terms.setdefault(term.text, replace(term, weight=term.weight * SYNONYM_WEIGHT, is_other_word=True))
    return [term for term in terms.values() if term.weight][:most]


def _asked_for(folded: str) -> Iterator[QueryTerm]:
    for match in _RUN.finditer(folded):
        wide, word = match.groups()
        if wide is None:
            word = word[:WORD_MAX_CHARS]
            is_prefix = len(word) >= PREFIX_FROM_CHARS and not word.isdigit()
            yield QueryTerm(
                word,
                is_prefix=is_prefix,
                weight=1.0 if len(word) > 1 or word == folded.strip() else PAIR_WEIGHTS[2],
            )
        elif len(wide) == 1:
            is_alone = wide == folded.strip()
            yield QueryTerm(wide, weight=1.0 if is_alone else 0.0 if wide in FUNCTION else PAIR_WEIGHTS[2])
        else:
            for start in range(len(wide) - 1):
                pair = wide[start : start + 2]
                yield QueryTerm(pair, weight=PAIR_WEIGHTS[sum(c in FUNCTION for c in pair)])
            if len(wide) > 2:
                yield from (QueryTerm(c, weight=SINGLE_WEIGHT) for c in wide if c not in FUNCTION)


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
