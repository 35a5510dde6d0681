"""How soon does `stop` on the other worker close the upstream connection, and is its receipt true?

The reply runs on one worker, the stop goes to the other. The provider notes when its connection was closed;
both clocks are this machine's monotonic clock.
"""

import argparse
import asyncio
import sys
import time

from benchmarks.lib import report as reports
from benchmarks.lib.api import Member
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece, Reading
from tests.fakes.provider import expected_text

WITHIN_MS = 500.0


async def stop_one(
    report: reports.Report, product: Product, member: Member, *, number: int
) -> tuple[float, float]:
    """Stop a reply of one worker on the other; return the ms to the closed upstream and to the receipt."""
    owner, other = product.addresses[:: 1 if number % 2 else -1]
    chat_id = await member.create_chat(owner)
    tag = f"s{number}"
    words = {"n": 2000, "rate": (20, 100, 400)[number % 3], "seed": number + 1, "tag": tag}
    if number % 5 == 4:
        words = {"fault": "stall", "after": 6, "seed": number + 1, "tag": tag}
    known: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def watch(piece: Piece) -> None:
        if piece.message_id and len(piece.events) >= 3 - 2 * ("fault" in words) and not known.done():
            known.set_result(piece.message_id)

    stream = asyncio.create_task(
        member.send(owner, chat_id, f"停一停 {directive(**words)}", timeout=30, on_piece=watch)
    )
    async with asyncio.timeout(10):
        message_id = await known
    await asyncio.sleep(0.05 * (number % 7))
    asked_at = time.monotonic()
    receipt = await member.stop(other, message_id)
    answered_ms = (time.monotonic() - asked_at) * 1000
    where = f"stop {number}: {receipt.status} {receipt.body[:300]!r}: "
    report.check("the stop is answered with 200", receipt.status == 200, where)
    closed_at = await product.provider.closed_at(tag, seconds=3)
    closed_ms = (closed_at - asked_at) * 1000 if closed_at else float("inf")
    report.check(f"upstream closed within {WITHIN_MS:.0f} ms", closed_ms < WITHIN_MS, f"{where}{closed_ms:.0f} ms")
    reading = Reading()
    reading.absorb(await stream, start=0)
    stored = await member.message(other, chat_id, message_id)
    told = receipt.json() or {}
    report.check(
        "the reader's stream ends as stopped", reading.status() == "stopped", f"{where}{reading.terminal}"
    )
    report.check("the contract of the stream is kept", not reading.violations, where + str(reading.violations))
    report.check(
        "the reader has exactly the stored text",
        reading.text == stored["content"],
        where + repr(stored)[:400],
    )
    report.check(
        "it is what the model said so far", expected_text(number + 1, 2000).startswith(reading.text), where
    )
    report.check(
        "the receipt names the reply, its status and its characters",
        (told.get("messageId"), told.get("status"), told.get("savedChars"))
        == (message_id, "stopped", len(stored["content"])),
        f"{where}{len(stored['content'])} stored, {stored['status']}",
    )
    claimed = told.get("upstreamClosedMs")
    is_true = isinstance(claimed, int | float) and claimed <= answered_ms + 5 and abs(claimed - closed_ms) < 150
    report.check(
        "the receipt's time is the provider's", is_true, f"{where}{claimed} against {closed_ms:.0f} ms seen"
    )
    again = await member.stop(other, message_id)
    report.check("a second stop is 409", again.status == 409, f"{again.status} {again.body[:200]!r}")
    return closed_ms, answered_ms


async def main(arguments: argparse.Namespace) -> int:
    """Stop all replies and return the exit code."""
    report = reports.Report("stop from the other worker", arguments)
    async with Product(keep=arguments.keep) as product:
        await product.start(2)
        closed, answered = [], []
        for number in range(arguments.stops):
            member = product.member(("alice", "bob", "carol")[number % 3])
            try:
                closed_ms, answered_ms = await stop_one(report, product, member, number=number)
            except (OSError, TimeoutError, AssertionError) as error:
                report.check("each stop could be tried", False, f"stop {number}: {error!r}")
                continue
            closed.append(closed_ms)
            answered.append(answered_ms)
        report.figure("stops", len(closed))
        for name, values in (("stop to closed upstream, ms", closed), ("stop to receipt, ms", answered)):
            shown = [f"{reports.percentile(values, share):.0f}" for share in (0.5, 0.99)]
            report.figure(f"{name}, p50 / p99 / max", " / ".join([*shown, f"{max(values, default=0):.0f}"]))
        await asyncio.sleep(0.5)
        left = await product.provider.open_streams()
        report.check("no upstream stream is left", left == 0, left)
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--stops", type=int, default=50, help="replies to stop")
    sys.exit(asyncio.run(main(parser.parse_args())))
