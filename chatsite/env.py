"""Typed values from the environment and an optional `.env`; what is wrong is collected, not raised.

A bad value never stops Python from importing the settings: it is remembered in `problems`, the default
is used, and the system checks (`chatsite/checks.py`) report it by name. Secrets may come from a file:
for `X`, `X_FILE` names a file that holds the value.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dotenv import load_dotenv


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that could not be used as given; never holds the value itself."""

    name: str
    message: str


problems: list[Problem] = []
names: dict[str, str] = {}
"""Every variable this process asked for, with its default as text: `docs/settings.md` must name each."""


def read_dotenv(path: Path) -> None:
    """Add what `.env` says to the environment; a variable that is already set wins."""
    load_dotenv(path, override=False)


def _raw(name: str, default: object) -> str | None:
    names[name] = "" if default is None else str(default)
    value = os.environ.get(name)
    file_name = os.environ.get(f"{name}_FILE")
    if not value and file_name:
        try:
            value = Path(file_name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(name, f"{name}_FILE cannot be read ({type(error).__name__})."))
    return value.strip() if value and value.strip() else None


def env_str(name: str, default: str = "") -> str:
    """Return the text of `name`; unset and blank both mean the default."""
    value = _raw(name, default)
    return default if value is None else value


def env_choice(name: str, choices: tuple[str, ...], default: str) -> str:
    """Return one of `choices`."""
    value = _raw(name, default)
    if value is None:
        return default
    if value.lower() not in choices:
        problems.append(Problem(name, f"{name} must be one of: {', '.join(choices)}."))
        return default
    return value.lower()


def env_bool(name: str, default: bool) -> bool:
    """Return a switch: on/off, true/false, yes/no, 1/0."""
    value = _raw(name, "on" if default else "off")
    if value is None:
        return default
    if value.lower() in {"1", "on", "true", "yes"}:
        return True
    if value.lower() in {"0", "off", "false", "no"}:
        return False
    problems.append(Problem(name, f"{name} must be on or off."))
    return default


def env_int(name: str, default: int, *, least: int, most: int) -> int:
    """Return a whole number within the bounds."""
    value = env_float(name, default, least=least, most=most)
    if value != int(value):
        problems.append(Problem(name, f"{name} must be a whole number."))
        return default
    return int(value)


def env_float(name: str, default: float, *, least: float, most: float) -> float:
    """Return a number within the bounds; the unit is in the setting's name."""
    value = _raw(name, default)
    if value is None:
        return default
    try:
        number = float(value)
    except ValueError:
        problems.append(Problem(name, f"{name} must be a number."))
        return default
    if not least <= number <= most:
        problems.append(Problem(name, f"{name} must lie between {least} and {most}."))
        return default
    return number


def env_list(name: str, default: str = "") -> list[str]:
    """Return the comma-separated parts, trimmed, without empty ones."""
    return [part.strip() for part in env_str(name, default).split(",") if part.strip()]


def env_path(name: str, default: Path) -> Path:
    """Return an absolute path; `~` is expanded."""
    return Path(env_str(name, str(default))).expanduser().absolute()


def parse_database_url(url: str) -> dict[str, object]:
    """Return Django's connection settings for `postgres://user:password@host:port/name?option=value`.

    A socket directory goes into the query: `postgres://user@/name?host=/run/postgresql`.
    Raises: ValueError with a text that does not repeat the URL, since it may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ValueError("the scheme must be postgres:// or postgresql://")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError("the port is not a number") from error
    options: dict[str, object] = {}
    for pair in filter(None, parts.query.split("&")):
        key, _, value = pair.partition("=")
        options[unquote(key)] = unquote(value)
    name = unquote(parts.path.removeprefix("/"))
    if not name or "/" in name:
        raise ValueError("it must end in exactly one database name")
    return {
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": str(options.pop("host", "")) or unquote(parts.hostname or ""),
        "PORT": str(options.pop("port", "")) or (str(port) if port else ""),
        "OPTIONS": options,
    }
