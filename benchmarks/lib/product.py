"""The product as an operator starts it: `manage.py` commands, one environment, real processes and signals."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from benchmarks.lib.api import Member
from benchmarks.lib.database import Database
from benchmarks.lib.http import Address, Answer, BadResponse, fetch
from benchmarks.lib.processes import descendants, free_port, send_signal
from benchmarks.lib.provider import FakeProvider

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct-horse-demo"
START_SECONDS = 60.0


class Worker:
    """One `manage.py serve` on its own port. Several of them share one database."""

    def __init__(self, product: "Product", name: str, port: int | None = None) -> None:
        self.product = product
        self.name = name
        self.address: Address = ("127.0.0.1", port or free_port())
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        """The process id of the running `serve`."""
        assert self.process is not None
        return self.process.pid

    @property
    def serving_pid(self) -> int:
        """The process that answers requests: the child of `serve`, not its supervising parent."""
        return descendants(self.pid)[-1]

    @property
    def is_running(self) -> bool:
        """True while the process exists and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def log_path(self) -> Path:
        """Everything the worker wrote, over all its starts."""
        return self.product.directory / f"{self.name}.log"

    def spawn(self) -> None:
        """Start the process and return at once."""
        environment = {**self.product.environment, "PORT": str(self.address[1])}
        self.starts += 1
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    async def ready(self, seconds: float = START_SECONDS) -> None:
        """Return when /readyz answers 200.

        Raises: RuntimeError with the end of the log, when it never does.
        """
        until = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < until:
            if not self.is_running:
                break
            try:
                answer = await fetch(self.address, "GET", "/readyz", timeout=3.0)
                last = (answer.status, answer.body[:200])
                if answer.status == 200:
                    return
            except (OSError, TimeoutError, BadResponse) as error:
                last = error
            await asyncio.sleep(0.1)
        tail = self.log_path.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{self.name} is not ready ({last!r}):\n{tail}")

    async def replaced(self, seconds: float = START_SECONDS) -> None:
        """Return when a new child answers after `kill_child`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if (await fetch(self.address, "GET", "/readyz", timeout=seconds)).status == 200:
                    return
            except (OSError, TimeoutError, BadResponse):
                await asyncio.sleep(0.05)

    async def start(self) -> "Worker":
        """Start and wait until ready."""
        self.spawn()
        await self.ready()
        return self

    def signal(self, which: signal.Signals) -> None:
        """Send a signal to the process and its Python descendants, and to nothing else."""
        send_signal(descendants(self.pid), which)

    def kill(self) -> None:
        """kill -9 parent and child, as when the machine goes, and reap."""
        assert self.process is not None
        self.signal(signal.SIGKILL)
        self.process.wait()

    def kill_child(self) -> None:
        """kill -9 the serving process alone; the parent starts another."""
        send_signal([self.serving_pid], signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM to the main process alone, as an init system does."""
        send_signal([self.pid], signal.SIGTERM)

    async def wait(self, seconds: float) -> int | None:
        """Return the exit code, or None when it still runs after `seconds`."""
        assert self.process is not None
        until = time.monotonic() + seconds
        while (code := self.process.poll()) is None and time.monotonic() < until:  # noqa: ASYNC110  # a process has no event
            await asyncio.sleep(0.02)
        return code

    async def get(self, path: str, timeout: float = 5.0) -> Answer:
        """Return the answer to an anonymous GET."""
        return await fetch(self.address, "GET", path, timeout=timeout)


class Product:
    """Database, demo data, fake provider and workers, in a directory of their own; all end with the block."""

    def __init__(self, *, keep: bool = False, provider: FakeProvider | None = None, **settings: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="chat-bench-"))
        self.directory.chmod(0o755)
        self.keep = keep
        self.provider = provider or FakeProvider(self.directory / "provider.log")
        self.workers: list[Worker] = []
        self.database = Database(self.directory / "var", os.environ.get("DATABASE_URL"))
        self._settings = settings

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every process of the product."""
        return {
            **os.environ,
            "VAR_DIR": str(self.directory / "var"),
            "HOST": "127.0.0.1",
            "WORKERS": "1",
            "DEMO_PASSWORD": PASSWORD,
            "LLM_BASE_URL": f"{self.provider.base_url}/v1",
            "LLM_API_KEY": "sk-bench-0123456789",
            "LLM_MODEL": "fake-1",
            "PROVIDER_ALLOWED_ADDRESSES": f"127.0.0.1:{self.provider.port}",
            "THROTTLE": "off",
            "PYTHONUNBUFFERED": "1",
            **self._settings,
        }

    @property
    def addresses(self) -> list[Address]:
        """Where the workers listen."""
        return [worker.address for worker in self.workers]

    def manage(self, *arguments: str, seconds: float = 120.0) -> str:
        """Return the output of one management command.

        Raises: RuntimeError when it fails.
        """
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(f"manage.py {' '.join(arguments)}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    async def start(self, workers: int) -> "Product":
        """Bring up the provider, the tables, the demo people and the workers."""
        await self.provider.start()
        (self.directory / "var").mkdir(exist_ok=True)
        await asyncio.to_thread(self.manage, "migrate", "--noinput")
        await asyncio.to_thread(self.manage, "demo", "--bare")
        for index in range(workers):
            self.workers.append(Worker(self, "abcdefgh"[index]))
        for worker in self.workers:
            worker.spawn()
        for worker in self.workers:
            await worker.ready()
        return self

    def member(self, username: str) -> Member:
        """Return a demo person as a client."""
        return Member(username, PASSWORD)

    async def __aenter__(self) -> "Product":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            if worker.is_running:
                worker.signal(signal.SIGCONT)
                worker.terminate()
        for worker in self.workers:
            if worker.process and await worker.wait(25) is None:
                print(f"{worker.name} did not end on SIGTERM within 25 s; killed", file=sys.stderr)
                worker.kill()
        self.provider.stop()
        await asyncio.to_thread(self.database.stop_embedded)
        if self.keep or error:
            print(f"data and logs stay in {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
