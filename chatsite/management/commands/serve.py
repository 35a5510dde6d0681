"""`manage.py serve`: one parent that owns the listening socket, and N uvicorn workers below it.

The parent starts, watches and ends workers, and brings a crashed embedded PostgreSQL back. It serves nothing
itself, so one worker and many take the same path. A worker and its parent share a socket pair: one byte from the
worker says that it accepts connections; the end of it says that the other side is gone, however it died.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from prometheus_client import multiprocess

from chatsite import postgres
from chatsite.protocol import BoundedProtocol

logger = logging.getLogger(__name__)

BACKLOG = 2048
RESTART_FIRST_SECONDS = 0.1
RESTART_MOST_SECONDS = 5.0
HOPELESS_FAILURES = 5  # so many in a row before any worker was ever ready: the setup is wrong, give up
LEAVE_SECONDS = 5  # for readers to take the end of their replies, after the drain
KILL_EXTRA_SECONDS = 15  # for the parent, beyond the same
WATCH_SECONDS = 1.0


class Command(BaseCommand):
    """Serves the site until SIGTERM or SIGINT."""

    help = "Serve the site with uvicorn until SIGTERM or SIGINT."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take what overrides the settings of the same names."""
        parser.add_argument("--host", default=settings.HOST)
        parser.add_argument("--port", type=int, default=settings.PORT)
        parser.add_argument("--workers", type=int, default=settings.WORKERS)
        parser.add_argument("--worker-fds", help="internal: listening socket and parent's socket of a worker")

    def handle(
        self, *args: Any, host: str, port: int, workers: int, worker_fds: str | None, **options: Any
    ) -> None:
        """Be the parent, or one worker."""
        if worker_fds is not None:
            listening, parent = (socket.socket(fileno=int(part)) for part in worker_fds.split(","))
            sys.exit(run_worker(listening, parent))
        if workers < 1:
            raise CommandError("--workers must be at least 1.")
        self.check(databases=["default"])
        try:
            listening = listen(host, port)
        except OSError as error:
            raise CommandError(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from error
        status = Supervisor(listening, count=workers, url=url_of(listening, host)).run()
        if status:
            sys.exit(status)


def listen(host: str, port: int) -> socket.socket:
    """Return the listening socket of a host name or address; IPv6 where the host is."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def url_of(listening: socket.socket, host: str) -> str:
    """Return the URL people open, with the port that was really bound."""
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# The parent


@dataclass
class Worker:
    """One child as the parent sees it."""

    process: subprocess.Popen[bytes]
    link: socket.socket
    is_ready: bool = False


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches the whole terminal, to the parent, from the worker's first moment."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Supervisor:
    """Keeps `count` workers on one listening socket until it is told to end."""

    def __init__(self, listening: socket.socket, *, count: int, url: str) -> None:
        self._listening = listening
        self._count = count
        self._url = url
        self._selector = selectors.DefaultSelector()
        self._workers: list[Worker] = []
        self._failures = 0
        self._start_after = 0.0
        self._was_ready = False
        self._is_stopping = False
        self._interrupts = 0
        self._metrics_dir = ""

    def run(self) -> int:
        """Serve until a signal; return the exit status: 0 after an orderly end, 1 when no worker ever started."""
        with self._signals(), tempfile.TemporaryDirectory(prefix="chat-metrics-") as self._metrics_dir:
            try:
                while not self._is_stopping:
                    self._start_missing()
                    self._wait(WATCH_SECONDS)
                    self._reap()
                    if not self._was_ready and self._failures >= HOPELESS_FAILURES:
                        logger.error("no worker could start; giving up")
                        return 1
                    self._watch_postgres()
            finally:
                self._stop_workers()
        return 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn signals into wake-ups of the loop."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)

        def end(number: int, frame: object) -> None:
            self._is_stopping = True
            self._interrupts += number == signal.SIGINT

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        for number in numbers:
            signal.signal(number, end)
        before_wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        # With a handler in place a dying worker wakes us at once.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._selector.register(ours, selectors.EVENT_READ)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before_wakeup)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in numbers:  # what follows is the way out; a second signal shall not change the status
                signal.signal(number, signal.SIG_IGN)
            self._selector.close()
            ours.close()
            theirs.close()

    def _start_missing(self) -> None:
        while len(self._workers) < self._count and time.monotonic() >= self._start_after and not self._is_stopping:
            ours, theirs = socket.socketpair()
            process = subprocess.Popen(
                [
                    *(sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "serve"),
                    *("--worker-fds", f"{self._listening.fileno()},{theirs.fileno()}"),
                ],
                pass_fds=(self._listening.fileno(), theirs.fileno()),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self._metrics_dir},
                preexec_fn=_ignore_interrupts,
            )
            theirs.close()
            ours.setblocking(False)
            self._selector.register(ours, selectors.EVENT_READ)
            self._workers.append(Worker(process, ours))

    def _wait(self, seconds: float) -> None:
        """Sleep until a signal, a word from a worker, the time of a restart, or the given time."""
        if len(self._workers) < self._count and not self._is_stopping:
            seconds = min(seconds, max(0.0, self._start_after - time.monotonic()))
        for key, _ in self._selector.select(seconds):
            self._hear(key.fileobj)  # type: ignore[arg-type]  # only sockets are registered

    def _hear(self, link: socket.socket) -> None:
        """Take a worker's word that it accepts connections; the wake-ups of signals carry nothing."""
        try:
            said = link.recv(64)
        except BlockingIOError:
            return
        worker = next((worker for worker in self._workers if worker.link is link), None)
        if worker is None:
            return
        if not said:  # it is ending; `_reap` sees the rest
            self._selector.unregister(link)
        elif not worker.is_ready:
            worker.is_ready = True
            logger.info("worker ready", extra={"worker_pid": worker.process.pid})
            if not self._was_ready:
                self._was_ready = True
                plural = "worker" if self._count == 1 else "workers"
                print(f"serving on {self._url} ({self._count} {plural})", flush=True)

    def _reap(self) -> None:
        """Forget workers that ended, and say when the next one may start."""
        for worker in [worker for worker in self._workers if worker.process.poll() is not None]:
            self._workers.remove(worker)
            self._drop_link(worker)
            # Its counters stay in the sums, its gauges do not.
            multiprocess.mark_process_dead(worker.process.pid, self._metrics_dir)
            if self._is_stopping:
                continue
            self._failures = 1 if worker.is_ready else self._failures + 1
            delay = min(RESTART_FIRST_SECONDS * 2 ** (self._failures - 1), RESTART_MOST_SECONDS)
            self._start_after = time.monotonic() + delay
            logger.warning(
                "worker ended",
                extra={
                    "worker_pid": worker.process.pid,
                    "exit_status": worker.process.returncode,
                    "restart_seconds": delay,
                },
            )

    def _drop_link(self, worker: Worker) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.link)
        worker.link.close()

    def _watch_postgres(self) -> None:
        """Bring the embedded server back when it crashed."""
        if not settings.EMBEDDED_POSTGRES or self._is_stopping:
            return
        try:
            if postgres.revive(settings.VAR_DIR):
                logger.warning("the embedded PostgreSQL had ended and was started again")
        except postgres.PostgresFailed as error:
            logger.error("the embedded PostgreSQL cannot be started again", extra={"reason": str(error)})

    def _stop_workers(self) -> None:
        """Ask all workers to end, wait for their drain, and kill what is left (or on a second Ctrl-C)."""
        self._is_stopping = True
        self._listening.close()  # or callers would queue up here when the last worker has closed it
        for worker in self._workers:
            worker.process.terminate()
            worker.process.send_signal(signal.SIGCONT)  # a paused one could not hear it
        deadline = time.monotonic() + settings.DRAIN_SECONDS + KILL_EXTRA_SECONDS
        while self._workers and time.monotonic() < deadline and self._interrupts < 2:
            self._wait(min(WATCH_SECONDS, max(0.0, deadline - time.monotonic())))
            self._reap()
        for worker in self._workers:
            logger.error("worker killed", extra={"worker_pid": worker.process.pid})
            worker.process.kill()
            worker.process.wait()
            self._drop_link(worker)
        self._workers.clear()


