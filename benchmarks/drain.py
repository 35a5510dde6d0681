"""What does SIGTERM do in mid-stream? (bar 9)

Replies that end within DRAIN_SECONDS complete; the others are stored as `interrupted` with their whole text;
every reader gets the terminal event; new work is refused; the process exits with 0.
"""

import argparse
import asyncio
import sys
import time

from benchmarks.lib import report as reports
from benchmarks.lib.api import Member
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


async def one_round(report: reports.Report, product: Product, *, number: int, streams: int, drain: float) -> None:
    """Start short and long replies on one worker, end it with SIGTERM, and read everything on the other."""
    leaving, staying = product.workers
    members = [product.member(name) for name in ("alice", "bob", "carol")]
    chats = [await members[i % 3].create_chat(staying.address) for i in range(streams + 1)]
    lengths = [(40, 20) if i % 2 else (4000, 20) for i in range(streams)]
    lengths[0] = (30, 20)
    pieces: list[Piece | None] = [None] * streams
    begun: set[int] = set()

    async def listen(i: int) -> None:
        n, rate = lengths[i]
        words = (
            {"n": n, "rate": rate, "seed": i + 1} if i % 4 != 2 else {"fault": "stall", "after": 5, "seed": i + 1}
        )
        pieces[i] = await members[i % 3].send(
            leaving.address,
            chats[i],
            f"第{i}篇 {directive(**words)}",
            key=f"drain-{number}-{i}",
            timeout=drain + 30,
            on_piece=lambda piece: begun.add(i) if piece.events else None,
        )

    listeners = [asyncio.create_task(listen(i)) for i in range(streams)]
    for _ in range(500):
        if len(begun) == streams:
            break
        await asyncio.sleep(0.02)
    report.check("all replies had begun", len(begun) == streams, len(begun))
    asked_at = time.monotonic()
    leaving.terminate()
    await asyncio.sleep(0.3)
    seen = await refusals(report, members[streams % 3], leaving, chats[streams], asked_at + drain * 0.8)
    code = await leaving.wait(drain + 15)
    took = time.monotonic() - asked_at
    report.check(
        "exit code 0",
        code == 0,
        f"{code} after {took:.1f} s: {leaving.log_path.read_text(errors='replace')[-1500:]}",
    )
    report.check("it exits soon after the drain", took < drain + 5, f"{took:.1f} s")
    report.figure(f"round {number + 1}: seconds to exit", took)
    report.figure(f"round {number + 1}: met while draining", ", ".join(seen))
    await asyncio.gather(*listeners)
    counts = {"complete": 0, "interrupted": 0}
    for i, piece in enumerate(pieces):
        assert piece is not None
        reading = Reading()
        reading.absorb(piece, start=0)
        stored = await members[i % 3].message(staying.address, chats[i], int(reading.message_id or 0))
        is_short = lengths[i][0] < 100 and i % 4 != 2
        wanted = "complete" if is_short else "interrupted"
        where = f"{lengths[i]} {piece.ended} {reading.terminal and reading.terminal.data} {stored}"[:900]
        report.check(
            "the reader gets the terminal event from the draining worker", reading.terminal is not None, where
        )
        report.check(f"stored as {wanted}", stored["status"] == wanted, where)
        report.check("the stored text is what was read", reading.text == stored["content"], where)
        report.check("ids and pieces are consistent", not reading.violations, str(reading.violations))
        whole = expected_text(i + 1, lengths[i][0])
        if is_short:
            report.check("a complete reply is whole", stored["content"] == whole, where)
        else:
            at_least = 5 if i % 4 == 2 else int((drain - 1.5) * lengths[i][1])
            is_prefix = whole.startswith(stored["content"]) and len(stored["content"]) >= len(
                expected_text(i + 1, at_least)
            )
            report.check(
                "an interrupted reply keeps its whole text", is_prefix, f"{where} at least {at_least} tokens"
            )
        counts[stored["status"]] = counts.get(stored["status"], 0) + 1
        again = await members[i % 3].send(staying.address, chats[i], f"继续 {directive(n=2)}", timeout=15)
        report.check(
            "the conversation goes on elsewhere",
            again.terminal is not None and again.terminal.name == "done",
            again,
        )
    report.figure(f"round {number + 1}: replies", counts)
    refused = await members[streams % 3].transcript(staying.address, chats[streams])
    report.check("refused sends leave nothing behind", refused == [], refused)
    report.check(
        "the database lives on for the other worker",
        (await staying.get("/readyz")).status == 200,
        "not ready",
    )


async def main(arguments: argparse.Namespace) -> int:
    """Drain a few times and return the exit code."""
    report = reports.Report("bar 9: SIGTERM in mid-stream", arguments)
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
