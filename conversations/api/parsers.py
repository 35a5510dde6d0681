"""Reading JSON bodies: bounded, and strict about what JSON is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from django.conf import settings
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from conversations.errors import ChatError


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON body.

    Raises: ChatError body_too_large; ParseError, also for NaN, bytes that are no UTF-8, and nesting too deep.
    """
    if len(body) > settings.REQUEST_BODY_MAX_BYTES:
        raise ChatError("body_too_large")
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ParseError from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class JsonParser(BaseParser):
    """DRF's door to `parse_json`."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the value of the body."""
        return parse_json(stream.read(settings.REQUEST_BODY_MAX_BYTES + 1))