# A worker


class WorkerServer(uvicorn.Server):
    """A uvicorn server that says when it accepts, ends with status 0 on SIGTERM, leaves Ctrl-C to its parent."""

    def __init__(self, config: uvicorn.Config, parent: socket.socket) -> None:
        super().__init__(config)
        self._parent = parent

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM as the wish to drain. The base class raises it again at the end, which is not status 0."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.handle_exit)
        threading.Thread(target=self._follow_parent, name="follow-parent", daemon=True).start()
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell the parent."""
        await super().startup(sockets)
        with contextlib.suppress(OSError):  # without a parent the other thread has already asked us to end
            self._parent.send(b"r")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Go on answering while replies end (503 to new work, the rest to readers); only then close.

        Closing first, as the base class does, leaves callers in the queue of a socket nobody accepts from.
        """
        from conversations.generation.engine import engine  # the parent never needs it

        await engine().drain()
        self.config.timeout_graceful_shutdown = LEAVE_SECONDS
        await super().shutdown(sockets)

    def _follow_parent(self) -> None:
        """Wait for the parent's end, then drain as if told to."""
        with contextlib.suppress(OSError):
            self._parent.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)


def run_worker(listening: socket.socket, parent: socket.socket) -> int:
    """Serve the application on a socket that the parent opened; return the exit status."""
    config = uvicorn.Config(
        "chatsite.asgi:application",
        loop="uvloop",
        http=BoundedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
    )
    server = WorkerServer(config, parent)
    server.run(sockets=[listening])
    return 0 if server.started else 1
