"""Do 500 live streams on a pool of 10 connections leave the other endpoints fast?

One worker, 500 replies streaming at once to 500 readers. Meanwhile a few clients make ordinary calls in turn;
then threads, database connections and open files are compared with those of the idle server.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import time

from benchmarks.lib import report as reports
from benchmarks.lib.api import CHAT
from benchmarks.lib.processes import cpu_seconds, idle_seconds, open_files, status_value
from benchmarks.lib.product import ROOT, Product, Worker
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece, Reading
from tests.fakes.provider import expected_text

LIMIT_MS = 100.0
TROUBLE = ("PoolTimeout", "too many clients", "couldn't get a connection", "Traceback")


async def probe(
    worker: Worker, headers: dict[str, str], chat_id: int, *, seconds: float
) -> dict[str, list[float]]:
    """Return the milliseconds of ordinary calls by name, made by a process of its own; failures under `failed`."""
    task = {"address": worker.address, "headers": headers, "seconds": seconds, "calls": calls(chat_id)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.lib.prober", json.dumps(task)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    found: dict[str, list[float]] = json.loads((await process.communicate())[0])
    return found


def calls(chat_id: int) -> list[list[object]]:
    """Return the ordinary calls: name, method, path, body."""
    return [
        ["livez", "GET", "/livez", None],
        ["me", "GET", "/api/auth/me", None],
        ["history", "GET", f"{CHAT}/history?page=1&pageSize=20", None],
        ["messages", "GET", f"{CHAT}/{chat_id}/messages?page=1&pageSize=50", None],
        ["rename", "PATCH", f"{CHAT}/{chat_id}", {"title": "新标题"}],
    ]


def shown(values: list[float]) -> str:
    """Return p50 and p95 for people."""
    return f"{reports.percentile(values, 0.5):.1f} / {reports.percentile(values, 0.95):.1f}"


def shares(seconds: float, before: dict[str, float], after: dict[str, float]) -> str:
    """Return how much of a core each process took between two readings."""
    return ", ".join(f"{name} {100 * (after[name] - before[name]) / seconds:.0f} %" for name in before)


async def main(arguments: argparse.Namespace) -> int:
    """Open the streams, probe, and return the exit code."""
    report = reports.Report("500 live streams on a pool of 10", arguments)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    async with Product(keep=arguments.keep, DB_POOL_SIZE="6", DB_ENGINE_POOL_SIZE="4") as product:
        await product.start(1)
        worker = product.workers[0]
        pid = worker.serving_pid
        members = [product.member(name) for name in ("alice", "bob", "carol")]
        chats = [await members[i % 3].create_chat(worker.address) for i in range(arguments.streams)]
        headers = await members[0].headers(worker.address)
        for name, values in (await probe(worker, headers, chats[0], seconds=3)).items():
            if values:
                report.figure(f"idle, {name}, ms, p50 / p95", shown(values))
        idle = (status_value(pid, "Threads"), product.database.connections(), status_value(pid, "VmRSS"))
        tokens = int(arguments.rate * (arguments.seconds + arguments.ramp + 15))
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
                worker.address,
                chats[i],
                f"长{i} {words}",
                on_piece=note,
                timeout=arguments.seconds + arguments.ramp + 60,
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
            await asyncio.sleep(arguments.ramp / arguments.streams)
        for _ in range(300):
            if len(started) == arguments.streams or any(task.done() for task in running):
                break
            await asyncio.sleep(0.1)
        report.say("all streams run")
        samples: list[tuple[int, int]] = []

        async def sample() -> None:
            for _ in range(max(int(arguments.seconds) - 1, 1)):
                connections = await asyncio.to_thread(product.database.connections)
                samples.append((status_value(pid, "Threads"), connections))
                await asyncio.sleep(1)

        live = await product.provider.open_streams()
        watched = {"server": pid, "provider": product.provider.pid, "readers": os.getpid()}
        cpu = {name: cpu_seconds(process) for name, process in watched.items()}
        idle_before = idle_seconds()
        began = time.monotonic()
        sampling = asyncio.create_task(sample())
        found = await asyncio.gather(
            *[probe(worker, headers, chats[0], seconds=arguments.seconds) for _ in range(3)]
        )
        await sampling
        busy_with = shares(time.monotonic() - began, cpu, {n: cpu_seconds(p) for n, p in watched.items()})
        idle_cores = (idle_seconds() - idle_before) / (time.monotonic() - began)
        still = await product.provider.open_streams()
        rss = status_value(pid, "VmRSS")
        report.check(
            "all streams were live during the probe", min(live, still) == arguments.streams, f"{live}, {still}"
        )
        report.figure("live streams before and after the probe", f"{live} and {still}")
        report.figure("of one core during the probe", busy_with)
        report.figure("cores idle during the probe", f"{idle_cores:.1f} of {os.cpu_count()}")
        for name in found[0]:
            values = [ms for times in found for ms in times[name]]
            if name == "failed":
                report.check("ordinary calls are answered with 200", not values, f"{len(values)} calls were not")
                continue
            p95 = reports.percentile(values, 0.95)
            report.check(
                f"p95 under {LIMIT_MS:.0f} ms", p95 < LIMIT_MS, f"{name}: {p95:.0f} ms over {len(values)} calls"
            )
            report.figure(f"{name}, ms, p50 / p95 of {len(values)}", shown(values))
        threads, connections = [each[0] for each in samples], [each[1] for each in samples]
        report.figure(
            "time to first token while ramping, ms, p50 / p95",
            f"{reports.percentile(started, 0.5):.0f} / {reports.percentile(started, 0.95):.0f}",
        )
        report.figure("threads, idle and with streams (min..max)", f"{idle[0]} and {min(threads)}..{max(threads)}")
        report.figure(
            "database connections, idle and with streams",
            f"{idle[1]} and {min(connections)}..{max(connections)}",
        )
        report.figure("RSS idle and with streams, MiB", f"{idle[2] / 1024:.0f} and {rss / 1024:.0f}")
        report.figure("open files with streams", open_files(pid))
        report.check("threads do not grow with streams", max(threads) <= idle[0] + 10, f"{idle[0]} and {threads}")
        report.check("connections are bounded by pools, not by streams", max(connections) <= 12, connections)
        await asyncio.gather(*running)
        log = worker.log_path.read_text(errors="replace")
        troubles = [word for word in TROUBLE if word in log]
        report.check(
            "no pool timeout and no traceback in the log",
            not troubles,
            [line[:400] for line in log.splitlines() if any(w in line for w in troubles)][:2],
        )
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--streams", type=int, default=500, help="live streams")
    parser.add_argument("--ramp", type=float, default=15, help="seconds in which the streams are opened")
    parser.add_argument("--rate", type=float, default=4, help="tokens per second of each stream")
    parser.add_argument("--seconds", type=float, default=20, help="length of the probe")
    sys.exit(asyncio.run(main(parser.parse_args())))
