"""Does the history ever lag behind the screen? (DESIGN 2: commit before deliver)

While replies stream on one worker, their readers ask either worker for the message: what it answers must begin
with every character that the reader had when it asked, must never get shorter, and must end as the stream ends.
"""

import argparse
import asyncio
import random
import sys
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib import report as reports
from benchmarks.lib.api import Member
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece
from tests.fakes.provider import expected_text


@dataclass
class Look:
    """What one reader compared."""

    looks: int = 0
    ahead_chars: list[float] = field(default_factory=list)


async def read_and_look(
    report: reports.Report, product: Product, member: Member, look: Look, *, number: int, dice: random.Random
) -> None:
    """Stream one reply, and compare the history with the screen all the while."""
    chat_id = await member.create_chat(product.addresses[0])
    n, rate = dice.choice(((60, 30), (200, 100), (400, 400)))
    owner = dice.choice(product.addresses)
    screen = Piece()

    def show(piece: Piece) -> None:
        nonlocal screen
        screen = piece

    content = f"对照{number} {directive(n=n, rate=rate, seed=number + 1)}"
    stream = asyncio.create_task(member.send(owner, chat_id, content, on_piece=show))
    earlier = ""
    while not stream.done():
        await asyncio.sleep(dice.random() * 0.1)
        if screen.message_id is None:
            continue
        seen, is_over = screen.text, screen.terminal is not None
        stored = await member.message(dice.choice(product.addresses), chat_id, screen.message_id)
        compare(report, stored, seen=seen, earlier=earlier, is_over=is_over, where=content)
        earlier = stored["content"]
        look.looks += 1
        look.ahead_chars.append(len(earlier) - len(seen))
    whole = (await stream).text
    report.check(
        "the stream is whole", whole == expected_text(number + 1, n), f"{content}: {len(whole)} characters"
    )


def compare(
    report: reports.Report, stored: dict[str, Any], *, seen: str, earlier: str, is_over: bool, where: str
) -> None:
    """Check one answer of the history against the screen and against the answer before."""
    content = stored["content"]
    lag = f"{where}: {len(content)} characters stored, {len(seen)} seen, {stored['status']}"
    report.check("the history holds what the screen showed", content.startswith(seen), lag)
    report.check("the history never gets shorter", content.startswith(earlier), f"{where}: {len(earlier)} before")
    if is_over:
        report.check("a stream that ended is complete in the history", stored["status"] == "complete", lag)


async def main(arguments: argparse.Namespace) -> int:
    """Stream and compare, and return the exit code."""
    report = reports.Report("the history never lags behind the screen", arguments)
    look = Look()
    async with Product(keep=arguments.keep) as product:
        await product.start(2)
        members = [product.member(name) for name in ("alice", "bob", "carol")]
        gate = asyncio.Semaphore(arguments.parallel)

        async def one(number: int) -> None:
            async with gate:
                dice = random.Random(f"{arguments.seed}/{number}")
                await read_and_look(report, product, members[number % 3], look, number=number, dice=dice)

        for outcome in await asyncio.gather(*map(one, range(arguments.streams)), return_exceptions=True):
            report.check("no client program failed", outcome is None, repr(outcome))
        report.figure("streams", arguments.streams)
        report.figure("comparisons", look.looks)
        shown = [f"{reports.percentile(look.ahead_chars, share):.0f}" for share in (0, 0.5, 0.99)]
        report.figure("characters ahead of the screen, least / p50 / p99", " / ".join(shown))
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--streams", type=int, default=100, help="replies")
    parser.add_argument("--parallel", type=int, default=10, help="replies at a time")
    sys.exit(asyncio.run(main(parser.parse_args())))
