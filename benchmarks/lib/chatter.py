"""A stubborn client: it sends, loses its connection, comes back on any worker, and forgets no character."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib.api import TERMINAL_STATUSES, Member, UnexpectedAnswer
from benchmarks.lib.http import Address, BadResponse
from benchmarks.lib.provider import directive
from benchmarks.lib.report import Report
from benchmarks.lib.sse import Piece, Reading

NETWORK = (OSError, TimeoutError, BadResponse)


@dataclass
class Turn:
    """One question and the reading of its reply."""

    content: str = field(repr=False)
    key: str
    seconds: float
    started_at: float = field(default_factory=time.monotonic)
    reading: Reading = field(default_factory=Reading)
    ended_at: float | None = None
    notes: list[str] = field(default_factory=list)


class Chatter:
    """Chats in one conversation, one turn after the other, until told to stop."""

    def __init__(
        self,
        member: Member,
        workers: list[Address],
        report: Report,
        *,
        name: str,
        seed: object,
        lengths: tuple[tuple[int, int], ...] = ((40, 40), (80, 40), (120, 60), (10, 20)),
        allows_unavailable: bool = False,
        idle_seconds: float = 4.0,
    ) -> None:
        self.member, self.workers, self.report = member, workers, report
        self.name, self.lengths = name, lengths
        self.dice = random.Random(f"{seed}/{name}")
        self.allows_unavailable = allows_unavailable
        self.idle_seconds = idle_seconds
        self.turns: list[Turn] = []
        self.chat_id = 0
        self.is_stopping = False
        self.resumes = 0
        self.refusals = 0

    async def run(self) -> None:
        """Chat until `is_stopping`; the turn under way is read to its end."""
        self.chat_id = await self._new_chat()
        while not self.is_stopping:
            n, rate = self.dice.choice(self.lengths)
            number = len(self.turns)
            words = directive(n=n, rate=rate, seed=self.dice.randrange(1, 1 << 30), tag=f"{self.name}-{number}")
            turn = Turn(f"{self.name} 的第{number}问 {words}", f"{self.name}-{number}-key", n / rate)
            self.turns.append(turn)
            await self._live_through(turn)
            await asyncio.sleep(self.dice.random() * 0.2)

    async def _new_chat(self) -> int:
        while True:
            try:
                return await self.member.create_chat(self.dice.choice(self.workers))
            except NETWORK:
                await asyncio.sleep(0.2)
            except UnexpectedAnswer:
                if not self.allows_unavailable:
                    raise
                await asyncio.sleep(0.2)

    async def _live_through(self, turn: Turn) -> None:
        deadline = turn.started_at + turn.seconds + 45
        while turn.reading.terminal is None:
            if time.monotonic() > deadline:
                self.report.check("every reply ends", False, f"{self.name}: {turn}")
                return
            worker = self.dice.choice(self.workers)
            known = turn.reading.message_id is not None
            try:
                piece = await (self._resume(turn, worker) if known else self._post(turn, worker))
            except (*NETWORK, UnexpectedAnswer):
                await asyncio.sleep(0.1)  # signing in met a dead worker
                continue
            self._note(turn, piece, worker)
            if turn.reading.terminal is None:
                await asyncio.sleep(0.05 + self.dice.random() * 0.2)
        turn.ended_at = time.monotonic()
        await self._compare(turn)

    async def _post(self, turn: Turn, worker: Address) -> Piece:
        piece = await self.member.send(worker, self.chat_id, turn.content, key=turn.key, **self._how(turn))
        if piece.status == 200:
            turn.reading.absorb(piece, start=0)
        return piece

    async def _resume(self, turn: Turn, worker: Address) -> Piece:
        self.resumes += 1
        at, reading = str(turn.reading.last_event_id), turn.reading
        way = self.dice.choice(("get", "reply", "post+id", "post+key"))
        start = len(reading.text)
        if way == "get":
            piece = await self.member.resume(worker, at, **self._how(turn))
        elif way == "reply":
            piece = await self.member.read_reply(
                worker, reading.message_id or 0, last_event_id=at, **self._how(turn)
            )
        elif way == "post+id":
            piece = await self.member.send(
                worker, self.chat_id, turn.content, key=turn.key, last_event_id=at, **self._how(turn)
            )
        else:
            start = 0
            piece = await self.member.send(worker, self.chat_id, turn.content, key=turn.key, **self._how(turn))
        if piece.status == 200:
            reading.absorb(piece, start=start)
        return piece

    def _how(self, turn: Turn) -> dict[str, Any]:
        """Return the read timeout: a silent connection is given up and resumed elsewhere."""
        left = turn.started_at + turn.seconds - time.monotonic()
        return {"timeout": max(left, 0.0) + self.idle_seconds}

    def _note(self, turn: Turn, piece: Piece, worker: Address) -> None:
        if piece.status == 200 and turn.reading.terminal is None:
            when = piece.ended_at - turn.started_at
            turn.notes.append(f"{when:.1f} s: {piece.ended} at {len(turn.reading.text)} on {worker[1]}")
        if piece.status not in (None, 200):
            self.refusals += 1
            is_excused = self.allows_unavailable and (piece.status or 0) >= 500
            self.report.check(
                "a send or a resume is answered with 200 while a worker lives",
                is_excused,
                f"{self.name}: {piece.status} {piece.body[:300]!r} for {turn}",
            )

    async def _compare(self, turn: Turn) -> None:
        """Check the stored reply against the text this client received."""
        reading = turn.reading
        where = f"{self.name}: {turn}: "
        self.report.check("ids and pieces are consistent", not reading.violations, where + str(reading.violations))
        for _ in range(400):
            try:
                stored = await self.member.message(
                    self.dice.choice(self.workers), self.chat_id, int(reading.message_id or 0)
                )
                break
            except NETWORK:
                await asyncio.sleep(0.1)
            except UnexpectedAnswer as error:
                if not self.allows_unavailable:
                    self.report.check("the reply is in the history", False, f"{where}{error}")
                    return
                await asyncio.sleep(0.1)
        else:
            self.report.check("the history can be read", False, where)
            return
        self.report.check(
            "no received character is missing", stored["content"] == reading.text, f"{where}{stored!r}"[:1200]
        )
        self.report.check(
            "the stored status is the one sent",
            stored["status"] == reading.status(),
            f"{where}{stored!r}"[:900],
        )

    async def verify(self, worker: Address) -> None:
        """Check the conversation afterwards: each question once and in order, each reply once and ended."""
        items = await self.member.transcript(worker, self.chat_id)
        questions = [item for item in items if item["role"] == "user"]
        replies = [item for item in items if item["role"] == "assistant"]
        asked = [turn.content for turn in self.turns]
        said = [item["content"] for item in questions]
        self.report.check(
            "no user message is lost or doubled", said == asked, f"{self.name}: {said} for {asked}"[:1500]
        )
        ids = [turn.reading.message_id for turn in self.turns]
        self.report.check(
            "one reply for each question", [item["id"] for item in replies] == ids, f"{self.name}: {ids}"
        )
        open_now = [item for item in replies if item["status"] not in TERMINAL_STATUSES]
        self.report.check("every stored reply is terminal", not open_now, f"{self.name}: {open_now}"[:900])
        by_id = {item["id"]: item["content"] for item in replies}
        changed = [
            t for t in self.turns if t.reading.terminal and by_id.get(t.reading.message_id) != t.reading.text
        ]
        self.report.check("terminal replies never change", not changed, f"{self.name}: {changed}"[:900])
