"""The edge of the streaming calls, without a server: what the tests of streams over sockets cannot bring about."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from conversations.api.stream import Endpoint, Relay, Request, Wish
from conversations.events import Position
from conversations.generation.buffer import Ending, ReplyBuffer


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


def test_no_silence_is_longer_than_a_heartbeat(settings: Any) -> None:
    settings.STREAM_HEARTBEAT_SECONDS = 1.0
    moments: list[float] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        moments.append(time.monotonic())

    async def say_little() -> None:
        buffer = ReplyBuffer(1, site_id=1, created_at="")
        request = Request({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
        relaying = asyncio.create_task(Relay(request, buffer, Position(1), Wish()).run(b": ok\n\n"))
        await asyncio.sleep(0.3)
        buffer.apply(0, "好")
        await asyncio.sleep(2)
        buffer.end(Ending("complete"))
        await relaying

    asyncio.run(say_little())
    assert max(later - earlier for earlier, later in itertools.pairwise(moments)) < 1.3


def test_a_client_that_hung_up_is_noticed_while_the_reply_is_silent() -> None:
    has_left = False

    async def receive() -> dict[str, Any]:
        if not has_left:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async def leave() -> float:
        nonlocal has_left
        request = Request({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
        buffer = ReplyBuffer(1, site_id=1, created_at="")
        relaying = asyncio.create_task(Relay(request, buffer, Position(1), Wish()).run(b": ok\n\n"))
        await asyncio.sleep(1.2)
        assert not relaying.done()
        has_left, left = True, time.monotonic()
        await relaying
        assert buffer.ending is None and not buffer.is_followed
        return time.monotonic() - left

    assert asyncio.run(leave()) < 1
