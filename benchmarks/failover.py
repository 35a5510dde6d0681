"""Does nobody notice when a provider fails?

Two fake providers are the endpoints A, asked first, and B, the reserve, made through the REST API.

  (default)    100 replies run while A fails in every way: none fails that had not shown a token; then the same
               with the site's `midstream_failover: "prefix"`: none fails at all, and the text has no seam; with
               `--way instruction` B is told in words to go on, and every second time says the last 16 characters
               again first;
  --breaker    A answers 25 times and more with 500: out of rotation on every worker, probed seldom, then back;
  --ledger N   N replies with random faults, stops and disconnects: the ledger's sums are the providers' own.
"""

import argparse
import asyncio
import random
import sys
import time
from typing import Any

from benchmarks.lib import report as reports
from benchmarks.lib.api import read_to_the_end
from benchmarks.lib.provider import directive
from benchmarks.lib.sse import Piece, Reading
from benchmarks.lib.staff import Pair
from tests.fakes.provider import expected_text

SAID_NOTHING = (
    *("hangup", "noise", "nonhttp", "nothing", "redirect", "html", "jsonerror", "quota"),
    *("400", "401", "403", "404", "422", "429", "500", "502", "503", "529"),
    "gzipbomb",  # last, for A is busy packing it
)
SAID_SOMETHING = ("reset", "cut", "halfclose", "stall", "keepalive", "drip", "error", "errorstring")
WORDS = {"n": 20, "rate": 10}
THRESHOLD = 5


async def ask(
    pair: Pair, number: int, words: dict[str, object], *, after: int = 0, stops: int = 0, cuts: bool = False
) -> Reading:
    """Return the reading of one reply, asked of the worker of this number.

    `stops`: stop the reply after so many events. `cuts`: lose the connection after `after` bytes and resume.
    """
    worker = pair.addresses[number % pair.workers]
    member = pair.members[number % 3]
    chat = await member.create_chat(worker)
    stopping: list[asyncio.Task[Any]] = []

    def watch(piece: Piece) -> None:
        if stops and len(piece.events) >= stops and piece.message_id and not stopping:
            other = pair.addresses[(number + 1) % pair.workers]
            stopping.append(asyncio.create_task(member.stop(other, piece.message_id)))

    piece = await member.send(
        worker,
        chat,
        f"问题{number} {directive(**words)}",
        timeout=60,
        on_piece=watch,
        cut_after_bytes=after if cuts else None,
    )
    reading = Reading()
    reading.absorb(piece, start=0)
    for task in stopping:
        await task
    if reading.terminal is None and reading.message_id:
        await read_to_the_end(member, pair.addresses, reading, seconds=60)
    return reading


def ways(only: str, way: str) -> list[tuple[str, int]]:
    """Return the ways in which A fails, each with the tokens it gives before; `kill` ends its process."""
    # Less than eight characters said again are taken for what the model means to say: give it more before.
    before = 12 if way == "instruction" else 5
    found = [(fault, before) for fault in SAID_SOMETHING] + [("kill", before), ("gone", 0)]
    found += [(fault, 0) for fault in SAID_SOMETHING if fault != "error"] if way == "off" else []
    found += [(fault, 0) for fault in SAID_NOTHING] if way == "off" else []
    return [each for each in found if only in each[0]]


async def fail_once(
    report: reports.Report, pair: Pair, *, way: str, fault: str, after: int, replies: int
) -> tuple[int, int]:
    """Let A fail in one way under all replies; return how many failed, and how many B took over."""
    await pair.heal()
    began = int((await pair.b.stats())["requests"])
    said = int((await pair.a.stats())["tokens"]) if fault == "kill" else 0
    words: dict[str, object] = {**WORDS, "at": "A", "delay": 1500}
    if fault == "kill":
        words["n"] = 40
    elif fault == "gone":
        pair.a.stop()
    else:
        words |= {"fault": fault, "after": after}
    runup = 16 if way == "instruction" else 0

    def words_of(number: int) -> dict[str, object]:
        own: dict[str, object] = {"seed": number + 1, "tag": f"{way}-{fault}-{number}"}
        return {**words, **own, **({"runup": runup} if runup and number % 2 else {})}

    asked = [asyncio.create_task(ask(pair, number, words_of(number))) for number in range(replies)]
    if fault == "kill":
        async with asyncio.timeout(30):
            while (await pair.a.stats())["tokens"] < said + replies * after:  # noqa: ASYNC110  # another process counts
                await asyncio.sleep(0.1)
        running = await pair.a.open_streams()
        report.check("A was killed in the middle of its replies", running > replies * 0.8, running)
        assert pair.a.process is not None
        pair.a.process.kill()
        pair.a.process.wait(10)
    failed = 0
    for number, outcome in enumerate(await asyncio.gather(*asked, return_exceptions=True)):
        where = f"{way}, {fault} after {after}, reply {number}: "
        if isinstance(outcome, BaseException):
            report.check("the program could read each reply", False, f"{where}{outcome!r}")
            continue
        whole = expected_text(number + 1, int(str(words["n"])))
        report.check("the stream is as promised", not outcome.violations, f"{where}{outcome.violations}")
        report.check("the text so far is the model's", whole.startswith(outcome.text), where + repr(outcome.text))
        is_whole = outcome.status() == "complete" and outcome.text == whole
        failed += not is_whole
        evidence = f"{where}{outcome.terminal} {len(outcome.text)} of {len(whole)} characters"
        if way == "off":
            report.check("no reply fails that had not shown a token", is_whole or bool(outcome.text), evidence)
        else:
            report.check("no reply fails at all, and no text has a seam", is_whole, evidence)
    if fault in ("kill", "gone"):
        await pair.a.start()
    return failed, int((await pair.b.stats())["requests"]) - began


