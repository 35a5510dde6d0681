"""The two things every unit of work needs: `tenant(site)`, and the async door to the ORM.

A stream must hold no connection and no thread while it waits: whoever is async asks `unit()` to run one
sync function to its end on a bounded executor, and gets its result.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import psycopg
from django.conf import settings
from django.db import connection, transaction

P = ParamSpec("P")
R = TypeVar("R")

_executor: ThreadPoolExecutor | None = None
_executor_lock = threading.Lock()
UNIT_THREADS = 8


@contextmanager
def tenant(site_id: int) -> Iterator[None]:
    """Run a transaction in which the database knows whose rows are meant (`app.site_id`).

    Nested use restores the outer site on exit. The setting is local to the transaction, so that a pooled
    connection never carries it to the next user (DESIGN 6).
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('app.site_id', true), set_config('app.site_id', %s, true)",
                [str(site_id)],
            )
            row = cursor.fetchone()
        yield
        if row and row[0] and not connection.needs_rollback:
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('app.site_id', %s, true)", [row[0]])


@contextmanager
def prepared_cursor() -> Iterator[psycopg.Cursor[Any]]:
    """Yield a cursor whose statements are planned once for each connection, for the hottest ones.

    Django's own binds in the client, and PostgreSQL plans each statement anew: 0.9 of the 1.1 ms that
    checking a sender took. Behind a pooler that cannot LISTEN nothing is prepared.
    """
    connection.ensure_connection()
    connection.connection.prepare_threshold = 1 if settings.DB_LISTEN else None
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield cursor


def _threads() -> ThreadPoolExecutor:
    global _executor
    with _executor_lock:
        if _executor is None:
            size = min(UNIT_THREADS, max(1, settings.DB_POOL_SIZE - 1))
            _executor = ThreadPoolExecutor(size, thread_name_prefix="db-unit")
        return _executor


async def unit(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what the sync function returns, run on a bounded executor; its connection goes back at the end."""

    def run() -> R:
        try:
            return function(*args, **kwargs)
        finally:
            if not connection.in_atomic_block:
                connection.close()

    # run_in_executor, unlike asyncio.to_thread, carries no context over: Django's connections live in
    # context variables, and a request's would be leaked into the thread.
    return await asyncio.get_running_loop().run_in_executor(_threads(), run)


def database_now() -> Any:
    """Return the database's clock, aware: the only clock that leases and stored times use."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cursor.fetchone()[0]
