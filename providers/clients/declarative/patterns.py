"""Regular expressions written by people in a form: compiled, and refused when they could run away.

Python's engine backtracks. What is allowed here is bounded: no repeat inside a repeat, no alternatives inside
a repeat and few outside, no back references or look-arounds, few repeats at all, and a limit on the text that is
searched which shrinks with the power of the length that the search may cost.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field
from re import _constants as constants  # type: ignore[attr-defined]  # private
from re import _parser as parser  # type: ignore[attr-defined]  # private
from typing import Any

_MAX_CHARS = 200
_MAX_REPEATS = 6
_MAX_WAYS = 64  # the product of all alternatives: each is tried again for every choice of the others
_MAX_INPUT = {0: 8 << 20, 1: 8 << 20, 2: 4096}  # characters, by the power of the cost
_REPEATS = (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT)
_REFUSED = {
    constants.GROUPREF: "a back reference",
    constants.GROUPREF_EXISTS: "a back reference",
    constants.ASSERT: "a look-around",
    constants.ASSERT_NOT: "a look-around",
}
# What people write to say "server-sent events": those are read by the event decoder, and by no regex.
_MEANS_SSE = frozenset({r"data:\s?(.*)", r"data:\s*(.*)", r"data: (.*)", r"data: ?(.*)", "data: ", "data:"})


class PatternRefused(ValueError):
    """The pattern is not one, or could run away; str() says why."""


@dataclass(frozen=True, slots=True)
class LinePattern:
    """A pattern that takes the JSON out of a line; means_sse: it is the spelling of `data:` lines."""

    source: str
    means_sse: bool
    max_chars: int
    compiled: re.Pattern[str] = field(repr=False)

    def search(self, line: str) -> str | None:
        """Return the first group (without groups: what follows the match), None when it does not match."""
        found = self.compiled.search(line)
        if found is None:
            return None
        return found.group(1) if self.compiled.groups else line[found.end() :]


def compile_pattern(text: str) -> LinePattern:
    """Return the pattern. Raises PatternRefused."""
    if not text or len(text) > _MAX_CHARS:
        raise PatternRefused(f"is empty or longer than {_MAX_CHARS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # sets whose meaning will change, such as [[a]
            tree = parser.parse(text)
            compiled = re.compile(text)
    except (re.error, RecursionError, OverflowError, FutureWarning) as error:
        raise PatternRefused(f"is not a regular expression: {error}") from None
    repeats: list[int] = []
    branches: list[int] = []
    _walk(tree, repeats, branches, inside_repeat=False)
    if math.prod(branches) > _MAX_WAYS:
        raise PatternRefused("could run away: too many alternatives")
    if len(repeats) > _MAX_REPEATS:
        raise PatternRefused(f"could run away: more than {_MAX_REPEATS} repeats")
    is_anchored = bool(tree.data) and tree.data[0] in (
        (constants.AT, constants.AT_BEGINNING),
        (constants.AT, constants.AT_BEGINNING_STRING),
    )
    power = sum(1 for most in repeats if most > 1) + (0 if is_anchored or not repeats else 1)
    means_sse = text.removeprefix("^").removesuffix("$") in _MEANS_SSE
    if power not in _MAX_INPUT:
        raise PatternRefused("could run away: too many repeats; begin it with ^ and keep one (.*)")
    return LinePattern(text, means_sse, _MAX_INPUT[power], compiled)


def _walk(tree: Any, repeats: list[int], branches: list[int], *, inside_repeat: bool) -> None:
    for op, argument in tree:
        if op in _REFUSED:
            raise PatternRefused(f"could run away: {_REFUSED[op]} is not allowed")
        if op in _REPEATS:
            _least, most, inner = argument
            if inside_repeat:
                raise PatternRefused("could run away: a repeat inside a repeat")
            repeats.append(int(most))
            _walk(inner, repeats, branches, inside_repeat=True)
        elif op is constants.BRANCH:
            if inside_repeat:
                raise PatternRefused("could run away: alternatives inside a repeat")
            branches.append(len(argument[1]))
            for branch in argument[1]:
                _walk(branch, repeats, branches, inside_repeat=inside_repeat)
        elif op is constants.SUBPATTERN:
            _walk(argument[3], repeats, branches, inside_repeat=inside_repeat)
        elif op is constants.ATOMIC_GROUP:
            _walk(argument, repeats, branches, inside_repeat=inside_repeat)
