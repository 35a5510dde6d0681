"""Does a change of an endpoint reach every worker within a second, and disturb no reply?

Replies run all the time on all workers, on two endpoints that share the work. Meanwhile the endpoints are changed
through the REST API, each time on another worker; a change counts as acknowledged when all workers say so.
"""

import argparse
import asyncio
import sys
import time

from benchmarks.lib import report as reports
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Reading
from benchmarks.lib.staff import Pair
from tests.fakes.provider import expected_text

WITHIN_SECONDS = 1.0


async def chat(report: reports.Report, pair: Pair, client: int, over: asyncio.Event) -> int:
    """Ask again and again until the changes are over; return how many replies were read."""
    worker = pair.addresses[client % pair.workers]
    member = pair.members[client % 3]
    chat_id, turn = await member.create_chat(worker), 0
    while not over.is_set():
        turn += 1
        seed = client * 1000 + turn
        words = directive(n=40, rate=20, seed=seed)
        reading = Reading()
        reading.absorb(await member.send(worker, chat_id, f"第{turn}问 {words}", timeout=30), start=0)
        is_whole = reading.status() == "complete" and reading.text == expected_text(seed, 40)
        report.check("no reply is disturbed", is_whole and not reading.violations, f"{client}/{turn}: {reading}")
    return turn


async def main(arguments: argparse.Namespace) -> int:
    """Change the endpoints under load and return the exit code."""
    report = reports.Report("hot updates under load", arguments)
    async with Pair(workers=arguments.workers, keep=arguments.keep) as pair:
        await pair.start()
        over = asyncio.Event()
        clients = [asyncio.create_task(chat(report, pair, k, over)) for k in range(arguments.clients)]
        await asyncio.sleep(2)
        waits, calls = [], []
        last = (await pair.staff.acknowledged(pair.addresses[0], workers=pair.workers))[1]
        for number in range(arguments.updates):
            worker = pair.addresses[number % pair.workers]
            name = "AB"[number % 2]
            change: dict[str, object] = {"weight": 1 + number % 7, "priority": 1 + number % 3}
            change["params"] = {"temperature": number / 100}
            if number % 5 == 4:
                change["apiKey"] = f"sk-bench-{number:010d}"
            began = time.monotonic()
            await pair.staff.call(worker, "PATCH", f"/{pair.ids[name]}", change)
            calls.append(time.monotonic() - began)
            asked = pair.addresses[(number + 1) % pair.workers]
            began = time.monotonic()
            _, revision = await pair.staff.acknowledged(asked, workers=pair.workers)
            waits.append(time.monotonic() - began)
            report.check(
                "acknowledged by all workers in time", waits[-1] < WITHIN_SECONDS, f"{number}: {waits[-1]:.2f} s"
            )
            report.check("each change is a revision", revision > last, f"{number}: {revision} after {last}")
            last = revision
            await asyncio.sleep(0.1)
        over.set()
        replies = sum(await asyncio.gather(*clients))
        rows = await pair.product.database.rows(
            "select endpoint_name, status, attempt, count(*) from conversations_generation group by 1, 2, 3"
        )
        report.check(
            "every reply took one attempt",
            all((status, attempt) == ("complete", 1) for _, status, attempt, _ in rows),
            rows,
        )
        report.check("both endpoints were used", {row[0] for row in rows} == {"A", "B"}, rows)
        report.figure("workers, clients", f"{pair.workers}, {arguments.clients}")
        report.figure("updates, replies meanwhile", f"{arguments.updates}, {replies}")
        for title, values in (("change answered, s", calls), ("then acknowledged by all, s", waits)):
            shown = " / ".join(f"{reports.percentile(values, share):.2f}" for share in (0.5, 0.95, 1.0))
            report.figure(f"{title}, p50 / p95 / max", shown)
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--updates", type=int, default=50, help="changes")
    parser.add_argument("--workers", type=int, default=4, help="workers on one database")
    parser.add_argument("--clients", type=int, default=40, help="replies running at any time")
    sys.exit(asyncio.run(main(parser.parse_args())))
