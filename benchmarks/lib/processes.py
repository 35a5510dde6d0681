"""Processes under observation: their tree, memory and threads as Linux tells them, and signals to them."""

import os
import signal
import socket
from pathlib import Path


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int, *, with_database: bool = False) -> list[int]:
    """Return the process and its descendants, parents first; a database it started is not one of them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                name = (entry / "comm").read_text().strip()
            except (OSError, IndexError):
                continue
            if with_database or name not in ("postgres", "pg_ctl", "initdb"):
                children.setdefault(parent, []).append(int(entry.name))
    tree, queue = [], [pid]
    while queue:
        current = queue.pop(0)
        tree.append(current)
        queue += children.get(current, [])
    return tree


def send_signal(pids: list[int], which: signal.Signals) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        try:
            os.kill(pid, which)
        except ProcessLookupError:
            continue


def status_value(pid: int, name: str) -> int:
    """Return one number of /proc/PID/status: `Threads`, or `VmRSS` in KiB; 0 for a process that is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0


def tree_total(pid: int, name: str) -> int:
    """Return the sum of one status number over a process and its Python descendants."""
    return sum(status_value(each, name) for each in descendants(pid))


def open_files(pid: int) -> int:
    """Return the number of open file descriptors of a process; 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_seconds() -> float:
    """Return the time that all cores of the machine together have been idle: who measures must know."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
