"""Does anything get lost or doubled when a worker, or the database, dies at a random moment?

Two workers share one database. Stubborn clients chat all the time with Idempotency-Key and Last-Event-ID,
while

  (default)    one worker after the other is killed with SIGKILL, with or without its parent, and started again;
  --pause      a worker is stopped with SIGSTOP for 12 s and woken with SIGCONT: it must not write anything;
  --database   PostgreSQL is crashed (SIGQUIT and SIGKILL in turn) and started again;
  --freeze N   PostgreSQL is stopped with SIGSTOP for N seconds, as a storage that hangs;
  --everything both workers and PostgreSQL are killed at once, as a machine that loses power.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from typing import Any

from benchmarks.lib import report as reports
from benchmarks.lib.api import Member, read_to_the_end
from benchmarks.lib.chatter import Chatter
from benchmarks.lib.http import Address
from benchmarks.lib.processes import descendants, send_signal
from benchmarks.lib.product import Product
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Reading

WITHIN_SECONDS = 10.0
PAUSE_SECONDS = 12.0


def chatters(
    product: Product, report: reports.Report, arguments: argparse.Namespace, **more: Any
) -> list[Chatter]:
    """Return the clients of this run."""
    members = [product.member(name) for name in ("alice", "bob", "carol")]
    return [
        Chatter(members[i % 3], product.addresses, report, name=f"client{i}", seed=arguments.seed, **more)
        for i in range(arguments.clients)
    ]


async def chat_while(
    report: reports.Report, clients: list[Chatter], trouble: "asyncio.Future[None] | asyncio.Task[None]"
) -> None:
    """Let the clients chat until the trouble is over and their last turns ended."""
    running = [asyncio.create_task(client.run()) for client in clients]
    await trouble
    for client in clients:
        client.is_stopping = True
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        report.check("no client program failed", outcome is None, repr(outcome))


async def seconds_to_seal(product: Product, deaths: dict[int, list[float]]) -> list[float]:
    """Return, for each reply whose worker was killed in the middle of it, the seconds from the kill to its seal.

    Who ran a reply, and when it was sealed, is asked of the database: a client that repeats a request does not
    know which incarnation of a worker took it. Both clocks are this machine's.
    """
    rows = await product.database.rows(
        """select worker.pid, extract(epoch from worker.started_at)::float8,
                  extract(epoch from message.created_at)::float8, extract(epoch from message.finished_at)::float8
             from conversations_message message join conversations_worker worker on worker.id = message.worker_id
            where message.role = 'assistant' and message.finished_at is not null"""
    )
    waits = []
    for pid, started_at, created_at, finished_at in rows:
        died_at = next((at for at in deaths.get(pid, []) if at > started_at), None)
        if died_at is not None and created_at <= died_at + 1 and finished_at > died_at:
            waits.append(finished_at - died_at)
    return waits


async def summarize(
    report: reports.Report, product: Product, clients: list[Chatter], deaths: dict[int, list[float]]
) -> None:
    """Verify every conversation and print what happened."""
    for client in clients:
        await client.verify(product.addresses[0])
    turns = [turn for client in clients for turn in client.turns]
    waits = await seconds_to_seal(product, deaths)
    late = [round(wait, 1) for wait in waits if wait > WITHIN_SECONDS]
    report.check(f"terminal within {WITHIN_SECONDS:.0f} s of the death", not late, f"{len(late)} late: {late}")
    statuses = Counter(turn.reading.status() for turn in turns)
    history = [
        await client.member.call(product.addresses[-1], "GET", "/api/xcx/chat/history?pageSize=100")
        for client in clients[:3]
    ]
    generating = [item for page in history for item in (page.json() or {}).get("items", []) if item["generating"]]
    report.check("no conversation is still generating", not generating, generating[:2])
    report.figure("turns", len(turns))
    report.figure("turns by status", dict(statuses))
    report.figure("resumes", sum(client.resumes for client in clients))
    report.figure("characters read", sum(len(turn.reading.text) for turn in turns))
    report.figure("replies whose worker died", len(waits))
    report.figure(
        "death to seal, s, p50 and worst",
        f"{reports.percentile(waits, 0.5):.1f} and {max(waits, default=0):.1f}",
    )


async def kill_workers(product: Product, report: reports.Report, arguments: argparse.Namespace) -> None:
    """SIGKILL one worker after the other at random moments, and restart each."""
    dice = random.Random(arguments.seed)
    deaths: dict[int, list[float]] = defaultdict(list)
    clients = chatters(product, report, arguments)

    async def trouble() -> None:
        until = time.monotonic() + arguments.minutes * 60
        for kill in range(arguments.kills):
            await asyncio.sleep(dice.random() * 1.5)
            worker = product.workers[dice.randrange(len(product.workers))]
            pid = worker.serving_pid
            if arguments.one_port:
                pid = dice.choice(descendants(worker.pid)[1:])
                send_signal([pid], signal.SIGKILL)
                deaths[pid].append(time.time())
                await asyncio.sleep(2.5)
            elif dice.random() < 0.5:
                worker.kill_child()
                deaths[pid].append(time.time())
                await worker.replaced()
            else:
                worker.kill()
                deaths[pid].append(time.time())
                await asyncio.sleep(dice.random() * 0.5)
                await worker.start()
            if kill % 20 == 19:
                report.say(f"{kill + 1} kills, {sum(len(client.turns) for client in clients)} turns")
            if time.monotonic() > until:
                report.say("out of time")
                break

    await chat_while(report, clients, asyncio.create_task(trouble()))
    report.figure("kills", sum(len(times) for times in deaths.values()))
    report.check(
        "all kills done", sum(map(len, deaths.values())) == arguments.kills, sum(map(len, deaths.values()))
    )
    await summarize(report, product, clients, deaths)


async def crash_database(product: Product, report: reports.Report, arguments: argparse.Namespace) -> None:
    """Crash PostgreSQL in mid-stream, several times."""
    dice = random.Random(arguments.seed)
    clients = chatters(product, report, arguments, allows_unavailable=True)
    away: list[float] = []

    async def trouble() -> None:
        for crash in range(arguments.crashes):
            await asyncio.sleep(2 + dice.random() * 3 + (9 if arguments.everything else 0))
            which = (signal.SIGQUIT, signal.SIGKILL)[crash % 2]
            if arguments.freeze:
                away.append(await product.database.freeze(arguments.freeze))
            elif arguments.everything:
                away.append(await crash_everything(product, pause=dice.random()))
            else:
                away.append(await asyncio.to_thread(product.database.crash_and_restart, which))
            report.say(f"blow {crash + 1}: away for {away[-1]:.2f} s")
        await asyncio.sleep(3 + arguments.freeze)

    await chat_while(report, clients, asyncio.create_task(trouble()))
    report.figure("blows", len(away))
    report.figure("database away, s, longest", max(away, default=0.0))
    report.check(
        "the workers outlived it",
        all(w.is_running and (w.starts == 1 or arguments.everything) for w in product.workers),
        "a worker ended",
    )
    turns = [turn for client in clients for turn in client.turns]
    late = [
        t
        for t in turns
        if t.ended_at and t.ended_at - t.started_at > t.seconds + max(away, default=0.0) + WITHIN_SECONDS
    ]
    report.check(f"terminal within {WITHIN_SECONDS:.0f} s of the database's return", not late, late[:2])
    await summarize(report, product, clients, {})


async def crash_everything(product: Product, *, pause: float) -> float:
    """Kill both workers and the database at once, start all again; return the seconds until all are ready."""
    began = time.monotonic()
    database = product.database.postmaster_pid()
    for worker in product.workers:
        worker.kill()
    os.kill(database, signal.SIGKILL)
    await asyncio.sleep(pause)
    for worker in product.workers:
        worker.spawn()
    for worker in product.workers:
        await worker.ready()
    return time.monotonic() - began


async def pause_worker(product: Product, report: reports.Report, arguments: argparse.Namespace) -> None:
    """Freeze a worker that streams, let the other declare it dead, wake it, and look whether it writes."""
    members = [product.member(name) for name in ("alice", "bob", "carol")]
    for number in range(arguments.rounds):
        await pause_once(product, report, members, number=number, count=arguments.clients)
    report.figure("pauses", arguments.rounds)
    report.figure("replies frozen in mid-stream", arguments.rounds * arguments.clients)


async def pause_once(
    product: Product, report: reports.Report, members: list[Member], *, number: int, count: int
) -> None:
    """Freeze and wake the first worker once."""
    sleeper, other = product.workers
    chats = [await members[i % 3].create_chat(other.address) for i in range(count)]
    before = await calls_total(product)
    listeners = [
        asyncio.create_task(
            members[i % 3].send(
                sleeper.address,
                chats[i],
                f"长文{number}-{i} {directive(n=800, rate=25, seed=i + 1, tag=f'p{number}-{i}')}",
                key=f"pause-{number}-{i}",
                timeout=40,
            )
        )
        for i in range(count)
    ]
    await asyncio.sleep(3)
    sleeper.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    histories = await sealed_histories(report, members, chats, other.address)
    report.figure(f"round {number + 1}: all sealed after, s", time.monotonic() - stopped_at)
    await asyncio.sleep(max(0.0, stopped_at + PAUSE_SECONDS - time.monotonic()))
    sleeper.signal(signal.SIGCONT)
    await asyncio.sleep(5)
    for i, chat_id in enumerate(chats):
        after = await members[i % 3].transcript(other.address, chat_id)
        report.check("the woken worker writes nothing", after == histories[i], f"{histories[i]} became {after}")
    left = await product.provider.open_streams()
    report.check("the woken worker drops its upstreams", left == 0, left)
    calls = await calls_total(product) - before
    report.check("nothing was generated again", calls == count, f"{calls} upstream calls for {count} replies")
    for i, piece in enumerate(await asyncio.gather(*listeners)):
        reading = Reading()
        reading.absorb(piece, start=0)
        await read_to_the_end(members[i % 3], product.addresses, reading, seconds=10)
        stored = next((item for item in histories[i] if item["id"] == reading.message_id), {})
        is_same = reading.text == stored.get("content")
        report.check("no received character is missing", is_same, f"{reading} {stored}")
        report.check("ids and pieces are consistent", not reading.violations, reading.violations)
        report.check("the end says interrupted", reading.status() == "interrupted", reading.terminal)
        again = await members[i % 3].send(sleeper.address, chats[i], f"醒了？{directive(n=3)}", timeout=15)
        is_done = again.terminal is not None and again.terminal.name == "done"
        report.check(
            "the woken worker serves again", is_done, f"{again.status} {again.ended} {again.body[:200]!r}"
        )


async def calls_total(product: Product) -> int:
    """Return how many upstream calls of paused replies there were."""
    counted = (await product.provider.stats())["by_directive"]
    return sum(count for words, count in counted.items() if "tag=p" in words)


async def sealed_histories(
    report: reports.Report, members: list[Member], chats: list[int], worker: Address
) -> list[list[dict[str, Any]]]:
    """Return all transcripts once every reply is interrupted; fail the check after 10 s."""
    until = time.monotonic() + WITHIN_SECONDS
    while True:
        found = [await members[i % 3].transcript(worker, chat_id) for i, chat_id in enumerate(chats)]
        is_sealed = all(items and items[-1]["status"] == "interrupted" for items in found)
        if is_sealed or time.monotonic() > until:
            statuses = Counter(items[-1]["status"] for items in found if items)
            report.check("all replies of the frozen worker are interrupted within 10 s", is_sealed, statuses)
            return found
        await asyncio.sleep(0.25)


async def main(arguments: argparse.Namespace) -> int:
    """Run the chosen trouble and return the exit code."""
    kinds = {name: getattr(arguments, name) for name in ("pause", "database", "freeze", "everything")}
    kind = next((name for name, is_chosen in kinds.items() if is_chosen), "kill -9")
    report = reports.Report(f"nothing lost, nothing doubled ({kind})", arguments)
    trouble = {"pause": pause_worker, "kill -9": kill_workers}.get(kind, crash_database)
    async with Product(keep=arguments.keep, WORKERS="2" if arguments.one_port else "1") as product:
        await product.start(1 if arguments.one_port else 2)
        await trouble(product, report, arguments)
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills of a worker")
    parser.add_argument("--one-port", action="store_true", help="two workers under one parent, on one port")
    parser.add_argument("--minutes", type=float, default=25, help="bound on the time of the kills")
    parser.add_argument("--clients", type=int, default=16, help="clients chatting at a time")
    parser.add_argument("--pause", action="store_true", help="SIGSTOP for 12 s instead of SIGKILL")
    parser.add_argument("--rounds", type=int, default=3, help="pauses, with --pause")
    parser.add_argument("--database", action="store_true", help="crash PostgreSQL instead of a worker")
    parser.add_argument("--freeze", type=float, default=0, metavar="N", help="stop PostgreSQL for N seconds")
    parser.add_argument("--everything", action="store_true", help="kill workers and PostgreSQL at once")
    parser.add_argument("--crashes", type=int, default=10, help="blows, with the last three")
    sys.exit(asyncio.run(main(parser.parse_args())))
