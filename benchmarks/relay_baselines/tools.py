"""The load tools: where they are, how they are built, and what one run of them reports."""

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .processes import LOAD_CORE, Tree, cpu_seconds, free_port, spawn

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "benchmarks" / ".cache"
SEED_EXPRESSION = "seedbase=((uint64_t)getpid()<<20)^(now_us()&0xfffff)<<8;"
SEED_FROM_ENV = 'seedbase=getenv("SEED_BASE")?strtoull(getenv("SEED_BASE"),NULL,10):' + SEED_EXPRESSION[9:]


class Missing(Exception):
    """Something that this benchmark needs is not there; the text says what and how to get it."""


def find_tools(given: str | None) -> Path:
    """Return the directory with the sources of mock_upstream and sse_load."""
    places = [given, os.environ.get("BENCH_TOOLS"), ROOT.parent / "shared" / "bench"]
    for place in places:
        if place and (Path(place) / "sse_load.c").is_file():
            return Path(place)
    raise Missing(
        "The load tools are not here. This benchmark needs a directory with mock_upstream.c, sse_load.c, "
        "ssetok.h and their Makefile: pass --tools DIR or set BENCH_TOOLS (default: ../shared/bench)."
    )


def build_tools(source: Path) -> Path:
    """Return a temporary directory with both programs compiled.

    Each stream needs a conversation that exists, and sse_load numbers its streams from its process id
    and the clock. The copy that is compiled takes the first number from SEED_BASE, so that {{SEED}} in
    the body can be a chat id. Nothing else of the tool is changed.
    """
    for program in ("make", "cc"):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed; it compiles the load tools (Debian: build-essential).")
    target = Path(tempfile.mkdtemp(prefix="relay-tools-"))
    for name in ("mock_upstream.c", "sse_load.c", "ssetok.h", "Makefile"):
        shutil.copyfile(source / name, target / name)
    text = (target / "sse_load.c").read_text()
    if text.count(SEED_EXPRESSION) != 1:
        raise Missing("This sse_load.c is not the one this benchmark knows: its seedbase line is different.")
    (target / "sse_load.c").write_text(text.replace(SEED_EXPRESSION, SEED_FROM_ENV))
    subprocess.run(["make", "-s", "-C", str(target)], check=True)
    return target


@dataclass
class Load:
    """What one run asks for. Rates are tokens per second of one stream."""

    streams: int = 150
    tokens: int = 300
    rate: float = 30
    ttft_ms: int = 60  # the tool's histograms are fine below 64 ms, coarse above
    ramp_seconds: float = 2
    warm_seconds: float = 3

    @property
    def seconds(self) -> float:
        """Return how long the run takes when the server keeps up."""
        return self.ramp_seconds + self.ttft_ms / 1000 + self.tokens / (self.rate or 1e9)


@dataclass
class Target:
    """Where and how one server is asked, and which processes are its own."""

    port: int
    path: str = "/api/xcx/chat/stream"
    body: str = '{"content":"hi {{SPEC}}"}'
    field: str = "token"
    pid: int | None = None
    postgres: Tree | None = None
    headers: Callable[[], list[str]] = list
    take_seeds: Callable[[int], int] | None = None


@dataclass
class Outcome:
    """The report of sse_load, and the CPU of PostgreSQL in the same window."""

    report: dict
    postgres_us_per_token: float | None = None
    samples: list[dict] = field(default_factory=list)

    @property
    def us_per_token(self) -> float:
        """Return CPU microseconds per token of the server's process tree."""
        return self.report["cpu_us_per_token"]

    def ms(self, name: str, quantile: str) -> float:
        """Return one quantile of one of the tool's histograms, in milliseconds."""
        return self.report[f"{name}_ms"][quantile]

    @property
    def fault(self) -> str | None:
        """Return what went wrong, or None when every stream was complete and exact to the byte."""
        wrong = {name: count for name, count in self.report["errors"].items() if count}
        return f"{wrong} {self.report['sample_error']}" if wrong else None


class Tools:
    """The compiled programs, and a mock upstream that runs as long as this object is open."""

    def __init__(self, source: Path, log_dir: Path) -> None:
        self.directory = build_tools(source)
        self.mock_port = free_port()
        self.mock = spawn(
            [str(self.directory / "mock_upstream"), "--port", str(self.mock_port), "--lifetime", "14400"],
            core=LOAD_CORE,
            log=log_dir / "mock.log",
        )

    def close(self) -> None:
        """Stop the mock and remove the programs."""
        self.mock.kill()
        self.mock.wait()
        shutil.rmtree(self.directory)

    def direct(self) -> Target:
        """Return the mock itself as a target: the floor of every latency."""
        return Target(self.mock_port, "/v1/chat/completions", openai_body("mock"), "content", self.mock.pid)

    def upstream_state(self) -> dict:
        """Return the mock's counters."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.mock_port}/stats") as answer:
            return json.load(answer)

    def run(self, target: Target, load: Load, sample: Callable[[], dict] | None = None) -> Outcome:
        """Return the outcome of one run; `sample` is called every half second while streams are open."""
        command = [str(self.directory / "sse_load"), "--port", str(target.port), "--path", target.path]
        command += ["--body", target.body, "--field", target.field, "--skip-event", "done"]
        command += ["--concurrency", str(load.streams), "--tokens", str(load.tokens)]
        command += ["--rate", str(load.rate), "--ttft", str(load.ttft_ms), "--ramp", str(load.ramp_seconds)]
        command += ["--warm", str(load.warm_seconds), "--max-time", str(load.seconds * 4 + 60)]
        for header in target.headers():
            command += ["--header", header]
        if target.pid:
            command += ["--pid-tree", str(target.pid)]
        environment = dict(os.environ)
        if target.take_seeds:
            environment["SEED_BASE"] = str(target.take_seeds(load.streams))
        started = time.monotonic()
        process = spawn(command, core=LOAD_CORE, env=environment, stdout=subprocess.PIPE)
        before, samples = None, []
        while process.poll() is None:
            if before is None and target.postgres and time.monotonic() - started >= load.warm_seconds:
                before = cpu_seconds(target.postgres.pids(), reaped_by=target.postgres.root)
            if sample and time.monotonic() - started >= load.ramp_seconds + 1:
                samples.append(sample())
            time.sleep(0.5 if sample else 0.05)
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        per_token = None
        if target.postgres and before is not None and report.get("window_tokens"):
            spent = cpu_seconds(target.postgres.pids(), reaped_by=target.postgres.root) - before
            per_token = spent * 1e6 / report["window_tokens"]
        return Outcome(report, per_token, samples)


def openai_body(model: str) -> str:
    """Return the body template for servers that speak the upstream's own protocol."""
    messages = [{"role": "user", "content": "hi {{SPEC}}"}]
    return json.dumps({"model": model, "stream": True, "messages": messages})
