"""The ready configurations, one JSON file each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the names of all ready configurations."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    """Return a ready configuration as plain JSON. Raises KeyError when there is none by this name."""
    if name not in names():
        raise KeyError(name)
    return dict(json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8")))
