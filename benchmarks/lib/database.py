"""The database behind the product, as an administrator sees it: counts, and the blow it must survive."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.lib.processes import descendants, send_signal
from chatsite import postgres


class Database:
    """Either the server of DATABASE_URL or the embedded one of this VAR_DIR."""

    def __init__(self, var: Path, url: str | None) -> None:
        self.var = var
        self.url = url

    def connection_string(self) -> str:
        """Return what psycopg needs to look at everything."""
        if self.url:
            return self.url
        return f"host={postgres.place(self.var).socket_dir} user={postgres.SUPERUSER} dbname={postgres.DATABASE}"

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of one statement on a connection of its own."""
        with psycopg.connect(self.connection_string(), autocommit=True) as connection:
            return connection.execute(sql.encode(), values or None).fetchall()

    async def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of one statement, without holding up the loop."""
        return await asyncio.to_thread(self.query, sql, *values)

    def connections(self) -> int:
        """Return how many connections other clients hold to this database."""
        sql = """select count(*) from pg_stat_activity where backend_type = 'client backend'
                 and datname = current_database() and pid <> pg_backend_pid()"""
        return int(self.query(sql)[0][0])

    def postmaster_pid(self) -> int:
        """Return the process id of the embedded server.

        Raises: RuntimeError for a server that is not ours to hit.
        """
        pid = None if self.url else postgres.status(self.var).pid
        if pid is None:
            raise RuntimeError("only a running embedded server can be hit; unset DATABASE_URL")
        return pid

    async def freeze(self, seconds: float) -> float:
        """Stop every process of the embedded server for so long, and let it go on; return the seconds."""
        postmaster = self.postmaster_pid()
        family = descendants(postmaster, with_database=True)
        send_signal(family, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            send_signal(family, signal.SIGCONT)
        return seconds

    def crash_and_restart(self, which: signal.Signals = signal.SIGQUIT) -> float:
        """Return the seconds that the embedded server was away.

        SIGQUIT is its own immediate stop, SIGKILL takes even that from it.
        Raises: RuntimeError for a server that is not ours to crash.
        """
        pid = self.postmaster_pid()
        began = time.monotonic()
        os.kill(pid, which)
        while Path(f"/proc/{pid}").exists() and time.monotonic() < began + 10:
            time.sleep(0.01)
        postgres.ensure_running(self.var)
        return time.monotonic() - began

    def stop_embedded(self) -> None:
        """Stop the embedded server, if one still runs for this VAR_DIR."""
        if not self.url:
            postgres.stop(self.var)
