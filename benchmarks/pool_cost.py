"""What do the pool and the ledger cost?

The product twice: as it is, with several endpoints to choose from, limits and prices; and with one fixed endpoint
and no row of the ledger (relay_baselines/without_pool.py says what is left out). Both run on one core, each with a
database of its own, and are asked at the same moment for 150 streams x 30 tokens/s: whatever disturbs the machine
disturbs both. (Asked in turn, the same server differed from itself by 9 % on a busy machine.) A ratio is taken
within its round, and the median of the ratios is judged. Starting and sealing are within what is measured: that is
where pool and ledger work, so short replies (`--tokens 150`) are the hard case. Each byte is checked.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import LiteralString

from benchmarks.lib import report as reports
from benchmarks.relay_baselines.product import Database, Product
from benchmarks.relay_baselines.tools import Load, Missing, Outcome, Target, Tools, find_tools

MOST = 1.05
COUNT: LiteralString = "SELECT count(*) FROM"
REPLIES: LiteralString = "conversations_message WHERE role = 'assistant'"
WARM = Load(streams=30, tokens=60, warm_seconds=0)


class Full(Product):
    """The product as it is."""

    name = "full"
    entry = "chatsite.asgi:application"
    settings = {"LLM_BASE_URL": "", "LLM_API_KEY": "", "LLM_MODEL": ""}

    def command(self, port: int) -> list[str]:
        """Return the same command for both, so that the entry is all that differs."""
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        return ["-m", "uvicorn", self.entry, "--port", str(port), *options]


class Bare(Full):
    """The product without pool and ledger."""

    name = "bare"
    entry = "benchmarks.relay_baselines.without_pool:application"


def total(outcome: Outcome) -> float:
    """Return the CPU microseconds per token of the server and of PostgreSQL."""
    return outcome.us_per_token + (outcome.postgres_us_per_token or 0.0)


def measure(report: reports.Report, tools: Tools, targets: dict[str, Target], rounds: int, load: Load) -> None:
    """Ask both at once, the first of one round second in the next, and judge the medians."""
    found: dict[str, list[Outcome]] = {name: [] for name in targets}
    for target in targets.values():
        tools.run(target, WARM)
    with ThreadPoolExecutor(len(targets)) as threads:
        for number in range(rounds):
            names = list(targets) if number % 2 else list(reversed(targets))
            outcomes = threads.map(lambda name: tools.run(targets[name], load), names)
            for name, outcome in zip(names, outcomes, strict=True):
                report.check("every stream is whole and exact", outcome.fault is None, f"{name}: {outcome.fault}")
                found[name].append(outcome)
            shown = ", ".join(f"{n} {found[n][-1].us_per_token:.1f} ({total(found[n][-1]):.1f})" for n in targets)
            report.say(f"{number + 1}/{rounds}: us/token of the server (and PostgreSQL): {shown}")
    costs: dict[str, Callable[[Outcome], float]] = {
        "server": lambda outcome: outcome.us_per_token,
        "server and PostgreSQL": total,
    }
    for title, cost in costs.items():
        each = {name: [cost(outcome) for outcome in outcomes] for name, outcomes in found.items()}
        ratios = [full / bare for full, bare in zip(each["full"], each["bare"], strict=True)]
        medians = " / ".join(f"{statistics.median(each[name]):.1f}" for name in ("full", "bare"))
        report.figure(f"{title}, CPU us/token, full / bare", medians)
        median = statistics.median(ratios)
        shown = f"{median:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        report.figure(f"{title}, ratio, median of {rounds} rounds (least to most)", shown)
        report.check(f"pool and ledger add at most 5 % ({title})", median <= MOST, shown)


def main(arguments: argparse.Namespace) -> int:
    """Start both, measure, and return the exit code."""
    report = reports.Report("what pool and ledger add to the full path", arguments)
    work = Path(tempfile.mkdtemp(prefix="pool-cost-"))
    work.chmod(0o755)  # the embedded PostgreSQL runs under another account when root starts it
    try:
        tools = Tools(find_tools(arguments.tools), work)
    except Missing as missing:
        report.say(str(missing))
        return 2
    databases, started = [], []
    try:
        targets = {}
        for kind in (Full, Bare):
            directory = work / kind.name
            directory.mkdir(mode=0o755)
            databases.append(database := Database(tools, directory))
            module = ("-m", "benchmarks.relay_baselines.endpoints", f"http://127.0.0.1:{tools.mock_port}/v1")
            database.python(*module, str(arguments.endpoints))
            started.append(product := kind(database))
            targets[product.name] = product.start(tools, directory)
        load = Load(arguments.streams, arguments.tokens, warm_seconds=0)
        report.figure("endpoints, streams x tokens", f"{arguments.endpoints}, {load.streams} x {load.tokens}")
        measure(report, tools, targets, arguments.rounds, load)
        counted = [
            (database.count(f"{COUNT} conversations_generation"), database.count(f"{COUNT} {REPLIES}"))
            for database in databases
        ]
        (full_rows, full_replies), (bare_rows, bare_replies) = counted
        is_so = full_rows == full_replies > 0 == bare_rows < bare_replies
        report.check("each reply has its row in the ledger of the one, none in the other's", is_so, counted)
    finally:
        for product in started:
            product.stop()
        for database in databases:
            database.stop()
        tools.close()
        if not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)
    return report.finish()


if __name__ == "__main__":
    parser = reports.parser(__doc__)
    parser.add_argument("--tools", help="directory with the sources of the load tools (or BENCH_TOOLS)")
    parser.add_argument("--rounds", type=int, default=9, help="runs of both")
    parser.add_argument("--streams", type=int, default=150, help="at a time, 30 tokens/s each")
    parser.add_argument("--tokens", type=int, default=300, help="of each reply")
    parser.add_argument("--endpoints", type=int, default=4, help="to choose from")
    sys.exit(main(parser.parse_args()))
