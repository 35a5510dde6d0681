"""A member as a client: signs in, and calls the API by its documented paths, on any worker it likes."""

import asyncio
import time
import urllib.parse
from typing import Any

from benchmarks.lib.http import Address, Answer, fetch
from benchmarks.lib.sse import Piece, Reading, read_stream

CHAT = "/api/xcx/chat"
TERMINAL_STATUSES = ("complete", "truncated", "stopped", "failed", "interrupted")
PEOPLE = {"alice": "demo", "bob": "demo", "carol": "demo2"}


class UnexpectedAnswer(AssertionError):
    """The product answered something else than the program's preparation needs."""


def expect(answer: Answer, *statuses: int) -> Any:
    """Return the JSON of an answer that has one of these statuses.

    Raises: UnexpectedAnswer, with the beginning of the body.
    """
    if answer.status not in (statuses or (200,)):
        raise UnexpectedAnswer(f"{answer.status} instead of {statuses or (200,)}: {answer.body[:300]!r}")
    return answer.json()


class Member:
    """One person in one site. Every call names the worker (address) it goes to."""

    def __init__(self, username: str, password: str, *, site: str | None = None) -> None:
        self.username = username
        self.site = site or PEOPLE[username]
        self._password = password
        self._access = ""
        self._access_until = 0.0
        self._signing_in = asyncio.Lock()

    async def sign_in(self, worker: Address) -> None:
        """Get a fresh access token when the one at hand ends soon."""
        async with self._signing_in:
            if time.monotonic() < self._access_until:
                return
            payload = {"username": self.username, "password": self._password, "site": self.site}
            answer = expect(await fetch(worker, "POST", "/api/auth/token", payload=payload))
            self._access = answer["access"]
            self._access_until = time.monotonic() + float(answer["expiresIn"]) * 0.8

    async def headers(self, worker: Address, **more: str | None) -> dict[str, str]:
        """Return the request headers of this member; names with `_` become `-`, None is left out."""
        await self.sign_in(worker)
        extra = {name.replace("_", "-"): value for name, value in more.items() if value is not None}
        return {"Authorization": f"Bearer {self._access}", **extra}

    async def call(
        self,
        worker: Address,
        method: str,
        path: str,
        payload: object | None = None,
        *,
        key: str | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Return the answer to one JSON call."""
        headers = await self.headers(worker, Idempotency_Key=key)
        return await fetch(worker, method, path, headers=headers, payload=payload, timeout=timeout)

    async def create_chat(self, worker: Address) -> int:
        """Return the id of a new conversation."""
        answer = await self.call(worker, "POST", f"{CHAT}/conversations", {"contextType": "general"})
        return int(expect(answer, 201)["chatId"])

    async def send(
        self,
        worker: Address,
        chat_id: int,
        content: str,
        *,
        key: str | None = None,
        last_event_id: str | None = None,
        query: str = "",
        **how: Any,
    ) -> Piece:
        """POST a message and read its stream; with `last_event_id`, the POST with which a client resumes."""
        headers = await self.headers(worker, Idempotency_Key=key, Last_Event_ID=last_event_id)
        payload = {"chatId": chat_id, "content": content}
        return await read_stream(worker, "POST", f"{CHAT}/stream{query}", headers=headers, payload=payload, **how)

    async def resume(
        self,
        worker: Address,
        last_event_id: str,
        *,
        path: str = f"{CHAT}/stream",
        is_query: bool = False,
        **how: Any,
    ) -> Piece:
        """GET the rest of a reply after `last_event_id`, by header or by query."""
        headers = await self.headers(worker, Last_Event_ID=None if is_query else last_event_id)
        query = "?lastEventId=" + urllib.parse.quote(last_event_id) if is_query else ""
        return await read_stream(worker, "GET", path + query, headers=headers, **how)

    async def read_reply(
        self, worker: Address, message_id: int, *, last_event_id: str | None = None, **how: Any
    ) -> Piece:
        """GET the stream of one reply, from its beginning or after `last_event_id`."""
        headers = await self.headers(worker, Last_Event_ID=last_event_id)
        return await read_stream(worker, "GET", f"{CHAT}/messages/{message_id}/stream", headers=headers, **how)

    async def stop(self, worker: Address, message_id: int) -> Answer:
        """Ask for the end of a running reply."""
        return await self.call(worker, "POST", f"{CHAT}/messages/{message_id}/stop", {})

    async def message(self, worker: Address, chat_id: int, message_id: int) -> dict[str, Any]:
        """Return one message as history shows it."""
        path = f"{CHAT}/{chat_id}/messages?after={message_id - 1}&limit=5"
        items = expect(await self.call(worker, "GET", path))["items"]
        found = [item for item in items if item["id"] == message_id]
        if len(found) != 1:
            raise UnexpectedAnswer(f"message {message_id} is {len(found)} times in {path}: {str(items)[:300]}")
        return dict(found[0])

    async def transcript(self, worker: Address, chat_id: int) -> list[dict[str, Any]]:
        """Return all messages of a conversation, oldest first."""
        items: list[dict[str, Any]] = []
        while True:
            after = items[-1]["id"] if items else 0
            path = f"{CHAT}/{chat_id}/messages?after={after}&limit=100"
            page = expect(await self.call(worker, "GET", path))["items"]
            if not page:
                return items
            items += page


async def read_to_the_end(
    member: Member, workers: list[Address], reading: Reading, *, seconds: float, pause: float = 0.2
) -> bool:
    """Resume a reply on whichever worker answers until its terminal event; False when `seconds` run out."""
    until = time.monotonic() + seconds
    turn = 0
    while reading.terminal is None and time.monotonic() < until:
        worker = workers[turn % len(workers)]
        turn += 1
        try:
            piece = await member.resume(
                worker, str(reading.last_event_id), timeout=max(until - time.monotonic(), 0.1)
            )
        except (OSError, TimeoutError):
            await asyncio.sleep(pause)
            continue
        if piece.status == 200:
            reading.absorb(piece, start=len(reading.text))
        elif piece.status is not None and piece.status < 500:
            reading.violations.append(
                f"resume of {reading.last_event_id} answered {piece.status} {piece.body[:200]!r}"
            )
            return False
        if reading.terminal is None:
            await asyncio.sleep(pause)
    return reading.terminal is not None
