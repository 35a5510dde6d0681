"""Templates: `${path}` replaced by values, in one pass, by a path grammar and nothing else.

What a value says is never read as a template again, so a person who writes `${api_key}` into a chat sends
these ten characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

from providers import errors
from providers.clients.declarative.pick import Path, compile_path, pick
from providers.credentials import Secret
from providers.types import storable

_MARK = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
_BAD_IN_URL = re.compile(r"[\s\x00-\x1f\x7f\\]")


class Undefined:
    """The value of a name that nobody gave."""

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()


@dataclass(frozen=True, slots=True)
class Ref:
    """One `${path}`."""

    name: str
    rest: Path = ()

    def __str__(self) -> str:
        return self.name + "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in self.rest)


@dataclass(frozen=True, slots=True)
class Template:
    """A string with at least one `${path}` in it."""

    parts: tuple[str | Ref, ...]


@dataclass(frozen=True, slots=True)
class UrlTemplate:
    """An address: a literal origin, or one value of the endpoint (base), then path and query."""

    origin: str
    base: Ref | None
    path: tuple[str | Ref, ...]
    query: tuple[str | Ref, ...] = ()


@dataclass(frozen=True, slots=True)
class Values:
    """What templates may name. With is_masked a secret shows as its mask (the dry run of the lab)."""

    names: Mapping[str, Any] = field(repr=False)
    is_masked: bool = False

    def look(self, ref: Ref) -> Any:
        """Return the value, UNDEFINED when nobody gave it."""
        value = self.names.get(ref.name, UNDEFINED)
        if isinstance(value, Secret):
            if ref.rest or not value:
                return UNDEFINED
            return f"<{ref.name} {value}>".replace("…", "...") if self.is_masked else value.reveal()
        if not ref.rest or value is UNDEFINED:
            return value
        found = pick(value, ref.rest)
        return UNDEFINED if found is None else found

    def secrets(self) -> list[str]:
        """Return every secret itself, the longest first, to be cut out of what a vendor says."""
        found = [value.reveal() for value in self.names.values() if isinstance(value, Secret) and value]
        return sorted(found, key=len, reverse=True)


def parse_text(text: str) -> tuple[str | Ref, ...]:
    """Return the parts of a string; `$${` is the text `${`. Raises ValueError for a bad `${…}`."""
    parts: list[str | Ref] = []
    position = 0

    def add(piece: str) -> None:
        if piece and parts and isinstance(parts[-1], str):
            parts[-1] += piece
        elif piece:
            parts.append(piece)

    for match in _MARK.finditer(text):
        add(text[position : match.start()])
        position = match.end()
        if match.group() == "$${":
            add("${")
            continue
        if match.group(1) is None:
            raise ValueError("has a ${ without its }")
        path = match.group(1).strip()
        name = _NAME.match(path)
        if name is None or path[name.end() : name.end() + 1] not in ("", ".", "["):
            raise ValueError(f'has a bad path "{path[:60]}" in ${{…}}')
        rest = path[name.end() :]
        try:
            parts.append(Ref(name.group(), compile_path("_" + rest)[1:] if rest else ()))
        except ValueError:
            raise ValueError(f'has a bad path "{path[:60]}" in ${{…}}') from None
    add(text[position:])
    return tuple(parts)


def compile_value(value: Any) -> Any:
    """Return a JSON value with its strings compiled. Raises ValueError for a bad template."""
    if isinstance(value, str):
        parts = parse_text(value)
        if any(isinstance(part, Ref) for part in parts):
            return Template(parts)
        return "".join(str(part) for part in parts)
    if isinstance(value, list):
        return [compile_value(item) for item in value]
    if isinstance(value, dict):
        return {name: compile_value(item) for name, item in value.items()}
    return value


def refs_of(node: Any) -> Iterator[Ref]:
    """Yield every `${path}` of a compiled value."""
    if isinstance(node, Template):
        yield from (part for part in node.parts if isinstance(part, Ref))
    elif isinstance(node, UrlTemplate):
        yield from (part for part in (node.base, *node.path, *node.query) if isinstance(part, Ref))
    elif isinstance(node, list):
        for item in node:
            yield from refs_of(item)
    elif isinstance(node, dict):
        for item in node.values():
            yield from refs_of(item)


def fill(node: Any, values: Values, *, is_optional: bool = False) -> Any:
    """Return the compiled value with its names replaced.

    A string that is one `${x}` keeps the type of x. What is undefined becomes "", or, when optional, is left
    out, with every list or object that has nothing else: then the answer may be UNDEFINED.
    """
    if isinstance(node, Template):
        return _fill_text(node, values, is_optional=is_optional)
    if isinstance(node, list):
        items = [fill(item, values, is_optional=is_optional) for item in node]
        kept = [item for item in items if item is not UNDEFINED]
        return UNDEFINED if items and not kept else kept
    if isinstance(node, dict):
        filled = {name: fill(item, values, is_optional=is_optional) for name, item in node.items()}
        present = {name: item for name, item in filled.items() if item is not UNDEFINED}
        return UNDEFINED if filled and not present else present
    return node


def _fill_text(template: Template, values: Values, *, is_optional: bool) -> Any:
    if len(template.parts) == 1:
        value = values.look(template.parts[0])  # type: ignore[arg-type]  # a template has at least one Ref
        if value is UNDEFINED:
            return UNDEFINED if is_optional else ""
        return clean(value)
    pieces: list[str] = []
    for part in template.parts:
        if isinstance(part, str):
            pieces.append(part)
            continue
        value = values.look(part)
        if value is UNDEFINED and is_optional:
            return UNDEFINED
        pieces.append(as_text(value))
    return "".join(pieces)


def as_text(value: Any) -> str:
    """Return a value inside a longer string: what is undefined or null is nothing, structures are JSON."""
    if value is UNDEFINED or value is None:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(clean(value), ensure_ascii=False)
    return storable(str(value))


def clean(value: Any) -> Any:
    """Return a value of ours as JSON can hold it: its strings storable, its mappings and tuples plain."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {str(name): clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def compile_url(text: str) -> UrlTemplate:
    """Return the address. Raises ValueError with what is wrong with it."""
    if _BAD_IN_URL.search(text):
        raise ValueError("has a blank, a control character or a backslash")
    parts = list(parse_text(text))
    origin, base = "", None
    if parts and isinstance(parts[0], Ref):
        base = parts[0]
        del parts[0]
        if parts and not (isinstance(parts[0], str) and parts[0].startswith(("/", "?"))):
            raise ValueError(f"must go on with / or ? after ${{{base}}}: a host is never put together from values")
    else:
        head = parts.pop(0) if parts else ""
        assert isinstance(head, str)
        scheme, mark, rest = head.partition("://")
        if scheme.lower() in ("ws", "wss"):
            raise ValueError("is a WebSocket, which cannot be expressed: use the service's HTTP form")
        if not mark or scheme.lower() not in ("http", "https"):
            raise ValueError("must begin with https:// or http://, or with ${a value of the endpoint}")
        end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
        if end == len(rest) and parts:
            raise ValueError("has a value in its host: a host is never put together from values")
        origin = check_base_url(f"{scheme}://{rest[:end]}")
        parts = [rest[end:], *parts] if rest[end:] else parts
    path: list[str | Ref] = []
    query: list[str | Ref] = []
    target = path
    for part in parts:
        if isinstance(part, str):
            if "#" in part:
                raise ValueError("has a fragment")
            if target is path and "?" in part:
                before, _, part = part.partition("?")
                if before:
                    path.append(before)
                target = query
            if part:
                target.append(part)
        else:
            target.append(part)
    return UrlTemplate(origin, base, tuple(path), tuple(query))


