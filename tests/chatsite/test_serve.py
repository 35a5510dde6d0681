"""`manage.py serve` as an operator sees it: a real parent, real workers, an embedded database of its own."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatsite import postgres
from chatsite.management.commands.serve import listen, url_of

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Site:
    """A var directory with a migrated database, and how to run commands on it."""

    var_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "DATABASE_URL": "",
            "VAR_DIR": str(self.var_dir),
            "HOST": "127.0.0.1",
            "PORT": "0",
            "WORKERS": "2",
            "DRAIN_SECONDS": "2",
        }

    def start(self, *arguments: str) -> "Running":
        with (self.var_dir / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
            )
        return Running(process, self)


@dataclass
class Running:
    """A started `manage.py serve`."""

    process: "subprocess.Popen[str]"
    site: Site
    url: str = ""

    def wait_ready(self) -> "Running":
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        said = re.fullmatch(r"serving on (http://127\.0\.0\.1:\d+) \(2 workers\)\n", line)
        assert said, f"{line!r}\n{(self.site.var_dir / 'serve.log').read_text()}"
        self.url = said[1]
        wait_until(lambda: len(self.workers()) == 2)
        return self

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def status_of(self, path: str) -> int:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return int(answer.status)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site of its own, migrated."""
    with tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        site = Site(Path(directory) / "var")
        site.var_dir.mkdir()
        migrate = site.start("migrate", "--verbosity", "0")
        assert migrate.process.wait(60) == 0, (site.var_dir / "serve.log").read_text()
        migrate.end()
        yield site
        postgres.stop(site.var_dir)


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Running]:
    """A server that accepts connections."""
    running = site.start("serve")
    try:
        yield running.wait_ready()
    finally:
        running.end()
        wait_until(lambda: not postgres.status(site.var_dir).in_use)
        postgres.stop(site.var_dir)


@pytest.fixture(scope="module")
def lasting(site: Site) -> Iterator[Running]:
    """One server for the tests that it survives: starting one takes seconds."""
    with serving(site) as running:
        yield running


@pytest.fixture
def running(site: Site) -> Iterator[Running]:
    """A server of this test's own."""
    with serving(site) as running:
        yield running


def test_migrate_alone_leaves_no_database_server_behind(site: Site) -> None:
    assert postgres.status(site.var_dir).state == "stopped"


def test_sigterm_ends_workers_even_paused_ones_and_the_database_with_status_0(running: Running) -> None:
    assert running.status_of("/livez") == 200
    assert postgres.status(running.site.var_dir).state == "running"
    workers = running.workers()
    os.kill(workers[0], signal.SIGSTOP)
    time.sleep(1.2)
    assert running.workers() == workers

    running.process.terminate()
    running.process.terminate()

    assert running.process.wait(20) == 0
    assert [pid for pid in workers if is_alive(pid)] == []
    assert postgres.status(running.site.var_dir).state == "stopped"


def test_ctrl_c_reaches_the_whole_terminal_and_ends_with_status_0(running: Running) -> None:
    os.killpg(running.process.pid, signal.SIGINT)

    assert running.process.wait(20) == 0
    assert "Traceback" not in (running.site.var_dir / "serve.log").read_text()


def test_workers_of_a_killed_parent_leave_and_the_last_stops_the_database(running: Running) -> None:
    workers = running.workers()

    running.process.kill()

    wait_until(lambda: not any(is_alive(pid) for pid in workers))
    wait_until(lambda: postgres.status(running.site.var_dir).state == "stopped")


def test_a_killed_worker_is_replaced_while_the_other_serves(lasting: Running) -> None:
    victim, other = lasting.workers()

    os.kill(victim, signal.SIGKILL)

    wait_until(lambda: len(lasting.workers()) == 2 and victim not in lasting.workers())
    assert other in lasting.workers()
    assert lasting.status_of("/livez") == 200


def test_a_killed_database_comes_back_by_itself(lasting: Running) -> None:
    pid = postgres.status(lasting.site.var_dir).pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: postgres.status(lasting.site.var_dir).pid not in (None, pid))
    wait_until(lambda: postgres.status(lasting.site.var_dir).state == "running")
    assert lasting.status_of("/livez") == 200


def test_a_port_that_is_taken_is_said_in_one_line(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(port)],
            env=site.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        f"CommandError: Cannot listen on 127.0.0.1 port {port}: Address already in use."
    )


def test_a_host_with_colons_is_listened_to_as_ipv6() -> None:
    try:
        listening = listen("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with listening:
        assert listening.family == socket.AF_INET6
        assert url_of(listening, "::1") == f"http://[::1]:{listening.getsockname()[1]}"