async def fail_in_every_way(report: reports.Report, pair: Pair, arguments: argparse.Namespace) -> None:
    """Bar 4."""
    for way in [arguments.way] if arguments.way else ["off", "prefix"]:
        await pair.set_failover(way)
        chosen = ways(arguments.only, way)
        failures = 0
        for fault, after in chosen:
            began = time.monotonic()
            failed, taken = await fail_once(
                report, pair, way=way, fault=fault, after=after, replies=arguments.replies
            )
            failures += failed
            if not after:
                report.check("B was asked", taken > 0, f"{way}, {fault}")
            report.say(
                f"{way}: {fault} after {after}: {failed} failed, B took {taken}, {time.monotonic() - began:.0f} s"
            )
        report.figure(f"ways with failover {way}", len(chosen))
        report.figure(f"replies with failover {way}, failed", f"{len(chosen) * arguments.replies}, {failures}")


async def trip_the_breaker(report: reports.Report, pair: Pair, arguments: argparse.Namespace) -> None:
    """Bar 6."""
    count = 25 * pair.workers
    words: dict[str, object] = {"n": 5, "fault": 500, "at": "A"}

    async def calls_of_a() -> int:
        return int((await pair.a.stats())["requests"])

    async def send(number: int, words: dict[str, object]) -> None:
        reading = await ask(pair, number, {**words, "seed": number + 1})
        report.check("every reply is whole", reading.text == expected_text(number + 1, 5), reading)

    for number in range(count):
        await send(number, words)
    opened = time.monotonic()
    calls = await calls_of_a()
    report.figure("replies while A answers 500, calls of A", f"{count}, {calls}")
    report.check("out of rotation after the threshold, on every worker", calls == THRESHOLD * pair.workers, calls)
    await asyncio.sleep(max(0.0, opened + 16 - time.monotonic()))
    before = await calls_of_a()
    await asyncio.gather(*[send(number, words) for number in range(count)])
    probes = await calls_of_a() - before
    report.figure("probes after the first rest", probes)
    report.check("one probe per worker", probes == pair.workers, probes)
    await asyncio.sleep(31)
    before = await calls_of_a()
    for number in range(10 * pair.workers):
        await send(number, {"n": 5})
    back = await calls_of_a() - before
    report.figure("replies after recovery, by A", f"{10 * pair.workers}, {back}")
    report.check("back after recovery, on every worker", back == 10 * pair.workers, back)


