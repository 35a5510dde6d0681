"""HTTP/1.1 with bounds: what a reverse proxy would do before us, for those who have none.

uvicorn on httptools takes heads of any size for any time. One connection that sends an endless header held the
event loop for longer than a lease (its pieces are joined again with each read), and 37 MiB of small ones cost
380 MiB. Bodies are bounded by `conversations/api/edge.py`, under every server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

from django.conf import settings
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from conversations.api.errors import problem_response_parts
from conversations.errors import ChatError

HEAD_MAX_BYTES = 64 * 1024
PIPELINE_MAX = 64


class Flag:
    """What uvicorn uses of an asyncio.Event. That one keeps 0.8 KB ready for waiters, and each stream has two."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self, is_set: bool = False) -> None:
        self._is_set = is_set
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._is_set = True
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Let the next ones wait again."""
        self._is_set = False

    async def wait(self) -> bool:
        """Return when it has been set."""
        if self._is_set:
            return True
        waiter = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if self._waiters is not None and waiter in self._waiters:
                self._waiters.remove(waiter)
        return True


class Queue(list[Any]):
    """What uvicorn uses of a deque for requests ahead of their answers: nearly always empty, and then small."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        """Put an item before the others."""
        self.insert(0, item)


class Done:
    """What is awaited at once."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for nothing."""
        yield from ()


DONE = Done()


class Cycle(RequestResponseCycle):
    """One request and its answer; pieces of a stream go straight to the socket while that takes them."""

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]  # as uvicorn calls it
        """Do what the base class does, for a piece of a chunked body without its detours."""
        if (
            self.chunked_encoding
            and message.get("more_body")
            and message["type"] == "http.response.body"
            and not (self.flow.write_paused or self.disconnected or self.response_complete)
            and self.scope["method"] != "HEAD"
        ):
            if body := message.get("body"):
                self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
            return DONE
        return super().send(message)


class BoundedProtocol(HttpToolsProtocol):
    """One connection: refuses heads and trailers that are too large or too slow, and too many requests ahead."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = Queue()  # type: ignore[assignment]  # the same methods, leaner
        self._refusal = "bad_request"
        self._head_bytes = 0
        self._barren_bytes = 0
        self._has_begun = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn calls it
        """Give the first request its time."""
        super().connection_made(transport)
        self.flow._is_writable_event = Flag(is_set=True)  # type: ignore[assignment]  # the same methods, leaner
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what brings a request no further: pieces of a line, trailers, words beside a chunk's size."""
        self._barren_bytes += len(data)
        super().data_received(data)
        if self._barren_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
            self._refuse("head_too_large")

    def on_message_begin(self) -> None:
        """Begin to count and to time a request."""
        super().on_message_begin()
        self._head_bytes = 0
        self._has_begun = True
        self._arm()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Answer the request, when there are not too many before it."""
        self._disarm()
        self._has_begun = False
        self._barren_bytes = 0
        super().on_headers_complete()
        if type(self.cycle) is RequestResponseCycle:  # a new one, whose task has not begun yet
            self.cycle.__class__ = Cycle
            self.cycle.message_event = Flag()  # type: ignore[assignment]  # the same methods, leaner
        if len(self.pipeline) > PIPELINE_MAX:
            raise ValueError("too many requests ahead of their answers")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._barren_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of the body."""
        self._disarm()
        self._barren_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give a client that is answered before its body is whole the time to read the answer, then close."""
        if self.cycle.more_body:
            self._arm()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not take, as every other error is told; then close."""
        if self.cycle is None or (self.cycle.response_complete and not self.pipeline):
            status, headers, body = problem_response_parts(ChatError(self._refusal), [])
            lines = [*headers, (b"connection", b"close")]
            head = b"".join(b"%b: %b\r\n" % line for line in lines)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_MAX_BYTES:
            self._refusal = "head_too_large"
            raise ValueError("the head is too large")

    def _refuse(self, code: str) -> None:
        self._refusal = code
        self.send_400_response("")

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(settings.REQUEST_READ_SECONDS, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self._has_begun:
            self._refuse("request_timeout")
        else:
            self.transport.close()
