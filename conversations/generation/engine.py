"""The engine of this process: accepts replies, runs them detached from any request, seals them, lets them be read.

A reply's task belongs to the engine, never to the request that began it. Who wants to read asks `attach`
for its buffer, on whichever worker; who wants to end it asks `stop`. The life of a reply is told in
docs/streaming.md, and the rules that make it safe in `store.py` and `writer.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import psycopg
from django.conf import settings
from django.db import Error as DjangoDatabaseError
from django.utils import timezone

from conversations import db
from conversations.context import indexer
from conversations.errors import ChatError, Conflict, NotFound, Unavailable
from conversations.generation import endpoints, metrics, sweeper
from conversations.generation.actions import OwnerGone, Started
from conversations.generation.answering import Answerer
from conversations.generation.buffer import Ending, ReplyBuffer
from conversations.generation.ledger import log_end, seal_values
from conversations.generation.runs import Attempt, Interruption, Listener, Run, ending_of_interruption
from conversations.generation.store import DatabaseAway, Store
from conversations.generation.tool_rows import notes_of
from conversations.generation.watch import OwnerTail, ending_of, fill
from conversations.generation.writer import Writer
from providers import pool as pools
from providers import registry

log = logging.getLogger(__name__)
T = TypeVar("T")

START_SECONDS = 8.0
HEARTBEAT_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 60.0
PROGRESS_SECONDS = 10.0
SEAL_RETRY_SECONDS = 0.3
NOBODY = 0
"""A worker that is never alive: an action in its name finds what there is, and begins nothing."""


class Engine:
    """One per process and event loop; `engine()` gives the running loop's."""

    def __init__(self, *, store: Store | None = None) -> None:
        self.store = store or Store()
        self.worker_id = 0
        self.is_draining = False
        self._pool = pools.Pool()
        self._answerer = Answerer(self.store, self._pool, lambda: self._writer)
        self._runs: dict[int, Run] = {}
        self._tails: dict[int, OwnerTail] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._incarnation_tasks: list[asyncio.Task[Any]] = []
        self._writer: Writer | None = None
        self._ready = asyncio.Event()
        self._beginning = 0
        self._doubtful_since = 0.0
        self._revision_heard = self._revision_told = -1
        self._hearing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._healthy_since = 0.0
        self._start_task: asyncio.Task[None] | None = None
        self._drain_task: asyncio.Task[None] | None = None
        self._is_closed = False

    # --- living and dying ---

    async def ready(self) -> int:
        """Return this incarnation's id, for a new reply to belong to; starts the engine at the first call.

        Raises: Unavailable when it cannot start within a few seconds, or is draining.
        """
        if self.is_draining:
            raise Unavailable(retry_after_seconds=2)
        await self.started()
        return self.worker_id

    async def started(self) -> None:
        """Return when the engine runs; also while it drains, for those who only read.

        Raises: Unavailable.
        """
        if self._ready.is_set():
            return
        if self._is_closed:
            raise Unavailable(retry_after_seconds=2)
        if self._start_task is None:
            self._start_task = self._spawn(self._start())
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready.wait()
        except TimeoutError as error:
            raise Unavailable(retry_after_seconds=2) from error

    async def _start(self) -> None:
        await self.store.open()
        await self._incarnate()
        await self._inherit_health()
        self._spawn(self._beat())
        self._spawn(self._keep_clocks())
        self._spawn(self._keep_house())
        for chore in _chores:
            self._spawn(chore())
        self._spawn(indexer.keep_indexing(lambda: self.is_draining))

    async def _inherit_health(self) -> None:
        """Let a new process judge at once when the database has been up for a lease.

        Otherwise workers that die one after the other, faster than a lease, leave nobody who may sweep.
        """
        try:
            has_outlived = await self.store.has_outlived(lease=settings.LEASE_SECONDS)
        except (psycopg.Error, *DatabaseAway) as error:
            log.warning("uptime_unknown", extra={"error": type(error).__name__})
            return
        if has_outlived and self._healthy_since:
            self._healthy_since -= settings.LEASE_SECONDS

    async def _incarnate(self) -> None:
        """Become a new worker: register, and let writer, folds and listener work in its name."""
        while True:
            try:
                self.worker_id = await self.store.register(host=socket.gethostname(), pid=os.getpid())
                break
            except (psycopg.Error, *DatabaseAway) as error:
                log.warning("register_failed", extra={"error": type(error).__name__})
                await asyncio.sleep(0.5)
        self._writer = Writer(
            self.store,
            worker=self.worker_id,
            tick_seconds=settings.ENGINE_TICK_MS / 1000,
            fold_seconds=settings.ENGINE_FOLD_SECONDS,
            on_stop=lambda message_id: self._interrupt(message_id, "stop"),
            on_fenced=self._fenced,
        )
        self._incarnation_tasks = [
            self._spawn(self._writer.run()),
            self._spawn(self._writer.run_folds()),
            self._spawn(self._listen(self.worker_id)),
        ]
        if registry.loaded() is None:
            await self._in_unit(registry.refresh)
        self._healthy_since = time.monotonic()
        self._ready.set()
        log.info("worker_started", extra={"worker": self.worker_id, "pid": os.getpid()})

    def _fenced(self) -> None:
        """Somebody declared us dead: drop all upstreams, say nothing, and begin again under a new id."""
        if not self._ready.is_set():
            return
        metrics.FENCED.inc()
        log.error("worker_fenced", extra={"worker": self.worker_id, "replies": len(self._runs)})
        self._ready.clear()
        for run in list(self._runs.values()):
            run.buffer.lose()
            self._interrupt(run.started.reply_id, "fenced")
            self._forget(run)
        old, self._incarnation_tasks = self._incarnation_tasks, []
        for task in old:
            if task is not asyncio.current_task():
                task.cancel()
        if not self._is_closed:
            self._spawn(self._incarnate())

    async def _beat(self) -> None:
        """Renew the lease every second, sweep those who did not, and follow the registry."""
        while True:
            began = time.monotonic()
            if self._ready.is_set():
                try:
                    await self._pulse()
                except Exception as error:
                    # Whatever it was: without a next beat this worker is dead in seconds, and all its replies.
                    log.exception("beat_failed", exc_info=error, extra={"worker": self.worker_id})
            await asyncio.sleep(max(0.05, HEARTBEAT_SECONDS - (time.monotonic() - began)))

    async def _pulse(self) -> None:
        worker, revision = self.worker_id, self._revision()
        try:
            async with asyncio.timeout(5):
                pulse = await self.store.heartbeat(
                    worker=worker,
                    live=len(self._runs),
                    endpoints=self._live_endpoints(),
                    revision=revision,
                    draining=self.is_draining,
                    lease=settings.LEASE_SECONDS,
                )
        except (psycopg.Error, *DatabaseAway) as error:
            self._healthy_since = 0.0
            log.warning("heartbeat_failed", extra={"worker": worker, "error": type(error).__name__})
            return
        if not self._healthy_since:
            self._healthy_since = time.monotonic()
        if not pulse.is_alive:
            if worker == self.worker_id:
                self._fenced()
            return
        # A beat that set out before another may arrive after it: an acknowledged revision is not taken back.
        self._revision_told = max(self._revision_told, revision)
        self._pool.workers = pulse.workers
        if pulse.registry_revision != self._revision() and await self._follow_registry(pulse.registry_revision):
            self._spawn(self._pulse())  # Whoever changed it waits for our word.
        if self._doubtful_since:
            self._spawn(self._seal_abandoned())
        if self.may_judge:
            for stale in pulse.stale_workers:
                self._spawn(self._sweep(stale))
            if pulse.has_orphans:
                self._spawn(self._in_unit(sweeper.sweep_orphans, lease_seconds=settings.LEASE_SECONDS))

    async def _follow_registry(self, revision: int) -> bool:
        """Swap the snapshot for the one of this revision; return whether it is another one now."""
        before = self._revision()
        await self._in_unit(registry.refresh_if, revision)
        if (snapshot := registry.loaded()) is not None:
            self._pool.forget_missing(snapshot)
        if self._revision() == before:
            return False
        log.info("registry_changed", extra={"worker": self.worker_id, "revision": self._revision()})
        return True

    async def _hear_of_registry(self) -> None:
        """Follow the registry when it is said to have changed, many times perhaps, and tell everybody at once."""
        while (heard := self._revision_heard) > self._revision_told:
            await self._follow_registry(heard)
            if self._revision() < heard:
                return  # The database is away, perhaps; the heartbeat asks again.
            await self._pulse()
            if self._revision_told < heard:
                return

    def _live_endpoints(self) -> dict[str, int]:
        """Return how many replies are under way on each endpoint that is a row."""
        used = (run.attempt.endpoint for run in self._runs.values() if not run.attempt.closed)
        return dict(Counter(str(endpoint.id) for endpoint in used if endpoint is not None and endpoint.id))

    async def _keep_clocks(self) -> None:
        """Look at the clocks every second; apart from the heartbeat, which waits for the database."""
        while True:
            if self._ready.is_set():
                self._watch_clocks()
            metrics.LIVE_REPLIES.set(len(self._runs))
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _watch_clocks(self) -> None:
        """End upstreams when the database has been away for too long, and tell how far the others are."""
        assert self._writer is not None
        if self._writer.stalled_seconds > settings.ENGINE_DATABASE_GRACE_SECONDS:
            for message_id in list(self._runs):
                self._interrupt(message_id, "database")
        now = time.monotonic()
        for run in self._runs.values():
            if now - run.logged >= PROGRESS_SECONDS:
                run.logged = now
                log.info(
                    "reply_progress",
                    extra={**run.trace(), "chars": run.chars, "seconds": round(now - run.accepted, 3)},
                )

    @property
    def is_healthy(self) -> bool:
        """Whether this process has an incarnation whose lease is being renewed."""
        return self._ready.is_set() and bool(self._healthy_since)

    @property
    def has_registry(self) -> bool:
        """Whether this process knows its endpoints."""
        return registry.loaded() is not None

    @property
    def may_judge(self) -> bool:
        """Whether we may call others dead: only when we know the database to have been there for a whole lease.

        After an outage everybody's sign of life is old, and nobody has died.
        """
        return bool(self._healthy_since) and time.monotonic() - self._healthy_since >= settings.LEASE_SECONDS

    async def _sweep(self, worker_id: int) -> None:
        await self._in_unit(sweeper.sweep_worker, worker_id, lease_seconds=settings.LEASE_SECONDS)

    async def sweep_if_due(self, worker_id: int) -> None:
        """Sweep a worker that a reader found gone, when it is ours to say so."""
        if self.may_judge:
            await self._sweep(worker_id)

    async def _in_unit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run housekeeping in a unit; whatever fails will be tried again, the database being away is no news."""
        try:
            return await db.unit(function, *args, **kwargs)
        except (DjangoDatabaseError, *DatabaseAway) as error:
            log.warning("unit_failed", extra={"unit": function.__name__, "error": type(error).__name__})
        except Exception as error:
            # A row that cannot be read must not keep this worker from its heartbeat and from sweeping.
            log.exception("unit_broken", exc_info=error, extra={"unit": function.__name__})
        return None

    @staticmethod
    def _revision() -> int:
        snapshot = registry.loaded()
        return -1 if snapshot is None else snapshot.revision

    async def _seal_abandoned(self) -> None:
        """Seal replies that say they are ours and have no task; say nothing while one is just being accepted."""
        asked = time.monotonic()
        has_looked = await self._in_unit(
            sweeper.seal_abandoned, self.worker_id, lambda: None if self._beginning else list(self._runs)
        )
        if has_looked and asked - self._doubtful_since > sweeper.ABANDONED_SECONDS:
            self._doubtful_since = 0.0

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            if self._ready.is_set():
                await self._seal_abandoned()
                await self._in_unit(sweeper.keep_house)
                await self._in_unit(endpoints.remove_drained)

    async def _listen(self, worker: int) -> None:
        """Hear requests to stop, and of a changed registry, at once; without LISTEN writer and heartbeat ask."""
        if not settings.DB_LISTEN:
            return
        while True:
            try:
                async with aclosing(self.store.listen(worker)) as notices:
                    async for notice in notices:
                        if notice.kind == "stop":
                            self._interrupt(notice.number, "stop")
                            continue
                        self._revision_heard = notice.number
                        if self._hearing is None or self._hearing.done():
                            self._hearing = self._spawn(self._hear_of_registry())
            except (psycopg.Error, *DatabaseAway) as error:
                log.warning("listen_failed", extra={"worker": worker, "error": type(error).__name__})
            await asyncio.sleep(1)

    def drain(self) -> asyncio.Task[None]:
        """Begin to end: accept nothing new, give replies DRAIN_SECONDS, then seal the rest as interrupted.

        Returns the task that is done when no reply is left; the same one when called again.
        """
        if self._drain_task is None:
            self.is_draining = True
            log.info("drain_started", extra={"worker": self.worker_id, "replies": len(self._runs)})
            self._drain_task = self._spawn(self._drain())
        return self._drain_task

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(settings.DRAIN_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            while not self._idle.is_set():
                # Again and again: what was being accepted when we began may come to run only now.
                for message_id in list(self._runs):
                    self._interrupt(message_id, "drain")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self._idle.wait()
        for tail in self._tails.values():
            tail.let_go()
        log.info("drain_finished", extra={"worker": self.worker_id})

    async def close(self) -> None:
        """Drain, retire, and let go of everything."""
        if self._is_closed:
            return
        if self._start_task is not None:
            await self.drain()
        self._is_closed = True
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ready.is_set():
            try:
                async with asyncio.timeout(2):
                    await self.store.retire(self.worker_id)
            except (psycopg.Error, *DatabaseAway) as error:
                log.warning("retire_failed", extra={"error": type(error).__name__})
        await self._pool.close()
        await self.store.close()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Return a task of the engine's own: strongly held, and with a context of its own.

        A request's context would keep its database connection for as long as the task lives (DESIGN 6).
        """
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, ChatError):  # A refusal is told to whoever asked.
            log.error("engine_task_failed", exc_info=error, extra={"task": task.get_coro().__qualname__})  # type: ignore[union-attr]  # ours are coroutines
        if self._incarnation_tasks and task is self._incarnation_tasks[0]:
            # Without its writer a worker can only hold its replies up: let them be swept, and begin anew.
            self._fenced()

    # --- accepting ---

    async def accept(
        self, begin: Callable[..., Started], *args: Any, request_id: str = "", **kwargs: Any
    ) -> Started:
        """Run one of the actions that begin a reply, and launch what it began.

        `request_id` is for the trace alone.

        The work is shielded: a client that hangs up in the middle leaves no reply without a task.
        """
        return await asyncio.shield(self._spawn(self._accept(begin, args, kwargs, request_id)))

    async def _accept(self, begin: Callable[..., Started], args: Any, kwargs: Any, request_id: str) -> Started:
        self._beginning += 1
        self._idle.clear()
        try:
            return await self._begin(begin, args, kwargs, request_id)
        finally:
            self._beginning -= 1
            self._settle()

    async def _begin(self, begin: Callable[..., Started], args: Any, kwargs: Any, request_id: str) -> Started:
        for _ in range(20):
            if self.is_draining:
                return await self._find_begun(begin, args, kwargs)
            worker = await self.ready()
            try:
                started = await db.unit(
                    begin, *args, worker_id=worker, lease_seconds=settings.LEASE_SECONDS, **kwargs
                )
            except OwnerGone as gone:
                # The lease of the reply's owner has run out, or ours has: settle that, then ask again.
                if gone.worker_id == self.worker_id:
                    # Late is not dead: a heartbeat renews the lease, or tells us that it is over.
                    await self._pulse()
                    continue
                await self.sweep_if_due(gone.worker_id)
                await asyncio.sleep(0 if self.may_judge else 0.5)
                continue
            except (DjangoDatabaseError, *DatabaseAway):
                # If it was the answer to our COMMIT that was lost, there is a reply now that nobody runs.
                self._doubtful_since = time.monotonic()
                raise
            if started.is_new:
                self._launch(started, worker, request_id)
            return started
        raise Unavailable(retry_after_seconds=5)

    async def _find_begun(self, begin: Callable[..., Started], args: Any, kwargs: Any) -> Started:
        """Return what an earlier call with the same key began: to be read, while nothing new may begin here.

        Raises: Unavailable.
        """
        try:
            return await db.unit(begin, *args, worker_id=NOBODY, lease_seconds=settings.LEASE_SECONDS, **kwargs)
        except OwnerGone:
            raise Unavailable(retry_after_seconds=2) from None

    def _launch(self, started: Started, worker: int, request_id: str) -> None:
        if worker != self.worker_id or self._writer is None:
            return  # Fenced since: the sweeper seals it.
        buffer = ReplyBuffer(started.reply_id, site_id=started.site_id, created_at=local_iso(started.created_at))
        run = Run(started, worker, buffer, time.monotonic(), Attempt(started.attempt), request_id)
        if started.follows_caller:
            run.listener = Listener()
        self._runs[started.reply_id] = run
        self._writer.follow(buffer)
        metrics.REPLIES_STARTED.inc()
        log.info("reply_accepted", extra={**run.trace(), "worker": worker})
        run.task = self._spawn(self._run(run))

    # --- running ---

    async def _run(self, run: Run) -> None:
        """Generate, then seal. Cancelling this task is how a reply is stopped from outside."""
        try:
            run.has_begun = True
            if run.interruption is not None:
                raise asyncio.CancelledError
            ending = await self._answerer.generate(run)
            if run.listener is not None:
                # Who hangs up before they have all of it has not heard the rest: until then it may still be cut.
                await run.listener.reaches(len(run.buffer.final_text()[0]))
        except asyncio.CancelledError:
            if run.interruption is None or run.interruption == "fenced":
                raise
            ending = ending_of_interruption(run.interruption)
        except Exception as error:
            # A defect of ours must not leave a reply running for ever; it is told as what it is.
            log.exception("reply_crashed", extra=run.trace(), exc_info=error)
            ending = Ending("failed", error_code="internal")
        run.is_sealing = True
        if run.card is not None and run.chars and ending.reference_card is None:
            ending = replace(ending, reference_card=run.card)  # It stopped or failed after words that lean on it.
        if ending.status == "stopped" and run.started.channel == "voice":
            run.kept_chars = await self._heard_chars(run)
        await self._seal(run, ending)

    async def _heard_chars(self, run: Run) -> int:
        """Return how much of a spoken reply was delivered, here or by another worker."""
        here = 0
        if run.listener is not None:
            run.listener.is_closed = True
            here = run.listener.heard_chars
        while True:
            try:
                async with asyncio.timeout(10):
                    return max(here, await self.store.read_heard_chars(run.started.site_id, run.started.reply_id))
            except DatabaseAway as error:
                log.warning("seal_failed", extra={**run.trace(), "error": type(error).__name__})
                await asyncio.sleep(SEAL_RETRY_SECONDS)

    # --- sealing ---

    async def _seal(self, run: Run, ending: Ending) -> None:
        """Store the end, for as long as it takes; only then let it be read.

        The first sealer wins. If we are told that the row is no longer running, then either an earlier try
        of ours was committed though its answer was lost, or another worker sealed it: both are in the row.
        """
        values = seal_values(run, ending)
        while True:
            try:
                async with asyncio.timeout(10):
                    await self._answerer.tell_ledger(run)
                    is_alive, is_sealed = await self.store.seal(run.started.site_id, values)
                    stored = None if is_sealed else await self.store.read_reply(run.started.reply_id)
                break
            except DatabaseAway as error:
                log.warning("seal_failed", extra={**run.trace(), "error": type(error).__name__})
                await asyncio.sleep(SEAL_RETRY_SECONDS)
            except Exception as error:
                # It can never be sealed like this; a sweep stores what the log has.
                log.error("seal_refused", extra={**run.trace(), "error": type(error).__name__})
                is_alive, is_sealed, stored = False, False, None
                break
        if is_sealed:
            await self._answerer.keep_session(run)
        self._forget(run)
        if is_sealed:
            run.buffer.end(ending, kept_chars=run.kept_chars)
        elif stored is not None and stored.status != "streaming":
            fill(run.buffer, stored)
        else:
            run.buffer.lose()
        if is_alive:
            log_end(run, ending, values)
        elif run.worker_id == self.worker_id:
            self._fenced()  # and whoever declared us dead tells how the reply ended

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.started.reply_id, None)
        self._settle()
        if self._writer is not None:
            self._writer.leave(run.buffer)

    def _settle(self) -> None:
        """Let a drain end when nothing runs and nothing is being accepted."""
        if not self._runs and not self._beginning:
            self._idle.set()

    # --- stopping ---

    def _interrupt(self, message_id: int, why: Interruption) -> None:
        """End a reply from outside: its task closes upstream first, then seals."""
        run = self._runs.get(message_id)
        if run is None or run.is_sealing or run.interruption is not None or run.task is None:
            return
        run.interruption = why
        if run.has_begun:  # A task cancelled before its first step never runs: nobody would seal.
            run.task.cancel()

    async def stop(self, started: Started) -> None:
        """End a reply, whichever worker runs it, and return when it is sealed.

        Raises: Conflict already_finished.
        """
        await self.stop_reply(started.reply_id)

    async def stop_reply(self, reply_id: int) -> None:
        """The same for whoever knows only its id, and may stop it.

        Raises: NotFound, Conflict already_finished.
        """
        run = self._runs.get(reply_id)
        if run is not None and run.started.follows_caller:
            # Ours, and nobody asks when it was wished for: no need to write that down.
            self._interrupt(reply_id, "stop")
            await self.ended(reply_id)
            return
        await self.started()
        stored = await self.store.read_reply(reply_id)
        if stored is None:
            raise NotFound
        if stored.status != "streaming":
            raise Conflict("already_finished", extra={"messageId": reply_id, "replyStatus": stored.status})
        await self.store.request_stop(reply_id, owner=stored.worker_id or 0)
        self._interrupt(reply_id, "stop")
        ending = (await self.ended(reply_id))[1]
        if ending.status != "stopped" and ending.status != "interrupted":
            raise Conflict("already_finished", extra={"messageId": reply_id, "replyStatus": ending.status})

    def listener(self, reply_id: int) -> Listener | None:
        """Return the listener of a reply that this worker makes for its caller, None for any other."""
        run = self._runs.get(reply_id)
        return None if run is None else run.listener

    def detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Return the work as a task of the engine's own: done to its end, whatever becomes of the request's."""
        return self._spawn(work)

    # --- reading ---

    async def ended(self, message_id: int) -> tuple[ReplyBuffer, Ending]:
        """Return a reply when it has ended, and how; one that this process loses is followed to its seal.

        Raises: NotFound, Unavailable.
        """
        while True:
            async with self.attach(message_id) as buffer:
                ending = await buffer.wait_ended()
            if ending is not None:
                return buffer, ending
            if self.is_draining:
                raise Unavailable(retry_after_seconds=2)
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def attach(self, message_id: int) -> AsyncIterator[ReplyBuffer]:
        """Yield the buffer of a reply: our own, a mirror of another worker's, or the sealed text.

        What is in it is committed, always; before the first look at another worker's log it may be empty.
        Raises: NotFound.
        """
        run = self._runs.get(message_id)
        if run is not None:
            yield run.buffer
            return
        await self.started()
        while True:
            stored = await self.store.read_reply(message_id)
            if stored is None:
                raise NotFound
            run = self._runs.get(message_id)
            if run is not None:
                yield run.buffer
                return
            if stored.status == "streaming" and stored.worker_id == self.worker_id:
                # Between its transaction and its task, or between its seal and our look.
                await asyncio.sleep(0.02)
                continue
            break
        buffer = ReplyBuffer(message_id, site_id=stored.site_id, created_at=local_iso(stored.created_at))
        if stored.status != "streaming":
            buffer.content.append(stored.content)
            buffer.reasoning.append(stored.reasoning)
            buffer.end(ending_of(stored))
            yield buffer
            return
        buffer.is_loaded = False
        tail = self._tail_of(stored.worker_id or 0)
        mirror = tail.watch(buffer)
        try:
            yield mirror
        finally:
            tail.unwatch(message_id)

    async def load_tools(self, buffer: ReplyBuffer) -> None:
        """Let a buffer know of the tools that ran for its reply; those that run here are known already.

        A mirror hears of further ones from now on.
        """
        run = self._runs.get(buffer.message_id)
        if run is not None and run.buffer is buffer:
            return
        buffer.wants_tools = True
        is_running = buffer.ending is None
        for note in notes_of(await self.store.read_tools(buffer.message_id), is_running=is_running):
            buffer.note_tool(note)

    def _tail_of(self, owner: int) -> OwnerTail:
        tail = self._tails.get(owner)
        if tail is None:
            tail = OwnerTail(
                self.store, owner, lease_seconds=settings.LEASE_SECONDS, on_owner_gone=self.sweep_if_due
            )
            self._tails[owner] = tail
            # The task begins after `watch` has given it something to do.
            self._spawn(self._follow(owner, tail))
        return tail

    async def _follow(self, owner: int, tail: OwnerTail) -> None:
        try:
            await tail.run()
        finally:
            if self._tails.get(owner) is tail:
                del self._tails[owner]
            tail.let_go()  # Nobody is left, unless the tail has failed: then its readers resume.


def local_iso(moment: Any) -> str:
    """Return a stored time as ISO 8601 with the local offset."""
    return timezone.localtime(moment).isoformat(timespec="milliseconds")


Chore = Callable[[], Coroutine[Any, Any, None]]
_chores: list[Chore] = []


def register_chore(chore: Chore) -> None:
    """Have every engine of this process run something from its start until it is closed.

    For rooms above this one that must do something by and by in some worker; who is cancelled may tidy up first.
    """
    if chore not in _chores:
        _chores.append(chore)


_engines: dict[asyncio.AbstractEventLoop, Engine] = {}


def engine_trouble() -> str | None:
    """Return one word on why no new reply can begin in this process now, None when one can."""
    for current in _engines.values():
        if current.is_draining:
            return "draining"
        if not current.is_healthy:
            return "unavailable"
        if not current.has_registry:
            return "registry not loaded"
    return None


def engine() -> Engine:
    """Return the engine of the running loop, made at the first call; a closed one is replaced."""
    loop = asyncio.get_running_loop()
    current = _engines.get(loop)
    if current is None or current._is_closed:
        for closed in [known for known in _engines if known.is_closed()]:
            del _engines[closed]
        current = _engines[loop] = Engine()
    return current
