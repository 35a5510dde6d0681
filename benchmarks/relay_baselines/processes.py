"""Processes: starting them on one core, stopping them, and reading what they used from /proc."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = CORES[0]
LOAD_CORE = CORES[1 % len(CORES)]
TICKS = os.sysconf("SC_CLK_TCK")


def spawn(
    command: list[str],
    *,
    core: int,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    stdout: int | None = None,
) -> subprocess.Popen:
    """Return a process that runs on one core, in a group of its own so that it can be ended whole."""
    output: int | IO[bytes] | None = stdout if stdout is not None else subprocess.DEVNULL
    errors: int | IO[bytes] = subprocess.DEVNULL
    if log:
        output = errors = log.open("ab")
    return subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
    )


def end(process: subprocess.Popen, patience_seconds: float = 20) -> None:
    """End a process and its group: asked first, then killed."""
    for signal_number, patience in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def free_port() -> int:
    """Return a port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    """Return when something listens on the port; raise with the log's end when it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port}; the log ends:\n{log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Tree:
    """A process and all its descendants, looked up anew each time."""

    root: int

    def pids(self) -> list[int]:
        """Return the living processes of the tree."""
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := _stat(int(entry))):
                parents[int(entry)] = int(fields[1])
        found = {self.root} & parents.keys()
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def threads(self) -> int:
        """Return how many threads the tree has."""
        return sum(int(fields[17]) for pid in self.pids() if (fields := _stat(pid)))

    def pss_mb(self) -> float:
        """Return the proportional memory of the tree in MB."""
        total = 0
        for pid in self.pids():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total / 1024


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the name: state first, or None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def cpu_seconds(pids: Iterable[int], *, reaped_by: int) -> float:
    """Return the CPU seconds of these processes and of the children that `reaped_by` has waited for."""
    ticks = 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += int(fields[11]) + int(fields[12])
            if pid == reaped_by:
                ticks += int(fields[13]) + int(fields[14])
    return ticks / TICKS


def move_tree(tree: Tree, core: int) -> None:
    """Move a running tree (PostgreSQL, which others may have started) to one core."""
    for pid in tree.pids():
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})
