"""Paths into a vendor's JSON: `choices[0].delta.content`, `choices.0.delta.content`, `parts[*].text`."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

_MAX_STEPS = 20
_TOKEN = re.compile(r"\[(\d{1,6}|\*)\]|(?:^|\.)([^.\[\]\s]+)")


class Every(Enum):
    """The step `[*]`."""

    ITEM = "[*]"


Path = tuple[str | int | Every, ...]


def compile_path(text: str) -> Path:
    """Return the steps of a path. Raises ValueError when it is not one."""
    steps: list[str | int | Every] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or (match.group(2) is not None and (position == 0) == match.group().startswith(".")):
            raise ValueError("not a path")
        index, name = match.groups()
        if (index or name) == "*":
            steps.append(Every.ITEM)
        else:
            steps.append(int(index) if index is not None else name)
        position = match.end()
    if not steps or len(steps) > _MAX_STEPS:
        raise ValueError("not a path")
    return tuple(steps)


def pick(value: Any, path: Path) -> Any:
    """Return what is at the path, None when there is nothing. `[*]` joins the strings it finds."""
    for position, step in enumerate(path):
        if type(step) is str and type(value) is dict:
            value = value.get(step)
        elif value is None:
            return None
        elif type(step) is Every:
            return _every(value, path[position + 1 :])
        elif type(value) is list:
            index = step if type(step) is int else int(step) if type(step) is str and step.isdecimal() else -1
            value = value[index] if 0 <= index < len(value) else None
        elif type(value) is dict:
            value = value.get(str(step))
        else:
            return None
    return value


def _every(value: Any, rest: Path) -> Any:
    """Return what is at rest in each item of a list: strings joined, anything else as a list."""
    if type(value) is not list:
        return None
    found = [item for item in (pick(item, rest) for item in value) if item is not None]
    if not found:
        return None
    return "".join(found) if all(type(item) is str for item in found) else found
