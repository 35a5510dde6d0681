"""Questions about one event: `{"name": "code", "op": "in", "value": [110, 111]}`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from providers.clients.declarative.pick import Path, pick

EVENT, STATUS, DATA = "__event", "__status", "__data"
FACTS = frozenset({EVENT, STATUS, DATA})
"""Names for what is not in the JSON: the SSE event's name, the HTTP status, the text of what is not JSON."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One question. parts is set for `{"all": […]}`: every part must hold."""

    name: str = ""
    path: Path = ()
    op: str = "exists"
    value: Any = field(default=None, hash=False)
    parts: tuple[Condition, ...] = ()

    def holds(self, event: Any, facts: Mapping[str, Any], mapped: Mapping[str, Any] | None = None) -> bool:
        """Return the answer for this event; mapped names (filters only) go before the event's own."""
        if self.parts:
            return all(part.holds(event, facts, mapped) for part in self.parts)
        if self.name in FACTS:
            found = facts.get(self.name)
        elif mapped is not None and self.name in mapped:
            found = mapped[self.name]
        else:
            found = pick(event, self.path)
        return OPS[self.op](found, self.value)

    def __str__(self) -> str:
        """Return the question as a person would say it."""
        if self.parts:
            return " and ".join(map(str, self.parts))
        return f"{self.name} {self.op}" + ("" if self.op in ("exists", "truthy") else f" {self.value!r}")


def any_holds(conditions: Iterable[Condition], event: Any, facts: Mapping[str, Any]) -> bool:
    """Return whether one of them holds."""
    return any(condition.holds(event, facts) for condition in conditions)


def _equal(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)  # JSON's true is not 1


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    if isinstance(found, list):
        return any(_equal(item, value) for item in found)
    return isinstance(found, dict) and isinstance(value, str) and value in found


OPS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": _equal,
    "!=": lambda found, value: not _equal(found, value),
    "in": lambda found, value: any(_equal(found, item) for item in value),
    "exists": lambda found, _value: found is not None,
    "truthy": lambda found, _value: bool(found),
    "contains": _contains,
}
