"""Do the pieces of a stream that is cut anywhere always make the stored text?

Streams are cut by the client after a random number of bytes (also inside the head, an event or a character),
politely or by reset, and resumed by the last complete event: by every documented way, on the same and on the
other worker, during the reply and after its end, cut again and resumed again.
"""

import argparse
import asyncio
import random
import sys
from collections import Counter
from typing import Any

from benchmarks.lib import report as reports
from benchmarks.lib.api import Member
from benchmarks.lib.http import Address
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece, Reading
from tests.fakes.provider import expected_text

WAYS = ("post+id", "get", "get?query", "reply+id", "reply", "post+key")
FROM_THE_BEGINNING = ("reply", "post+key")


class Plan:
    """Everything about one stream that chance decides."""

    def __init__(self, seed: int, index: int, workers: list[Address]) -> None:
        self.dice = random.Random(f"{seed}/{index}")
        self.seed = self.dice.randrange(1, 1 << 30)
        self.n = self.dice.choice((3, 12, 40, 120))
        self.rate = self.dice.choice((0, 40, 80, 200))
        self.key = f"cuts-{seed}-{index}"
        self.content = f"第{index}次 {directive(n=self.n, rate=self.rate, seed=self.seed)}"
        self.text = expected_text(self.seed, self.n)
        self.seconds = self.n / self.rate if self.rate else 0.05
        self.cuts = self.dice.choice((1, 1, 1, 2, 3))
        self.workers = workers

    def cut_bytes(self) -> int:
        """Return after how many bytes to cut; most fall inside the reply, some inside its head."""
        if self.dice.random() < 0.15:
            return self.dice.randrange(0, 600)
        return 420 + self.dice.randrange(0, 40 + 50 * self.n)

    async def pause(self) -> str:
        """Wait as a client does that comes back at once, soon, or after the reply's end; return which."""
        when = self.dice.choice(("at once", "soon", "after the end"))
        if when == "soon":
            await asyncio.sleep(self.dice.random() * min(self.seconds, 0.5))
        elif when == "after the end":
            await asyncio.sleep(self.seconds + 0.5)
        return when


async def connect_again(
    member: Member, worker: Address, chat_id: int, plan: Plan, reading: Reading, cut_after: int | None
) -> tuple[Piece, str]:
    """Resume in one of the documented ways; return the piece and the way."""
    way = plan.dice.choice(WAYS) if reading.message_id else "post+key"
    at = str(reading.last_event_id)
    how: dict[str, Any] = {
        "cut_after_bytes": cut_after,
        "cut_is_reset": plan.dice.random() < 0.5,
        "timeout": 30.0,
    }
    if way == "post+id":
        key = plan.dice.choice((plan.key, None))
        piece = await member.send(worker, chat_id, plan.content, key=key, last_event_id=at, **how)
    elif way == "post+key":
        piece = await member.send(worker, chat_id, plan.content, key=plan.key, **how)
    elif way in ("get", "get?query"):
        piece = await member.resume(worker, at, is_query=way == "get?query", **how)
    else:
        piece = await member.read_reply(
            worker, reading.message_id or 0, last_event_id=at if way == "reply+id" else None, **how
        )
    return piece, way


async def one_stream(
    report: reports.Report, counts: Counter[str], member: Member, chat_id: int, plan: Plan
) -> bool:
    """Run one stream to its end through its cuts and check it; return whether it was really cut."""
    reading = Reading()
    first = plan.dice.choice(plan.workers)
    how: dict[str, Any] = {"cut_after_bytes": plan.cut_bytes(), "cut_is_reset": plan.dice.random() < 0.5}
    piece = await member.send(first, chat_id, plan.content, key=plan.key, **how)
    reading.absorb(piece, start=0)
    cuts = 0
    for attempt in range(20):
        if reading.terminal is not None and piece.ended != "cut":
            break
        if piece.ended == "cut":
            cuts += 1
        elif piece.status != 200:
            report.check(
                "a resume answers 200",
                False,
                f"{plan.content}: {piece.status} {piece.ended} {piece.body[:300]!r}",
            )
            return False
        if reading.terminal is not None and plan.dice.random() < 0.7:
            break  # a client that saw the end does not come back; some do
        when = await plan.pause()
        worker = plan.dice.choice(plan.workers)
        cut_after = plan.cut_bytes() if cuts < plan.cuts and attempt < 10 else None
        piece, way = await connect_again(member, worker, chat_id, plan, reading, cut_after)
        counts[f"resumed {'on the same worker' if worker == first else 'on another worker'}"] += 1
        counts[f"resumed {when}"] += 1
        counts[f"resumed by {way}"] += 1
        reading.absorb(piece, start=0 if way in FROM_THE_BEGINNING else len(reading.text))
    counts["cuts"] += cuts
    await judge(report, member, chat_id, plan, reading)
    return cuts > 0