def check_base_url(text: str) -> str:
    """Return a base URL without its last slash. Raises ValueError with what is wrong with it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if _BAD_IN_URL.search(text) or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("is not an https:// or http:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("has credentials in it")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValueError("has a query or a fragment")
    return text.rstrip("/")


def fill_url(url: UrlTemplate, values: Values) -> str:
    """Return the address with each value percent-encoded as one segment. Raises Misconfigured or BadRequest."""
    origin = url.origin
    if url.base is not None:
        value = values.look(url.base)
        if not isinstance(value, str) or not value:
            raise errors.Misconfigured(code="missing_base_url")
        try:
            origin = check_base_url(value)
        except ValueError:
            raise errors.Misconfigured(code="bad_base_url") from None
    pieces = [origin]
    for parts in (url.path, url.query):
        if parts is url.query and parts:
            pieces.append("?")
        for part in parts:
            if isinstance(part, str):
                pieces.append(quote(part, safe="/:@!$&'()*+,;=?%~-._[]"))
                continue
            value = values.look(part)
            text = as_text(value)
            if parts is url.path and text in ("", ".", ".."):
                raise errors.Misconfigured(code="missing_url_value", vendor_code=part.name)
            pieces.append(quote(text, safe=""))
    return "".join(pieces)


def header_text(name: str, value: Any) -> str:
    """Return a header's value as text. Raises Misconfigured for what could end the header or is not ASCII."""
    text = _plain(value).strip(" \t")
    if not _HEADER_VALUE.fullmatch(text):
        raise errors.Misconfigured(code="bad_header_value", vendor_code=name)
    return text


def query_text(value: Any) -> str:
    """Return a query or form value as text: true and false as JSON spells them."""
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return as_text(value)
