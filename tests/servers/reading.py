"""Reading event streams as a client does, strictly: what a lenient client would forgive fails here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Reading:
    """What one connection brought."""

    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    events: list[tuple[str | None, str, Any]] = field(default_factory=list)
    body: bytes = b""

    @property
    def text(self) -> str:
        """The tokens, concatenated."""
        return "".join(data["token"] for _, event, data in self.events if event == "message")

    @property
    def reasoning(self) -> str:
        """The thoughts, concatenated."""
        return "".join(data["token"] for _, event, data in self.events if event == "reasoning")

    @property
    def last_id(self) -> str:
        """The id of the last event that had one."""
        return next(event_id for event_id, _, _ in reversed(self.events) if event_id)

    @property
    def terminal(self) -> tuple[str, Any] | None:
        """The terminal event and its data; there may be one, and nothing after it."""
        ends = [(event, data) for _, event, data in self.events if event in {"done", "error"}]
        assert len(ends) <= 1, ends
        if ends:
            assert self.events[-1][1:] == ends[0], "something follows the terminal event"
            return ends[0]
        return None

    @property
    def message_id(self) -> int:
        """The reply's id, from the headers."""
        return int(self.headers["x-message-id"])


def frames(body: bytes) -> Iterator[tuple[str | None, str, Any]]:
    """Yield (id, event, data) of each whole frame; anything that the contract does not allow fails."""
    assert b"\r" not in body, "only LF is allowed"
    *whole, _rest = body.decode("utf-8", errors="strict").split("\n\n")
    for block in whole:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            if line.startswith(":"):
                continue
            name, separator, value = line.partition(": ")
            assert separator, line
            assert name not in fields, block
            assert name in {"id", "event", "data"}, line
            fields[name] = value
        if fields:
            assert "\u2028" not in fields["data"]
            yield fields.get("id"), fields["event"], json.loads(fields["data"])


def read(
    client: httpx.Client, method: str, url: str, *, stop_after_bytes: int | None = None, **request: Any
) -> Reading:
    """Return what a call brings, to its end or cut after so many bytes."""
    reading = Reading()
    with client.stream(method, url, **request) as answer:
        reading.status, reading.headers = answer.status_code, answer.headers
        for chunk in answer.iter_raw():
            reading.body += chunk
            if stop_after_bytes is not None and len(reading.body) >= stop_after_bytes:
                reading.body = reading.body[:stop_after_bytes]
                break
    if reading.status == 200:
        whole = reading.body[: reading.body.rfind(b"\n\n") + 2]
        reading.events = list(frames(whole))
    return reading
