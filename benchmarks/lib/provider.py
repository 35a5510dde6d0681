"""The fake provider process, and the directives that tell it how to answer."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.http import fetch
from benchmarks.lib.processes import free_port

ROOT = Path(__file__).resolve().parents[2]


def directive(**words: object) -> str:
    """Return the directive for the end of a user message: `[[n=20 rate=50]]`."""
    return "[[" + " ".join(f"{name}={value}" for name, value in words.items()) + "]]"


class FakeProvider:
    """`tests/fakes/provider.py` as a process of its own."""

    def __init__(self, log: Path, *, name: str = "") -> None:
        self.port = free_port()
        self.name = name
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id, once started."""
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises: RuntimeError when it does not within 10 s.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220  # starting is quick
                [sys.executable, "-m", "tests.fakes.provider", "--port", str(self.port), "--name", self.name],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                await self.stats()
                return
            except (OSError, TimeoutError):
                await asyncio.sleep(0.05)
        raise RuntimeError(f"the fake provider does not answer; see {self.log}")

    async def stats(self) -> Any:
        """Return its counters; `monotonic` times compare with time.monotonic() of every process here."""
        return (await fetch(("127.0.0.1", self.port), "GET", "/stats", timeout=10)).json()

    async def open_streams(self) -> int:
        """Return how many replies it is giving at this moment."""
        return int((await self.stats())["open_streams"])

    async def calls(self, tag: str) -> int:
        """Return how many requests carried this `tag=` in their directive."""
        counted = (await self.stats())["by_directive"]
        return sum(count for words, count in counted.items() if f"tag={tag}" in words.split())

    async def closed_at(self, tag: str, *, seconds: float) -> float | None:
        """Return the monotonic time at which the client closed this tag's call, or None after `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for entry in (await self.stats())["closed_by_client"]:
                if f"tag={tag}" in entry["directive"].split():
                    return float(entry["monotonic"])
            await asyncio.sleep(0.05)
        return None

    def stop(self) -> None:
        """End it."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                # Busy with a bomb it packs: it has nothing to save.
                self.process.kill()
                self.process.wait()
