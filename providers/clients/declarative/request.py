"""One HTTP request out of a template and its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import orjson

from providers import errors
from providers.clients.declarative.convertors import CONVERTORS
from providers.clients.declarative.fill import (
    UNDEFINED,
    Values,
    as_text,
    fill,
    fill_url,
    header_text,
    query_text,
    refs_of,
)
from providers.clients.declarative.schema import Item, RequestTemplate
from providers.clients.declarative.signers import SIGNERS


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as it will be sent; body is None for a GET. Holds secrets: its repr shows the method only."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


def prepare(
    template: RequestTemplate,
    values: Values,
    *,
    secrets: frozenset[str],
    accept: str,
    now: float,
    extra: Mapping[str, Any] | None = None,
) -> Prepared:
    """Return the request. Raises Misconfigured for a missing secret, a bad header, or what JSON cannot hold.

    secrets are the names of all secrets there could be; extra goes into the body beside the template's own.
    """

    def filled(item: Item) -> Any:
        names = {ref.name for ref in refs_of(item.value)}
        if not item.is_optional and any(name not in values.names for name in names & secrets):
            raise errors.Misconfigured(code="missing_credential")
        value = fill(item.value, values, is_optional=item.is_optional)
        if value is UNDEFINED or item.convertor is None:
            return value
        if values.is_masked and names & secrets:
            return f"<{item.convertor} of {value}>"
        value = CONVERTORS[item.convertor](value, now)
        return UNDEFINED if value is None and item.is_optional else value

    def pairs(items: tuple[Item, ...]) -> list[tuple[str, Any]]:
        return [(item.name, value) for item in items if (value := filled(item)) is not UNDEFINED]

    url = fill_url(template.url, values)
    if params := pairs(template.params):
        joined = "&".join(f"{quote(name, safe='')}={quote(query_text(value), safe='')}" for name, value in params)
        url += ("&" if template.url.query else "?") + joined
    headers = {name: header_text(name, value) for name, value in pairs(template.headers)}
    present = {name.lower() for name in headers}
    if "accept" not in present:
        headers["Accept"] = accept
    body: bytes | None = None
    if template.method != "GET":
        data = {**(extra or {}), **dict(pairs(template.data))}
        if "content-type" not in present:
            headers["Content-Type"] = "application/json"
        try:
            body = _form(data) if template.is_form else orjson.dumps(data)
        except TypeError as error:
            raise errors.Misconfigured(code="bad_params") from error
    if template.sign is not None:
        settings = {name: as_text(fill(value, values)) for name, value in template.sign.settings.items()}
        if values.is_masked:
            headers["Authorization"] = f"<signed by {template.sign.name}>"
        else:
            sign = SIGNERS[template.sign.name].sign
            headers.update(sign(template.method, url, headers, body or b"", settings, now))
    headers["Accept-Encoding"] = "identity"
    return Prepared(template.method, url, headers, body)


def _form(data: Mapping[str, Any]) -> bytes:
    return "&".join(
        f"{quote(name, safe='')}={quote(query_text(value), safe='')}" for name, value in data.items()
    ).encode("ascii")
