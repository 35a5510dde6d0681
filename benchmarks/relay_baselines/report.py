"""The table: medians over rounds, ratios within rounds, and what each was to be."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from .contestants import BareRelay, FastApi, LiteLlm, Nginx
from .product import Product, ProductUnderDaphne, ProductWithoutLog
from .tools import Outcome

# DESIGN 8: CPU per token of the product (uvicorn) as a multiple of each. Daphne may take 1.8 times as much.
TARGETS = {Nginx.name: 1.8, BareRelay.name: 1.2, FastApi.name: 0.28, LiteLlm.name: 1 / 20}
DAPHNE_FACTOR = 1.8
DURABILITY_TARGET = 1.25
MEMORY_TARGET_MB = 25


@dataclass
class Findings:
    """What one benchmark found, by server."""

    notes: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[Outcome]] = field(default_factory=dict)
    direct: list[Outcome] = field(default_factory=list)
    steps: dict[str, list[tuple[int, float, float, bool]]] = field(default_factory=dict)
    open_streams: dict[str, list[tuple[int, dict, dict]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def middle(self, name: str, value: Callable[[Outcome], float]) -> float:
        """Return the median over rounds."""
        return median(value(outcome) for outcome in self.rounds[name])

    def ratio(self, name: str, other: str, cost: Callable[[Outcome], float]) -> float | None:
        """Return the median of one server's cost in multiples of another's, taken round by round."""
        if name not in self.rounds or other not in self.rounds:
            return None
        pairs = zip(self.rounds[name], self.rounds[other], strict=True)
        return median(cost(mine) / cost(theirs) for mine, theirs in pairs)

    def added_ms(self, name: str, quantile: str) -> float:
        """Return what a server adds to the time to first token of the mock itself, round by round."""
        pairs = zip(self.rounds[name], self.direct, strict=True)
        return median(mine.ms("ttft", quantile) - floor.ms("ttft", quantile) for mine, floor in pairs)


def server_cost(outcome: Outcome) -> float:
    """Return the CPU per token of the server alone."""
    return outcome.us_per_token


def whole_cost(outcome: Outcome) -> float:
    """Return the CPU per token of the server and of PostgreSQL."""
    return outcome.us_per_token + (outcome.postgres_us_per_token or 0)


def table(found: Findings) -> str:
    """Return the results as Markdown."""
    parts = [_head(found), _costs(found), _ratios(found), _latency(found)]
    parts += [_durability(found), _sizes(found), _limits(found), _faults(found)]
    return "\n\n".join(part for part in parts if part)


def _rows(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(found: Findings) -> str:
    described = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = described[0].split(":", 1)[1].strip() if described else platform.machine()
    is_first = os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO)
    order = "real-time scheduling (chrt), so before all other work" if is_first else "ordinary scheduling"
    rounds = max((len(outcomes) for outcomes in found.rounds.values()), default=0)
    return (
        "# What relaying a reply costs\n\n"
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores ({cpu}), Python "
        f"{platform.python_version()}, load average {os.getloadavg()[2]:.1f}, {order}. "
        f"{rounds} interleaved rounds of 150 streams x 30 tokens/s, each byte checked. "
        "Absolute times are noise between machines: read the ratios. "
        "Made by `python -m benchmarks.relay --write`."
    )


def _costs(found: Findings) -> str:
    rows = []
    for name, note in found.notes.items():
        if name not in found.rounds:
            rows.append([name, "–", "–", note])
            continue
        cost = f"{found.middle(name, server_cost):.1f}"
        database = "–"
        if any(outcome.postgres_us_per_token is not None for outcome in found.rounds[name]):
            database = f"{found.middle(name, lambda outcome: outcome.postgres_us_per_token or 0):.1f}"
        rows.append([name, cost, database, note])
    titles = ["server on one core", "CPU us/token", "PostgreSQL us/token", "what it is"]
    return "## CPU time per token\n\n" + _rows(titles, rows)


def _ratios(found: Findings) -> str:
    rows = []
    for other, target in TARGETS.items():
        for name, allowed in ((Product.name, target), (ProductUnderDaphne.name, target * DAPHNE_FACTOR)):
            if (ratio := found.ratio(name, other, server_cost)) is not None:
                rows.append([name, other, f"{ratio:.3f}", f"<= {allowed:.3f}", _verdict(ratio <= allowed)])
    if not rows:
        return ""
    return "## The product in multiples of the others\n\n" + _rows(
        ["product", "against", "ratio", "wanted", ""], rows
    )


def _latency(found: Findings) -> str:
    rows = []
    for name in found.rounds:
        p50, p99 = found.added_ms(name, "p50"), found.added_ms(name, "p99")
        late = found.middle(name, lambda outcome: outcome.ms("late", "p99"))
        jitter = found.middle(name, lambda outcome: outcome.ms("jitter", "p99"))
        row = [name, f"{p50:.1f}", f"{p99:.1f}", f"{late:.1f}", f"{jitter:.1f}"]
        rows.append([*row, _verdict(p50 <= 5 and p99 <= 15 and late <= 50) if "product" in name else ""])
    titles = ["server", "added TTFT p50 ms", "p99 ms", "lateness p99 ms", "jitter p99 ms", "wanted 5 / 15 / 50"]
    return "## Time to first token against the upstream itself, and lateness of later tokens\n\n" + _rows(
        titles, rows
    )


def _durability(found: Findings) -> str:
    rows = []
    for what, cost in (("server", server_cost), ("server and PostgreSQL", whole_cost)):
        if (ratio := found.ratio(Product.name, ProductWithoutLog.name, cost)) is not None:
            rows.append([what, f"{(ratio - 1) * 100:+.0f} %", _verdict(ratio <= DURABILITY_TARGET)])
    if not rows:
        return ""
    return "## Cost of durability: the full path against the same without its log\n\n" + _rows(
        ["CPU of", "added by commit before deliver", "wanted <= 25 %"], rows
    )


def _sizes(found: Findings) -> str:
    rows = []
    for name, measured in found.open_streams.items():
        for streams, before, peak in measured:
            each = (peak["pss_mb"] - before["pss_mb"]) * 1000 / streams
            counts = [f"{before[key]} -> {peak[key]}" for key in ("threads", "connections")]
            rows.append([name, str(streams), f"{each:.1f}", *counts, _verdict(each <= MEMORY_TARGET_MB)])
    if not rows:
        return ""
    titles = [
        "server",
        "open streams",
        "MB per 1000 streams (PSS)",
        "threads",
        "database connections",
        "wanted <= 25 MB",
    ]
    return "## Open streams\n\n" + _rows(titles, rows)


def _limits(found: Findings) -> str:
    rows = []
    for name, steps in found.steps.items():
        for streams, jitter, cores, exact in steps:
            rows.append([name, str(streams), f"{jitter:.0f}", f"{cores:.2f}", "yes" if exact else "NO"])
    if not rows:
        return ""
    titles = ["server", "streams x 30 tokens/s", "jitter p99 ms", "cores used", "all exact"]
    return "## Streams on one core (wanted: 1000 with p99 jitter <= 100 ms)\n\n" + _rows(titles, rows)


def _faults(found: Findings) -> str:
    return "## Faults\n\n" + "\n".join(f"- {fault}" for fault in found.faults) if found.faults else ""


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"
