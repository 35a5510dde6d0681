"""Do 500 live streams on a pool of 10 connections leave the other endpoints fast? (bar 8)

One worker, 500 replies streaming at once to 500 readers. Meanwhile a few clients make ordinary calls in turn;
then threads, database connections and open files are compared with those of the idle server.
"""

import argparse
import asyncio
import resource
import sys
import time
from collections import defaultdict

from benchmarks.lib import report as reports
from benchmarks.lib.api import CHAT, Member
from benchmarks.lib.http import Address, fetch
from benchmarks.lib.processes import open_files, status_value
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece, Reading
from tests.fakes.provider import expected_text

LIMIT_MS = 100.0
TROUBLE = ("PoolTimeout", "too many clients", "couldn't get a connection", "Traceback")


async def probe(
    report: reports.Report,
    member: Member,
    worker: Address,
    chat_id: int,
    until: float,
    times: dict[str, list[float]],
) -> None:
    """Make ordinary calls, a new connection each, and keep their milliseconds."""
    headers = await member.headers(worker)
    calls = (
        ("livez", "GET", "/livez", None),
        ("me", "GET", "/api/auth/me", None),
        ("history", "GET", f"{CHAT}/history?page=1&pageSize=20", None),
        ("messages", "GET", f"{CHAT}/{chat_id}/messages?page=1&pageSize=50", None),
        ("rename", "PATCH", f"{CHAT}/{chat_id}", {"title": "新标题"}),
    )
    while time.monotonic() < until:
        for name, method, path, payload in calls:
            began = time.monotonic()
            try:
                answer = await fetch(worker, method, path, headers=headers, payload=payload)
                report.check(
                    "ordinary calls are answered with 200",
                    answer.status == 200,
                    f"{name} {answer.status} {answer.body[:300]!r}",
                )
            except (OSError, TimeoutError) as error:
                report.check("ordinary calls are answered with 200", False, f"{name} {error!r}")
            times[name].append((time.monotonic() - began) * 1000)
            await asyncio.sleep(0.02)


async def main(arguments: argparse.Namespace) -> int:
    """Open the streams, probe, and return the exit code."""
    report = reports.Report("bar 8: 500 live streams on a pool of 10", arguments)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    async with Product(keep=arguments.keep, DB_POOL_SIZE="6", DB_ENGINE_POOL_SIZE="4") as product:
        await product.start(1)
        worker = product.workers[0]
        pid = worker.serving_pid
        members = [product.member(name) for name in ("alice", "bob", "carol")]
        chats = [await members[i % 3].create_chat(worker.address) for i in range(arguments.streams)]
        times: dict[str, list[float]] = defaultdict(list)
        await probe(report, members[0], worker.address, chats[0], time.monotonic() + 3, times)
        for name, values in times.items():
            report.figure(
                f"idle, {name}, ms, p50 / p95",
                f"{reports.percentile(values, 0.5):.1f} / {reports.percentile(values, 0.95):.1f}",
            )
        idle = (
            status_value(pid, "Threads"),
            product.database.connections(),
            status_value(pid, "VmRSS"),
        )
        tokens = int(arguments.rate * (arguments.seconds + 12))
        report.say(f"opening {arguments.streams} streams of {tokens} tokens")
        started: list[float] = []

        async def stream(i: int) -> None:
            began = time.monotonic()
            is_first = True

            def note(piece: Piece) -> None:
                nonlocal is_first
                if is_first and piece.events:
                    started.append((time.monotonic() - began) * 1000)
                    is_first = False

            words = directive(n=tokens, rate=arguments.rate, seed=i + 1)
            piece = await members[i % 3].send(
                worker.address, chats[i], f"长{i} {words}", on_piece=note, timeout=arguments.seconds + 60
            )
            reading = Reading()
            reading.absorb(piece, start=0)
            is_whole = reading.text == expected_text(i + 1, tokens) and reading.status() == "complete"
            report.check(
                "every stream is whole",
                is_whole and not reading.violations,
                f"{i}: {piece.status} {piece.ended} {piece.body[:200]!r} {reading.violations}",
            )

        running = []
        for i in range(arguments.streams):
            running.append(asyncio.create_task(stream(i)))
            await asyncio.sleep(5 / arguments.streams)
        for _ in range(300):
            if len(started) == arguments.streams or any(task.done() for task in running):
                break
            await asyncio.sleep(0.1)
        report.say("all streams run")
        times.clear()
        samples: list[tuple[int, int]] = []

        async def sample() -> None:
            for _ in range(max(int(arguments.seconds) - 1, 1)):
                connections = await asyncio.to_thread(product.database.connections)
                samples.append((status_value(pid, "Threads"), connections))
                await asyncio.sleep(1)

        until = time.monotonic() + arguments.seconds
        live = await product.provider.open_streams()
        await asyncio.gather(
            sample(),
            *[probe(report, members[i % 3], worker.address, chats[i], until, times) for i in range(3)],
        )
        still = await product.provider.open_streams()
        busy = (
            status_value(pid, "Threads"),
            product.database.connections(),
            status_value(pid, "VmRSS"),
        )
        report.check(
            "all streams were live during the probe",
            min(live, still) == arguments.streams,
            f"{live}, {still}",
        )
        report.figure("live streams before and after the probe", f"{live} and {still}")
        for name, values in times.items():
            p95 = reports.percentile(values, 0.95)
            report.check(
                f"p95 under {LIMIT_MS:.0f} ms",
                p95 < LIMIT_MS,
                f"{name}: {p95:.0f} ms over {len(values)} calls",
            )
            report.figure(
                f"{name}, ms, p50 / p95 / max of {len(values)}",
                f"{reports.percentile(values, 0.5):.1f} / {p95:.1f} / {max(values):.1f}",
            )
        threads, connections = [s[0] for s in samples], [s[1] for s in samples]
        report.figure(
            "time to first token while ramping, ms, p50 / p95",
            f"{reports.percentile(started, 0.5):.0f} / {reports.percentile(started, 0.95):.0f}",
        )
        report.figure("threads, idle and with streams (min..max)", f"{idle[0]} and {min(threads)}..{max(threads)}")
        report.figure(
            "database connections, idle and with streams",
            f"{idle[1]} and {min(connections)}..{max(connections)}",
        )
        report.figure("RSS idle and with streams, MiB", f"{idle[2] / 1024:.0f} and {busy[2] / 1024:.0f}")
        report.figure("open files with streams", open_files(pid))
        report.check("threads stay constant", max(threads) - min(threads) <= 2 and max(threads) <= 40, threads)
        report.check("connections are bounded by pools, not by streams", max(connections) <= 12, connections)
        await asyncio.gather(*running)
        log = worker.log_path.read_text(errors="replace")
        found = [word for word in TROUBLE if word in log]
        report.check(
            "no pool timeout and no traceback in the log",
            not found,
            [line[:400] for line in log.splitlines() if any(w in line for w in found)][:2],
        )
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--streams", type=int, default=500, help="live streams")
    parser.add_argument("--rate", type=float, default=4, help="tokens per second of each stream")
    parser.add_argument("--seconds", type=float, default=20, help="length of the probe")
    sys.exit(asyncio.run(main(parser.parse_args())))
