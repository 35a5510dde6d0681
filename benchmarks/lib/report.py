"""The end of every program: figures, claims with their evidence, PASS or FAIL, and a line for RESULTS.md."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
MACHINE = "2 cores, 24 GiB"


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` (0..1) of the values lie; NaN for no values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Report:
    """Collects what a program found, prints it, and gives the exit code."""

    def __init__(self, title: str, arguments: argparse.Namespace) -> None:
        self.title = title
        self.arguments = arguments
        self.figures: list[tuple[str, str]] = []
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.checks = 0
        self.started = time.monotonic()

    def figure(self, name: str, value: object) -> None:
        """Keep one measured number."""
        text = f"{value:.1f}" if isinstance(value, float) else str(value)
        self.figures.append((name, text))

    def check(self, claim: str, is_true: bool, evidence: object = "") -> bool:
        """Return `is_true`, counted as one check of a claim; its first failure keeps the evidence."""
        self.checks += 1
        if not is_true:
            self.failures[claim] += 1
            self.examples.setdefault(claim, str(evidence)[:1500])
            if self.failures[claim] <= 3:
                self.say(f"FAILED {claim}: {str(evidence)[:600]}")
        return is_true

    def say(self, line: str) -> None:
        """Print progress to stderr, with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:7.1f}] {line}", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Print everything, append to RESULTS.md when asked, and return the exit code."""
        verdict = "FAIL" if self.failures or not self.checks else "PASS"
        seconds = time.monotonic() - self.started
        print(f"\n{self.title}")
        for name, value in self.figures:
            print(f"  {name:<44} {value}")
        for claim, count in self.failures.items():
            print(f"  FAILED {count} x {claim}\n    e.g. {self.examples[claim]}")
        print(f"{verdict}: {self.checks} checks, {sum(self.failures.values())} failed, {seconds:.0f} s")
        if self.arguments.record:
            self._record(verdict, seconds)
        return 0 if verdict == "PASS" else 1

    def _record(self, verdict: str, seconds: float) -> None:
        figures = "; ".join(f"{name}: {value}" for name, value in self.figures)
        command = f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".replace(
            " --record", ""
        )
        failed = "; ".join(f"{count} x {claim}" for claim, count in self.failures.items())
        line = f"- {time.strftime('%Y-%m-%d', time.gmtime())}, {MACHINE}, `{command.strip()}`: **{verdict}**, "
        line += f"{self.checks} checks in {seconds:.0f} s. {figures}." + (f" Failed: {failed}." if failed else "")
        append_result(line)


def append_result(text: str) -> None:
    """Add a result to RESULTS.md; what others found stays."""
    if not RESULTS.exists():
        RESULTS.write_text("# Results\n\nEverything here comes from one real run of the command it names.\n\n")
    with RESULTS.open("a") as results:
        results.write(text.rstrip("\n") + "\n")


def parser(description: str | None, *, seed: int = 20261120) -> argparse.ArgumentParser:
    """Return the argument parser that all programs share."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arguments.add_argument("--seed", type=int, default=seed, help="makes the run repeatable")
    arguments.add_argument("--record", action="store_true", help="append the result to benchmarks/RESULTS.md")
    arguments.add_argument("--keep", action="store_true", help="leave data and logs for a look afterwards")
    return arguments
