"""The edge of the streaming calls, without a server: what the tests of streams over sockets cannot bring about."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from conversations.api.stream import Endpoint, Request


def call(endpoint: Endpoint) -> list[dict[str, Any]]:
    """Return what the endpoint sends for a GET."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(endpoint(scope, receive, send))
    return sent


@pytest.mark.parametrize("error", [psycopg.OperationalError("gone"), PoolTimeout("none free"), TimeoutError()])
def test_a_database_that_went_away_is_503_from_either_door(error: Exception) -> None:
    async def fail(request: Request) -> None:
        raise error

    start, _ = call(Endpoint(GET=fail))
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"2"
