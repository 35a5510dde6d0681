"""Measure what relaying a reply costs, side by side with other ways to do it, in one interleaved run.

    python -m benchmarks.relay [--quick] [--write] [--tools DIR] [--only NAME]

Every server runs on one core; the upstream, the load client and PostgreSQL run on another. A round asks each
server once, so that whatever disturbs the machine disturbs all alike; figures are medians over rounds, and
ratios are taken within a round. The load client checks every byte of every stream: a run with one wrong or
missing token is a failure, not a figure. docs: DESIGN 8; the last results are in benchmarks/RESULTS.md.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.lib.report import append_result
from benchmarks.relay_baselines import report
from benchmarks.relay_baselines.contestants import BareRelay, Contestant, FastApi, LiteLlm, Nginx
from benchmarks.relay_baselines.processes import Tree
from benchmarks.relay_baselines.product import Database, Product, ProductUnderDaphne, ProductWithoutLog
from benchmarks.relay_baselines.tools import Load, Missing, Outcome, Target, Tools, find_tools

JITTER_LIMIT_MS = 100
STEPS = (500, 750, 1000, 1250, 1500, 2000)


class Run:
    """Everything that is up during one benchmark, and what was found."""

    def __init__(self, tools: Tools, work: Path, only: str | None) -> None:
        self.tools, self.work, self.only = tools, work, only
        self.contestants: list[Contestant] = []
        self.targets: dict[str, tuple[Contestant, Target]] = {}
        self.found = report.Findings()

    def start(self, contestant: Contestant) -> None:
        """Start one server, or note why it takes no part."""
        if self.only and self.only not in contestant.name:
            return
        say(f"starting {contestant.name}")
        self.contestants.append(contestant)
        try:
            self.targets[contestant.name] = (contestant, contestant.start(self.tools, self.work))
            self.found.notes[contestant.name] = contestant.note
        except Missing as missing:
            self.found.notes[contestant.name] = str(missing)

    def stop(self) -> None:
        """End every server."""
        for contestant in reversed(self.contestants):
            contestant.stop()

    def measure(self, name: str, load: Load) -> Outcome:
        """Return one run against one server."""
        contestant, target = self.targets[name]
        outcome = self.tools.run(target, contestant.load(load))
        if outcome.fault:
            say(f"  FAULT {name}: {outcome.fault}")
            self.found.faults.append(f"{name}: {outcome.fault}")
        return outcome

    def rounds(self, count: int, load: Load) -> None:
        """Ask every server in turn, `count` times; a short first turn warms them and is thrown away."""
        for name in self.targets:
            self.measure(name, replace(load, streams=30, tokens=60, warm_seconds=0))
        for number in range(1, count + 1):
            self.found.direct.append(self.tools.run(self.tools.direct(), load))
            for name in self.targets:
                outcome = self.measure(name, load)
                self.found.rounds.setdefault(name, []).append(outcome)
                database = outcome.postgres_us_per_token
                beside = f" + PostgreSQL {database:.1f}" if database is not None else ""
                say(f"round {number}/{count} {name}: {outcome.us_per_token:.1f} us/token{beside}")

    def streams_per_core(self, name: str, steps: tuple[int, ...]) -> None:
        """Raise the number of streams until the jitter of one token in a hundred passes the limit."""
        for streams in steps:
            ramp = streams / 75
            # Long enough that all are open together, and judged from then on.
            load = Load(streams, tokens=int(30 * (ramp + 9)), ramp_seconds=ramp, warm_seconds=ramp + 1)
            outcome = self.measure(name, load)
            row = (streams, outcome.ms("jitter", "p99"), outcome.report["cpu_cores"], outcome.fault is None)
            self.found.steps.setdefault(name, []).append(row)
            say(f"{streams} streams: p99 jitter {row[1]:.0f} ms, {row[2]:.2f} cores")
            if outcome.fault or row[1] > JITTER_LIMIT_MS:
                return

    def memory(self, name: str, streams: int, database: Database) -> None:
        """Hold many slow streams open on a fresh server; compare memory, threads and connections with before."""
        product = Product(database)
        try:
            target = product.start(self.tools, self.work)
            tree = Tree(target.pid or 0)

            def sample() -> dict:
                counts = {"threads": tree.threads(), "connections": database.clients(product.application)}
                return {"pss_mb": tree.pss_mb(), **counts}

            self.tools.run(target, Load(30, tokens=60))  # code and caches are loaded with the first replies
            before = sample()
            load = Load(streams, tokens=15, rate=1, ramp_seconds=streams / 100, ttft_ms=1000)
            outcome = self.tools.run(target, load, sample)
        finally:
            product.stop()
        if outcome.fault:
            self.found.faults.append(f"{name}, {streams} open streams: {outcome.fault}")
        peak = {key: max([row[key] for row in outcome.samples], default=0) for key in before}
        self.found.open_streams.setdefault(name, []).append((streams, before, peak))
        say(f"{streams} open streams: {before} -> {peak}")


def say(text: str) -> None:
    """Tell the person who waits what is being done."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run everything and print the table; the status is 0 only when every stream of every run was exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", help="directory with the sources of the load tools (or BENCH_TOOLS)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 short rounds; no search for the limits")
    parser.add_argument("--baselines", action="store_true", help="leave the product out")
    parser.add_argument("--only", help="only servers whose name contains this")
    parser.add_argument("--write", action="store_true", help="also append to benchmarks/RESULTS.md")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="relay-"))
    work.chmod(0o755)  # the embedded PostgreSQL runs under another account when root starts it
    try:
        tools = Tools(find_tools(given.tools), work)
    except Missing as missing:
        say(str(missing))
        return 2
    run, database = Run(tools, work, given.only), None
    try:
        for contestant in (Nginx(), BareRelay(), FastApi(), LiteLlm()):
            run.start(contestant)
        if not given.baselines:
            say("preparing the database")
            database = Database(tools, work)
            for variant in (Product, ProductUnderDaphne, ProductWithoutLog):
                run.start(variant(database))
        load = Load(tokens=150) if given.quick else Load()
        run.rounds(2 if given.quick else given.rounds, load)
        if Product.name in run.targets and not given.quick:
            assert database is not None
            run.memory(Product.name, 500, database)
            run.memory(Product.name, 1000, database)
            run.streams_per_core(Product.name, STEPS)
    finally:
        run.stop()
        if database:
            database.stop()
        tools.close()
        shutil.rmtree(work, ignore_errors=True)
    table = report.table(run.found)
    print(table)
    if given.write:
        append_result(table)
    return 1 if run.found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