async def judge(report: reports.Report, member: Member, chat_id: int, plan: Plan, reading: Reading) -> None:
    """Check the finished reading against the provider's text, the stored row and a replay from anywhere."""
    where = f"{plan.content}: "
    report.check("ids and pieces are consistent", not reading.violations, where + str(reading.violations))
    if not report.check("the reply ended", reading.terminal is not None, where + str(reading)[:300]):
        return
    message_id = int(reading.message_id or 0)
    worker = plan.dice.choice(plan.workers)
    stored = await member.message(worker, chat_id, message_id)
    report.check(
        "the pieces make the stored text",
        reading.text == stored["content"],
        where + f"{reading.text!r} {stored!r}"[:900],
    )
    report.check(
        "the stored text is what the model said", stored["content"] == plan.text, where + repr(stored)[:500]
    )
    report.check(
        "it is complete",
        (reading.status(), stored["status"]) == ("complete", "complete"),
        where + repr(stored)[:300],
    )
    offset = plan.dice.randrange(len(reading.text) + 1)
    rest = await member.resume(worker, f"{message_id}-{offset}")
    tail = reading.text[offset:]
    report.check(
        "a replay from any offset is exactly the rest",
        rest.text == tail,
        f"{where}{offset} {rest.status} {rest.text!r}"[:600],
    )
    ended = rest.terminal is not None and rest.terminal.data == (reading.terminal.data if reading.terminal else "")
    report.check("a replay ends with the same terminal event", ended, f"{where}{rest.terminal} {reading.terminal}")


async def main(arguments: argparse.Namespace) -> int:
    """Cut the asked number of streams and return the exit code."""
    report = reports.Report("streams cut anywhere and resumed", arguments)
    counts: Counter[str] = Counter()
    async with Product(keep=arguments.keep) as product:
        await product.start(2)
        workers = product.addresses
        members = [product.member(name) for name in ("alice", "bob", "carol")]
        queue = iter(range(10 * arguments.streams))

        async def client(member: Member) -> None:
            chat_id = await member.create_chat(workers[0])
            sent = []
            while counts["streams cut"] + counts["in flight"] < arguments.streams:
                plan = Plan(arguments.seed, next(queue), workers)
                sent.append(plan.content)
                counts["in flight"] += 1
                try:
                    is_cut = await one_stream(report, counts, member, chat_id, plan)
                finally:
                    counts["in flight"] -= 1
                counts["streams"] += 1
                counts["streams cut"] += is_cut
                if counts["streams"] % 100 == 0:
                    report.say(f"{counts['streams']} streams, {counts['streams cut']} cut")
            said = [
                item["content"] for item in await member.transcript(workers[0], chat_id) if item["role"] == "user"
            ]
            report.check("no question is lost or doubled", said == sent, f"{len(said)} stored, {len(sent)} sent")

        jobs = [client(members[index % 3]) for index in range(arguments.parallel)]
        for outcome in await asyncio.gather(*jobs, return_exceptions=True):
            report.check("no client program failed", outcome is None, repr(outcome))
        del counts["in flight"]
        for name in sorted(counts):
            report.figure(name, counts[name])
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--streams", type=int, default=1000, help="streams that are really cut")
    parser.add_argument("--parallel", type=int, default=30, help="clients at a time")
    sys.exit(asyncio.run(main(parser.parse_args())))
