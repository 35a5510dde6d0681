"""The product as a real process, uvicorn or daphne, on a database of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
import psycopg
from django.conf import settings

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "demo-橡果-1"
Kind = Literal["uvicorn", "daphne"]


@dataclass
class Server:
    """A running server with the demo's people in it."""

    url: str
    password: str
    process: subprocess.Popen[bytes]
    log: Path
    kind: Kind

    def sign_in(self, username: str = "alice", site: str = "demo") -> dict[str, str]:
        """Return the authorization header of this person."""
        answer = httpx.post(
            f"{self.url}/api/auth/token", json={"username": username, "password": self.password, "site": site}
        )
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access']}"}

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 20) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def new_database() -> Iterator[str]:
    """Yield the URL of a migrated database with the demo in it; dropped at the end."""
    template = _template()
    name = f"serving_{uuid.uuid4().hex[:12]}"
    with _server() as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield _url_of(name)
        finally:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@cache
def _template() -> str:
    """Return the database that this process's others are copied from: migrating takes seconds, copying none."""
    name = f"serving_template_{uuid.uuid4().hex[:12]}"
    with _server() as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    for command in (["migrate", "--verbosity", "0"], ["demo"]):
        subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env=environment(_url_of(name)),
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return name


def drop_template() -> None:
    """Remove what others were copied from; while the database server is still held."""
    if _template.cache_info().currsize:
        with _server() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{_template()}" WITH (FORCE)')


def _server() -> psycopg.Connection[Any]:
    given = settings.DATABASES["default"]
    kept = {key: given[key.upper()] for key in ("user", "password", "host", "port") if given[key.upper()]}
    return psycopg.connect(dbname="postgres", autocommit=True, **kept)


def _url_of(name: str) -> str:
    given = settings.DATABASES["default"]
    user = quote(given["USER"], safe="")
    secret = f":{quote(given['PASSWORD'], safe='')}" if given["PASSWORD"] else ""
    query = f"?host={quote(given['HOST'], safe='')}" + (f"&port={given['PORT']}" if given["PORT"] else "")
    return f"postgres://{user}{secret}@/{name}{query}"


def environment(database_url: str, **more: str) -> dict[str, str]:
    """Return the environment of a server for tests: nothing of the caller's settings leaks in."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "SECRET_KEYS") if key in os.environ}
    return {
        **kept,
        "DATABASE_URL": database_url,
        "VAR_DIR": str(settings.VAR_DIR),
        "DEMO_PASSWORD": PASSWORD,
        "THROTTLE": "off",
        "LEASE_SECONDS": "2",
        "DRAIN_SECONDS": "3",
        "STREAM_HEARTBEAT_SECONDS": "1",
        "PROVIDER_CONNECT_SECONDS": "2",
        "PROVIDER_FIRST_SECONDS": "1.5",
        "PROVIDER_IDLE_SECONDS": "1.5",
        "PROVIDER_TOTAL_SECONDS": "20",
        "REPLY_MAX_CHARS": "20000",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def serving(kind: Kind, database_url: str, log: Path, *, workers: int = 1, **more: str) -> Iterator[Server]:
    """Yield a server that answers; ended with its whole process group."""
    port = free_port()
    command = {
        "uvicorn": ["serve", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)],
        "daphne": ["runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}"],
    }[kind]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env=environment(database_url, **more),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", PASSWORD, process, log, kind)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/livez", timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"the server did not come up:\n{server.log.read_text(errors='replace')[-3000:]}")
