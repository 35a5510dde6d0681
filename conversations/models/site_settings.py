"""What a site may set, with defaults; values are checked here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ReuseRule = int | None
"""Seconds since the last message within which a context's conversation is reused; -1 for ever; 0 never."""

FOR_EVER = -1

DEFAULTS: Mapping[str, Any] = {
    "system_prompt": "",
    "history_messages": 20,
    "context_reuse_seconds": {
        "task": FOR_EVER,
        "voice": FOR_EVER,
        "customer": 3 * 86_400,
        "coach": 3 * 86_400,
        "general": 0,
    },
    "ascii_stream": False,
    "retention_days": 0,
    "stand_in": True,
    "midstream_failover": "off",
    "member_keys": False,
    "voice_max_minutes": 60,
    "knowledge": "off",
    "tools": [],
    "tool_rounds": 5,
    "voice_apology": "抱歉，我刚才走神了，请您再说一遍。",
}

PROMPT_MAX_CHARS = 32_768
APOLOGY_MAX_CHARS = 200
TOOLS_MAX = 32
TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
INTEGER_BOUNDS = {
    "history_messages": (0, 200),
    "retention_days": (0, 36_500),
    "voice_max_minutes": (1, 1440),
    "tool_rounds": (1, 20),
}
CHOICES = {
    "midstream_failover": ("off", "on", "prefix", "instruction"),
    "knowledge": ("off", "before", "tool"),
}
_SWITCHES = {"ascii_stream", "stand_in", "member_keys"}


def validate_site_settings(settings: object) -> None:
    """Return nothing when every key and value is understood.

    Raises: ValueError that names the key.
    """
    if not isinstance(settings, dict):
        raise ValueError("settings must be a JSON object")
    for key, value in settings.items():
        if key not in DEFAULTS:
            raise ValueError(f"{key}: unknown setting; known are {', '.join(DEFAULTS)}")
        if key in INTEGER_BOUNDS:
            least, most = INTEGER_BOUNDS[key]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{key}: must be a whole number from {least} to {most}")
        elif key in _SWITCHES:
            if not isinstance(value, bool):
                raise ValueError(f"{key}: must be true or false")
        elif key in CHOICES:
            if value not in CHOICES[key]:
                raise ValueError(f"{key}: must be one of {', '.join(CHOICES[key])}")
        elif key == "tools":
            if (
                not isinstance(value, list)
                or len(value) > TOOLS_MAX
                or not all(isinstance(name, str) and TOOL_NAME.match(name) for name in value)
            ):
                raise ValueError(f"{key}: must be a list of at most {TOOLS_MAX} names of tools")
        elif key == "system_prompt":
            if not isinstance(value, str) or len(value) > PROMPT_MAX_CHARS or "\0" in value:
                raise ValueError(f"{key}: must be a text of at most 32768 characters")
        elif key == "voice_apology":
            if not isinstance(value, str) or len(value) > APOLOGY_MAX_CHARS or "\0" in value:
                raise ValueError(f"{key}: must be a text of at most {APOLOGY_MAX_CHARS} characters")
        elif not isinstance(value, dict) or not all(
            isinstance(name, str) and isinstance(seconds, int) and not isinstance(seconds, bool) and seconds >= -1
            for name, seconds in value.items()
        ):
            raise ValueError(f"{key}: must map context types to seconds (-1 for ever, 0 never)")


def setting_of(settings: Mapping[str, Any], key: str) -> Any:
    """Return one setting of a site, or its default."""
    return settings.get(key, DEFAULTS[key])


def offered_tools(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the tools that a site offers: its list, and the search that its documents ask for."""
    names = [*setting_of(settings, "tools")]
    if setting_of(settings, "knowledge") == "tool":
        names.append("search_knowledge")
    return tuple(dict.fromkeys(names))


def reuse_seconds(settings: Mapping[str, Any], context_type: str) -> int:
    """Return how long a conversation of this context type is reused, in seconds: -1 for ever, 0 never.

    Unknown types behave as `general` (API.md 2).
    """
    rules = {**DEFAULTS["context_reuse_seconds"], **settings.get("context_reuse_seconds", {})}
    return int(rules.get(context_type, rules["general"]))
