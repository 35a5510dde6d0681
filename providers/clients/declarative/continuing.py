"""How a configured API goes on with an answer that another model began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from providers.clients.declarative.fill import UrlTemplate, refs_of

Continues = Literal["", "prefix", "instruction", "none"]
"""`""`: nobody has said."""
WAYS: tuple[Continues, ...] = ("prefix", "instruction", "none")
KEYS = frozenset({"way", "message", "params", "url"})
_WITHOUT_A_BEGINNING = frozenset({"to_ernie_messages"})
_WITHOUT_HISTORY = frozenset({"last_user_text", "only_system"})


@dataclass(frozen=True, slots=True)
class Continuing:
    """What a section says of it: the way, and what the vendor wants besides when it is handed the beginning.

    message goes into the last message, params into the body, url takes the place of the section's.
    """

    way: Continues = ""
    message: Mapping[str, Any] = field(default_factory=dict, hash=False)
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    url: UrlTemplate | None = None


def ability(way: Continues, items: Iterable[Any]) -> tuple[Continues, bool]:
    """Return how a section can go on at most, and whether it sends the last text of the user alone.

    A way that its templates cannot carry is none: a convertor may drop the beginning, or all but the question.
    """
    convertors = {
        item.convertor
        for item in items
        if any(ref.name == "messages" and not ref.rest for ref in refs_of(item.value))
    }
    if not convertors - _WITHOUT_HISTORY:
        return ("none" if way == "none" else "instruction"), True
    if not convertors - _WITHOUT_HISTORY - _WITHOUT_A_BEGINNING and way != "none":
        return "instruction", False
    return way, False
