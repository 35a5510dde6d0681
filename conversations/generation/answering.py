"""How a reply gets its text: one endpoint after the other is asked, and its answer read into the buffer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace

import psycopg
from django.conf import settings

from conversations import db
from conversations.context.cards import card_from_documents, merge_cards
from conversations.context.enrich import enriched, with_passages
from conversations.context.prompt import estimate_tokens
from conversations.generation import metrics
from conversations.generation.buffer import Ending
from conversations.generation.ledger import estimated_cost, ledger_values
from conversations.generation.rounds import Rounds, asked_in_round, ending_of_rounds
from conversations.generation.runs import Attempt, Run
from conversations.generation.seam import Asking, Seam, StartedAnew, asking_of, continuation
from conversations.generation.store import DatabaseAway, Store
from conversations.generation.writer import Writer
from conversations.tenancy.grants import usable_by
from providers import registry
from providers.errors import ProviderError, StartedOver
from providers.pool import Pool
from providers.registry import EndpointConfig
from providers.types import ChatRequest, Finished, outcome_of

log = logging.getLogger(__name__)

WAITING_MAX_CHARS = 64 * 1024
"""Upstream is not read while this much (at most 256 KiB) waits for the log: see DESIGN 5.4."""
RETRY_SECONDS = 0.3
SESSION_TRIES = 10


class Answerer:
    """Asks the pool's endpoints for replies. One per engine; the writer is the one of its incarnation of now."""

    def __init__(self, store: Store, pool: Pool, writer: Callable[[], Writer | None]) -> None:
        self._store = store
        self._pool = pool
        self._writer = writer
        self._rounds = Rounds(self.tell_ledger)

    async def generate(self, run: Run) -> Ending:
        """Ask for the reply, and go on for as long as the model asks for tools; return how it ended."""
        if run.started.wants_context:
            await _enrich(run)
        await self._rounds.open(run)
        self._pool.count_reply()
        while True:
            ending = ending_of_rounds(run, await self._answer(run))
            if not await self._rounds.go_on(run, ending):
                return ending

    async def _answer(self, run: Run) -> Ending:
        """Ask one endpoint after the other until one has said something; return how it ended."""
        failure: ProviderError | None = None
        way = run.started.midstream_failover
        snapshot = registry.loaded()
        if snapshot is None:
            snapshot = await db.unit(registry.current)
        snapshot = usable_by(snapshot, run.started.site_id, run.started.keys)
        for endpoint in self._candidates(run, snapshot):
            try:
                with self._pool.breaker(endpoint).call():
                    if failure is not None:
                        await self._next_attempt(run, failure)
                    return await self._ask(run, endpoint)
            except ProviderError as error:
                failure = error
                if not _is_worth_another(error, run.said_chars) or (run.said_chars and way == "off"):
                    return Ending("failed", error_code=error.public_code)
        if failure is None or run.attempt.endpoint is None:
            usable = [e for e in snapshot.endpoints if run.started.allows_stand_in or not e.is_stand_in]
            return Ending("failed", error_code="provider_rate_limited" if usable else "no_model")
        last = run.attempt.endpoint
        is_usable = _may_be_asked(run, last) and self._pool.has_room(last)
        pause = self._pool.pause_before_retry(failure) if is_usable else None
        if pause is None:
            return Ending("failed", error_code=failure.public_code)
        try:
            with self._pool.breaker(last).call():
                await self._next_attempt(run, failure)
                await asyncio.sleep(pause)
                return await self._ask(run, last)
        except ProviderError as error:
            return Ending("failed", error_code=error.public_code)

    def _candidates(self, run: Run, snapshot: registry.Snapshot) -> Iterator[EndpointConfig]:
        """Yield the endpoints to try; results of tools go to the one that asked for them first.

        Whatever its limits say: they let this reply begin, and must not end it half way.
        """
        kept = run.endpoint
        if kept is not None and _may_be_asked(run, kept):
            yield kept
        for endpoint in self._pool.attempts(snapshot, lambda endpoint: _may_be_asked(run, endpoint)):
            if kept is None or endpoint.key != kept.key:
                yield endpoint

    async def _ask(self, run: Run, endpoint: EndpointConfig) -> Ending:
        """Ask one endpoint for the reply, or for its rest; tell breaker, trace and attempt what came.

        Within its breaker's `call`.
        """
        if run.started.searches_by_tool and not endpoint.has_tools and not run.has_searched:
            await _search_first(run)
        so_far, thoughts = run.buffer.final_text() if run.chars else ("", "")
        run.attempt.began_at = (len(so_far), len(thoughts))
        so_far = so_far[run.round_at[0] :]
        asking = asking_of(endpoint, run.started.midstream_failover)
        messages, tools = asked_in_round(run, endpoint)
        messages = continuation(messages, so_far, asking)
        request = ChatRequest(
            messages,
            params=run.started.params,
            is_begun=bool(so_far) and asking == "prefix",
            tools=tools,
            tool_choice="auto" if tools else None,
        )
        run.attempt.has_tools = bool(tools)
        run.endpoint = endpoint
        if endpoint.keeps_sessions:
            request = await self._with_session(run, endpoint, request)
            if so_far:  # which no session of the vendor's has seen: it gets the history, and never both
                request = replace(request, vendor_session=None)
        run.attempt.asked_tokens = sum(estimate_tokens(message.content) for message in messages)
        breaker = self._pool.breaker(endpoint)
        metrics.PROMPT_CHARS.observe(request.prompt_chars)
        code = "interrupted"
        try:
            ending = await self._read(run, endpoint, request, so_far, asking)
            code = ending.error_code or "ok"
        except ProviderError as error:
            code = error.code
            breaker.failed(error)
            run.attempt.error = error
            self._log_end_of_attempt(run, error)
            raise
        finally:
            metrics.PROVIDER_CALLS.labels(code).inc()
        breaker.succeeded()
        return ending

    async def _with_session(self, run: Run, endpoint: EndpointConfig, request: ChatRequest) -> ChatRequest:
        """Return the request with the vendor's own session of this chat and with who the member is."""
        values = {
            "chat": run.started.chat_id,
            "question": run.started.user_message_id,
            "message": run.started.reply_id,
            "endpoint": endpoint.id,
        }
        tries = 0
        while True:
            tries += 1
            try:
                async with asyncio.timeout(5):
                    session, member = await self._store.read_vendor_session(run.started.site_id, values)
                return replace(request, vendor_session=session, biz_params=member)
            except DatabaseAway as error:
                log.warning("session_unread", extra={**run.trace(), "error": type(error).__name__})
                if tries == SESSION_TRIES:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def keep_session(self, run: Run) -> None:
        """Keep the vendor's session of a sealed reply; without it the next reply begins a new one."""
        endpoint, finished = run.attempt.endpoint, run.attempt.finished
        if endpoint is None or not endpoint.keeps_sessions or finished is None or not finished.vendor_session:
            return
        if any(run.attempt.began_at):  # It has seen an instruction of ours, and not the answer as it stands.
            return
        values = {"chat": run.started.chat_id, "endpoint": endpoint.id, "session": finished.vendor_session}
        try:
            async with asyncio.timeout(5):
                await self._store.keep_vendor_session(run.started.site_id, values)
        except (psycopg.Error, *DatabaseAway) as error:
            log.warning("session_not_kept", extra={**run.trace(), "error": type(error).__name__})

    async def _read(
        self, run: Run, endpoint: EndpointConfig, request: ChatRequest, so_far: str, asking: Asking
    ) -> Ending:
        """Read one endpoint's whole answer into the buffer.

        An endpoint that goes on with a reply adds text only: thoughts are shown of the attempt that began it.
        """
        attempt, buffer, writer = run.attempt, run.buffer, self._writer()
        assert writer is not None
        attempt.endpoint = endpoint
        most_chars = settings.REPLY_MAX_CHARS
        attempt.called = time.monotonic()
        log.info(
            "provider_called",
            extra={
                **run.trace(),
                "endpoint": endpoint.name,
                "attempt": attempt.number,
                "prompt_messages": len(request.messages),
                "prompt_chars": request.prompt_chars,
                "continued_from": len(so_far),
                "asking": asking if so_far else "",
            },
        )
        is_too_long = False
        is_first_to_speak = attempt.began_at == run.round_at
        unshown_chars = 0
        seam = Seam(so_far, asking) if so_far else None
        over: StartedAnew | None = None

        def put(text: str, reasoning: str) -> None:
            nonlocal is_too_long
            before = run.chars
            run.chars = before + len(text) + len(reasoning)
            if run.chars > most_chars:
                is_too_long = True
                left = max(0, most_chars - before)
                reasoning = reasoning[:left]
                text = text[: left - len(reasoning)]
            buffer.add(text, reasoning)

        def take(text: str, reasoning: str) -> bool:
            """Put one delta into the buffer; return whether more may come before the log has caught up."""
            nonlocal is_too_long, over, unshown_chars
            if over is not None:
                return False
            attempt.last_token = time.monotonic()
            if not attempt.first_token:
                self._first_token(run)
            if reasoning and not is_first_to_speak:
                attempt.unshown.append(reasoning)
                unshown_chars += len(reasoning)
                is_too_long = is_too_long or unshown_chars > most_chars
                reasoning = ""
            if seam is not None:
                try:
                    text = seam.feed(text)
                except StartedAnew as error:
                    over, text = error, ""
            if text or reasoning:
                put(text, reasoning)
            return buffer.waiting_chars <= WAITING_MAX_CHARS and not is_too_long and over is None

        try:
            async with aclosing(self._pool.provider_for(endpoint).stream(request, tap=take)) as stream:
                async for item in stream:
                    if isinstance(item, Finished):
                        attempt.finished = item
                    elif item.text or item.reasoning:
                        take(item.text, item.reasoning)
                    if over is not None:
                        attempt.finished = None
                        raise StartedOver from over
                    if is_too_long:
                        return Ending("failed", error_code="reply_too_long")
                    if buffer.waiting_chars > WAITING_MAX_CHARS:
                        await writer.room(buffer, WAITING_MAX_CHARS // 2)
            if seam is not None:
                try:
                    put(seam.close(), "")
                except StartedAnew as error:
                    attempt.finished = None
                    raise StartedOver from error
                if is_too_long:
                    return Ending("failed", error_code="reply_too_long")
        except asyncio.CancelledError:
            if seam is not None:  # Who stopped it keeps what came; after a failure the next one says it again.
                with suppress(StartedAnew):
                    put(seam.close(), "")
            raise
        finally:
            attempt.closed = time.monotonic()
            if seam is not None:
                attempt.unshown.append(seam.dropped)
        finished = attempt.finished
        reason = None if finished is None else finished.finish_reason
        usage = None if finished is None or finished.usage is None else finished.usage
        return Ending(
            outcome_of(reason),
            finish_reason=reason,
            usage=None
            if usage is None
            else {
                "inputTokens": run.spent[0] + usage.input_tokens,
                "outputTokens": run.spent[1] + usage.output_tokens,
            },
            reference_card=merge_cards(
                run.card, card_from_documents(finished.reference_card if finished is not None else None)
            ),
        )

    def _first_token(self, run: Run) -> None:
        run.attempt.first_token = run.attempt.last_token
        if run.round_chars:
            return  # the reply has spoken before, in an earlier round
        seconds = run.attempt.first_token - run.accepted
        metrics.FIRST_TOKEN_SECONDS.observe(seconds)
        log.info("reply_first_token", extra={**run.trace(), "seconds": round(seconds, 4)})

    async def _next_attempt(self, run: Run, error: ProviderError) -> None:
        """Close the ledger row of an attempt that failed while another may do better, and open the next."""
        metrics.FAILOVERS.inc()
        cost = estimated_cost(run)
        run.spent = (run.spent[0] + cost["input_tokens"], run.spent[1] + cost["output_tokens"])
        content, reasoning = run.buffer.final_text()
        values = {
            **ledger_values(run),
            "message": run.started.reply_id,
            "attempt_status": "failed",
            "error_code": error.code,
            "finish_reason": "",
            "request_id": error.provider_request_id or "",
            "next_from": len(content),
            "tokens_source": "estimated",
            "tools": None,
            **cost,
        }
        # Both before anything is awaited: who is stopped meanwhile is sealed as the next attempt.
        run.untold.append((time.monotonic(), values))
        run.attempt = Attempt(run.attempt.number + 1, began_at=(len(content), len(reasoning)))
        try:
            await self.tell_ledger(run)
        except DatabaseAway as failure:
            log.warning("ledger_failed", extra={**run.trace(), "error": type(failure).__name__})

    async def tell_ledger(self, run: Run) -> None:
        """Note the attempts that are over and that the ledger may not have yet; to say it twice changes nothing.

        Raises: what DatabaseAway names; then the seal says them again.
        """
        while run.untold:
            moment, values = run.untold[0]
            late = time.monotonic() - moment
            values = {
                name: value + late if name.endswith("_ago") and value is not None else value
                for name, value in values.items()
            }
            try:
                await self._store.next_attempt(run.started.site_id, values)
            except DatabaseAway:
                raise
            except psycopg.Error as failure:  # It never will: a reply is not held up by its ledger.
                log.warning("ledger_failed", extra={**run.trace(), "error": type(failure).__name__})
            run.untold.pop(0)

    def _log_end_of_attempt(self, run: Run, error: ProviderError) -> None:
        log.warning(
            "provider_failed",
            extra={
                **run.trace(),
                "endpoint": run.attempt.endpoint.name if run.attempt.endpoint else "",
                "attempt": run.attempt.number,
                "code": error.code,
                "detail": str(error),
                "chars": run.chars,
                "continued_from": run.attempt.began_at[0],
                "seconds": round(time.monotonic() - run.attempt.called, 3),
            },
        )


async def _search_first(run: Run) -> None:
    """Search what the site knows for a model that cannot ask for it, as if the site wanted that always."""
    run.has_searched = True
    started = run.started
    given = await with_passages(started.site_id, started.user_message_id, started.prompt, trace=run.trace())
    run.started = replace(started, prompt=given.prompt)
    run.card = merge_cards(run.card, given.card)


async def _enrich(run: Run) -> None:
    """Give the prompt what the site knows and what the member's page says, once for all attempts."""
    given = await enriched(run.started.site_id, run.started.user_message_id, run.started.prompt, trace=run.trace())
    run.started = replace(run.started, prompt=given.prompt)
    run.card = given.card


def _is_worth_another(error: ProviderError, chars: int) -> bool:
    """Whether another endpoint may do better: not when the question is what was refused, nor after a long reply.

    Too many bytes without a single character are noise, not a long reply.
    """
    if error.public_code == "reply_too_long":
        return chars == 0
    return error.public_code != "content_blocked"


def _may_be_asked(run: Run, endpoint: EndpointConfig) -> bool:
    """Whether an endpoint may get this reply: one that cannot go on with a text gets only what has none."""
    if endpoint.is_stand_in and not run.started.allows_stand_in:
        return False
    if not run.said_chars or asking_of(endpoint, run.started.midstream_failover) != "none":
        return True
    return not run.buffer.final_text()[0][run.round_at[0] :]
