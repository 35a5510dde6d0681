"""The ready configurations, one JSON file each.

One that is `like` another says only what differs, so that the two cannot drift apart.
"""

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
    own = dict(json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8")))
    if "like" not in own:
        return own
    base = load(own.pop("like"))
    return base | {
        key: base[key] | value if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in own.items()
    }
