"""What does SIGTERM do in mid-stream?

Replies that end within DRAIN_SECONDS complete; the others are stored as `interrupted` with their whole text;
every reader gets the terminal event; new work is refused; the process exits with 0.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.lib import report as reports
from benchmarks.lib.api import Member, read_to_the_end
from benchmarks.lib.http import BadResponse, fetch
from benchmarks.lib.product import Product, Worker
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece, Reading
from tests.fakes.provider import expected_text

REFUSED = "refused"
HANGS = "hangs"


async def refusals(
    report: reports.Report, member: Member, worker: Worker, chat_id: int, until: float
) -> list[str]:
    """Return what readiness and new sends met while draining, in order."""
    seen: list[str] = []
    headers = await member.headers(worker.address)
    while time.monotonic() < until and worker.is_running:
        for name in ("readyz", "send"):
            try:
                if name == "readyz":
                    answer = await fetch(worker.address, "GET", "/readyz", timeout=2)
                else:
                    payload = {"chatId": chat_id, "content": f"还收吗 {directive(n=1)}"}
                    answer = await fetch(
                        worker.address,
                        "POST",
                        "/api/xcx/chat/stream",
                        headers=headers,
                        payload=payload,
                        timeout=2,
                    )
                found = f"{name} {answer.status}"
                report.check(
                    "a draining worker refuses with 503 or no connection",
                    answer.status == 503,
                    f"{found} {answer.body[:200]!r}",
                )
            except TimeoutError:
                found = f"{name} {HANGS}"
                report.check("a draining worker does not let callers hang", False, found)
            except (OSError, BadResponse):
                found = f"{name} {REFUSED}"
            if found not in seen:
                seen.append(found)
        await asyncio.sleep(0.25)
    return seen


@dataclass
class Reply:
    """One reply in flight at SIGTERM, and what its reader got."""

    member: Member
    chat_id: int
    number: int
    seed: int
    words: dict[str, object]
    ends_in_time: bool
    piece: Piece = field(default_factory=Piece)

    async def listen(self, worker: Worker, *, timeout: float) -> None:
        """Ask for the reply and read it, keeping the piece as it grows."""

        def keep(piece: Piece) -> None:
            self.piece = piece

        content = f"第{self.seed}篇 {directive(seed=self.seed, **self.words)}"
        key = f"drain-{self.number}-{self.seed}"
        self.piece = await self.member.send(
            worker.address, self.chat_id, content, key=key, timeout=timeout, on_piece=keep
        )

    def least_tokens(self, drain: float) -> int:
        """Return how many tokens an interrupted reply must hold at the least."""
        return 5 if "fault" in self.words else int((drain - 1.5) * 20)


async def make_replies(
    members: list[Member], worker: Worker, *, number: int, first: int, count: int
) -> list[Reply]:
    """Return replies of three kinds: short, long, and stalled."""
    kinds: list[tuple[dict[str, object], bool]] = [
        ({"n": 30, "rate": 20}, True),
        ({"n": 4000, "rate": 20}, False),
        ({"n": 40, "rate": 20}, True),
        ({"fault": "stall", "after": 5}, False),
    ]
    made = []
    for i in range(first, first + count):
        member = members[i % 3]
        made.append(Reply(member, await member.create_chat(worker.address), number, i + 1, *kinds[i % 4]))
    return made


async def have_begun(report: reports.Report, replies: list[Reply]) -> None:
    """Wait until each reader has seen some text."""
    for _ in range(500):
        if all(reply.piece.events for reply in replies):
            break
        await asyncio.sleep(0.02)
    waiting = [reply for reply in replies if not reply.piece.events]
    report.check("all replies had begun", not waiting, f"{len(waiting)} of {len(replies)} had not: {waiting[:1]}")


async def one_round(report: reports.Report, product: Product, *, number: int, streams: int, drain: float) -> None:
    """Start replies on one worker, end it with SIGTERM in the middle, and read everything on the other."""
    leaving, staying = product.workers
    members = [product.member(name) for name in ("alice", "bob", "carol")]
    replies = await make_replies(members, staying, number=number, first=0, count=streams)
    others = await make_replies(members, staying, number=number, first=100, count=4)
    idle_chat = await members[0].create_chat(staying.address)
    listeners = [asyncio.create_task(reply.listen(leaving, timeout=drain + 30)) for reply in replies]
    elsewhere = [asyncio.create_task(reply.listen(staying, timeout=drain + 30)) for reply in others]
    await have_begun(report, [*replies, *others])
    guests = [
        asyncio.create_task(
            reply.member.read_reply(leaving.address, reply.piece.message_id or 0, timeout=drain + 30)
        )
        for reply in others
    ]
    await asyncio.sleep(0.3)
    asked_at = time.monotonic()
    leaving.terminate()
    await asyncio.sleep(0.3)
    late = asyncio.create_task(
        members[0].read_reply(leaving.address, replies[0].piece.message_id or 0, timeout=drain + 20)
    )
    seen = await refusals(report, members[0], leaving, idle_chat, asked_at + drain * 0.8)
    code = await leaving.wait(drain + 15)
    took = time.monotonic() - asked_at
    log = leaving.log_path.read_text(errors="replace")
    report.check("exit code 0", code == 0, f"{code} after {took:.1f} s: {log[-1500:]}")
    report.check("it exits soon after the drain", took < drain + 5, f"{took:.1f} s")
    report.check("no traceback in its log", "Traceback" not in log, log[log.find("Traceback") - 500 :][:1500])
    report.figure(f"round {number + 1}: seconds to exit", took)
    report.figure(f"round {number + 1}: met while draining", ", ".join(seen))
    again = await late
    is_read = again.status == 200 and again.terminal is not None
    report.check(
        "a reader may come back during the drain", is_read, f"{again.status} {again.ended} {again.body[:200]!r}"
    )
    await asyncio.gather(*listeners)
    counts = Counter([await judge(report, staying, reply, drain=drain) for reply in replies])
    report.figure(f"round {number + 1}: replies", dict(counts))
    await judge_guests(report, staying, others, [await guest for guest in guests])
    for task in elsewhere:
        task.cancel()
    refused = await members[0].transcript(staying.address, idle_chat)
    report.check("refused sends leave nothing behind", refused == [], refused)
    ready = await staying.get("/readyz")
    report.check("the other worker is not touched", ready.status == 200, f"{ready.status} {ready.body[:200]!r}")


async def judge(report: reports.Report, staying: Worker, reply: Reply, *, drain: float) -> str:
    """Check what a reader of the draining worker got against what is stored; return the stored status."""
    reading = Reading()
    reading.absorb(reply.piece, start=0)
    stored = await reply.member.message(staying.address, reply.chat_id, int(reading.message_id or 0))
    wanted = "complete" if reply.ends_in_time else "interrupted"
    where = f"{reply.words} {reply.piece.ended} {reading.terminal and reading.terminal.data} {stored}"[:900]
    report.check(
        "the reader gets the terminal event from the draining worker", reading.terminal is not None, where
    )
    report.check(f"stored as {wanted}", stored["status"] == wanted, where)
    report.check("the stored text is what was read", reading.text == stored["content"], where)
    report.check("ids and pieces are consistent", not reading.violations, str(reading.violations))
    if reply.ends_in_time:
        whole = expected_text(reply.seed, int(str(reply.words["n"])))
        report.check("a complete reply is whole", stored["content"] == whole, where)
    else:
        is_prefix = expected_text(reply.seed, 4000).startswith(stored["content"])
        least = len(expected_text(reply.seed, reply.least_tokens(drain)))
        report.check("an interrupted reply keeps its whole text", is_prefix and len(reading.text) >= least, where)
    again = await reply.member.send(staying.address, reply.chat_id, f"继续 {directive(n=2)}", timeout=15)
    is_done = again.terminal is not None and again.terminal.name == "done"
    report.check(
        "the conversation goes on elsewhere", is_done, f"{again.status} {again.ended} {again.body[:200]!r}"
    )
    return str(stored["status"])


async def judge_guests(report: reports.Report, staying: Worker, others: list[Reply], pieces: list[Piece]) -> None:
    """Check that readers of replies of the other worker were let go, and can go on there."""
    for reply, piece in zip(others, pieces, strict=True):
        reading = Reading()
        reading.absorb(piece, start=0)
        report.check(
            "readers of the other worker's replies are let go",
            piece.status == 200,
            f"{piece.status} {piece.ended}",
        )
        if not reply.ends_in_time:
            await reply.member.stop(staying.address, int(reading.message_id or 0))
        await read_to_the_end(reply.member, [staying.address], reading, seconds=10)
        report.check(
            "and go on there", reading.terminal is not None and not reading.violations, str(reading)[:500]
        )


async def main(arguments: argparse.Namespace) -> int:
    """Drain a few times and return the exit code."""
    report = reports.Report("SIGTERM in mid-stream", arguments)
    async with Product(keep=arguments.keep, DRAIN_SECONDS=str(arguments.drain)) as product:
        await product.start(2)
        for number in range(arguments.rounds):
            await one_round(report, product, number=number, streams=arguments.streams, drain=arguments.drain)
            await product.workers[0].start()
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often")
    parser.add_argument("--streams", type=int, default=24, help="replies in flight at SIGTERM")
    parser.add_argument("--drain", type=int, default=5, help="DRAIN_SECONDS of the product")
    sys.exit(asyncio.run(main(parser.parse_args())))