async def compare_the_ledger(report: reports.Report, pair: Pair, arguments: argparse.Namespace) -> None:
    """Bar 7."""
    await pair.set_failover("prefix")
    dice = random.Random(arguments.seed)
    gate = asyncio.Semaphore(30)
    kinds: dict[str, int] = {}

    async def one(number: int) -> None:
        kind = dice.choices(("plain", "fault", "early", "stop", "cut"), (40, 12, 12, 20, 16))[0]
        kinds[kind] = kinds.get(kind, 0) + 1
        n = dice.randrange(5, 40)
        words: dict[str, object] = {"n": n, "rate": 20, "seed": number + 1, "tag": f"l{number}", "at": "A"}
        if kind == "fault":
            words |= {"fault": dice.choice(("reset", "cut", "halfclose", "error")), "after": 4}
        elif kind == "early":
            words |= {"fault": dice.choice(("500", "429", "hangup", "html", "nothing"))}
        elif kind == "stop":
            words["n"] = n = 200
        async with gate:
            reading = await ask(
                pair,
                number,
                words,
                stops=dice.randrange(1, 8) if kind == "stop" else 0,
                after=dice.randrange(900, 2500),
                cuts=kind == "cut",
            )
        is_right = reading.status() == ("stopped" if kind == "stop" else "complete")
        report.check("every reply ends as it should", is_right, f"{kind} {words} {reading}")
        whole = expected_text(number + 1, n)
        is_text = whole.startswith(reading.text) if kind == "stop" else whole == reading.text
        report.check("every text is right", is_text, f"{kind} {words} {reading}")

    for outcome in await asyncio.gather(*[one(k) for k in range(arguments.ledger)], return_exceptions=True):
        report.check("the program could read each reply", outcome is None, repr(outcome))
    await asyncio.sleep(1)
    report.figure("replies", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    for provider in (pair.a, pair.b):
        own = await provider.stats()
        [ledger] = await pair.product.database.rows(
            """select count(*), count(*) filter (where status = 'running'),
                      count(*) filter (where tokens_source = 'provider'),
                      coalesce(sum(input_tokens) filter (where tokens_source = 'provider'), 0),
                      coalesce(sum(output_tokens) filter (where tokens_source = 'provider'), 0),
                      coalesce(sum(cost_micros) filter (where tokens_source = 'provider'), 0),
                      coalesce(sum(output_tokens) filter (where tokens_source <> 'provider'), 0)
                 from conversations_generation where endpoint_name = %s and called_at is not null""",
            provider.name,
        )
        report.check("each provider had its part", own["requests"] > 0, f"{provider.name}: {own['requests']}")
        calls, running, told, asked, said, cost, guessed = (int(value) for value in ledger)
        # One that was closed unheard on a used connection is sent again within the same attempt.
        heard = own["requests"] - own["unheard"]
        report.check("calls", calls == heard, f"{provider.name}: {calls}, {own['requests']} - {own['unheard']}")
        report.check("no row runs for ever", running == 0, f"{provider.name}: {running}")
        report.check("usages told", told == own["usages"], f"{provider.name}: {told}, {own['usages']}")
        report.check(
            "input tokens", asked == 10 * own["usages"], f"{provider.name}: {asked}, {10 * own['usages']}"
        )
        report.check(
            "output tokens", said == own["usage_tokens"], f"{provider.name}: {said}, {own['usage_tokens']}"
        )
        # Prices are whole units for a token, so that no rounding hides a difference.
        price = 2 * asked + 3 * said
        report.check("cost", cost == price, f"{provider.name}: {cost}, {price}")
        report.figure(
            f"{provider.name}: calls, ledger and own", f"{calls} and {own['requests']} ({own['unheard']} unheard)"
        )
        report.figure(f"{provider.name}: output tokens told, ledger and own", f"{said} and {own['usage_tokens']}")
        unfinished = own["tokens"] - own["usage_tokens"]
        report.figure(f"{provider.name}: tokens without usage, estimated and sent", f"{guessed} and {unfinished}")


async def main(arguments: argparse.Namespace) -> int:
    """Run the chosen part and return the exit code."""
    kind = "breaker" if arguments.breaker else "ledger" if arguments.ledger else "failover"
    titles = {
        "failover": "A fails, B answers",
        "breaker": "straight 500s, out of rotation and back",
        "ledger": "the ledger's sums are the providers' own",
    }
    report = reports.Report(titles[kind], arguments)
    async with Pair(workers=arguments.workers, keep=arguments.keep) as pair:
        # The ledger's faults need no clock; short ones would fail replies of a busy machine.
        clocks = {"firstSeconds": 30.0, "idleSeconds": 30.0} if kind == "ledger" else {}
        await pair.start(
            **{"firstSeconds": 4.0, "idleSeconds": 2.0, **clocks},
            inputMicrosPerMillion=2_000_000,
            outputMicrosPerMillion=3_000_000,
        )
        part = {"failover": fail_in_every_way, "breaker": trip_the_breaker, "ledger": compare_the_ledger}[kind]
        await part(report, pair, arguments)
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--replies", type=int, default=100, help="replies running while A fails")
    parser.add_argument("--workers", type=int, default=2, help="workers on one database")
    parser.add_argument("--only", default="", help="only the ways whose name has this in it")
    ways_of_sites = ("off", "on", "prefix", "instruction")
    parser.add_argument("--way", choices=ways_of_sites, help="only this setting of the sites")
    parser.add_argument("--breaker", action="store_true", help="25 straight 500s instead: rest and recovery")
    parser.add_argument(
        "--ledger", type=int, default=0, metavar="N", help="the sums of the ledger instead, over N replies"
    )
    sys.exit(asyncio.run(main(parser.parse_args())))
