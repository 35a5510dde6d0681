"""Reading JSON bodies: bounded, and strict about what JSON is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from django.conf import settings
from rest_framework.parsers import BaseParser

from conversations.errors import BadRequest, ChatError

NESTING_MAX = 64


def parse_json(body: bytes, *, most_bytes: int | None = None) -> Any:
    """Return the value of a JSON body.

    Raises: ChatError body_too_large; BadRequest malformed_json, also for numbers that are none or too large,
    bytes that are no UTF-8, and nesting too deep to be stored again.
    """
    if len(body) > (most_bytes or settings.REQUEST_BODY_MAX_BYTES):
        raise ChatError("body_too_large")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadRequest("malformed_json") from error
    if _is_deeper_than(value, NESTING_MAX):
        raise BadRequest("malformed_json")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse("a number beyond all bounds")


def _is_deeper_than(value: Any, most: int) -> bool:
    layer = [value]
    for _ in range(most):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return False
    return True


class JsonParser(BaseParser):
    """DRF's door to `parse_json`."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the value of the body."""
        return parse_json(stream.read(settings.REQUEST_BODY_MAX_BYTES + 1))
