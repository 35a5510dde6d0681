"""Calls of the voice platform against the application, in this process, with a caller who may hang up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from chatsite.asgi import application
from conversations.models import VoiceSession
from tests.world import VOICE_SECRETS

KEY = VOICE_SECRETS["callback_key"]


@dataclass
class Call:
    """One call: what was sent back so far, and how to hang up."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_over: bool = False
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def hang_up(self) -> None:
        """Close the connection, as the platform does when the person interrupts."""
        self._gone.set()

    async def until(self, chars: int) -> str:
        """Return the text said so far, when it is that long."""
        async with asyncio.timeout(10):
            while len(self.text) < chars and not self.is_over:
                self._moved.clear()
                await self._moved.wait()
        return self.text

    async def end(self) -> Call:
        """Return this call when it is over."""
        assert self.task is not None
        await asyncio.wait_for(asyncio.shield(self.task), 10)
        return self

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The chunks that have come, `[DONE]` left out."""
        lines = self.body.decode().split("\n\n")[:-1]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines), lines
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in self.chunks)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None while it has not."""
        return self.chunks[-1]["choices"][0]["finish_reason"] if self.body.endswith(b"[DONE]\n\n") else None

    @property
    def json(self) -> Any:
        """The body as one document."""
        return json.loads(self.body)


def call(
    session: VoiceSession | str,
    body: Any,
    *,
    key: str | None = KEY,
    path: str = "/api/chat_callback",
    method: str = "POST",
    query: str | None = None,
) -> Call:
    """Return a call under way; a text as body is sent as the user's words, a list as messages."""
    if isinstance(body, str):
        body = [{"role": "user", "content": body}]
    if isinstance(body, list):
        body = {"messages": body, "stream": True, "model": "ep-1"}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    room = session if isinstance(session, str) else session.room_id
    made = Call()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": raw, "more_body": False}
        await made._gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if made._gone.is_set():
            return
        if message["type"] == "http.response.start":
            made.status = message["status"]
            made.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            made.body += message["body"]
            made.is_over = not message.get("more_body")
        made._moved.set()
        await asyncio.sleep(0)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": headers,
        "query_string": (f"room_id={room}" if query is None else query).encode(),
    }

    async def run() -> None:
        try:
            await application(scope, receive, send)
        finally:
            made.is_over = True
            made._moved.set()

    made.task = asyncio.get_running_loop().create_task(run())
    return made
