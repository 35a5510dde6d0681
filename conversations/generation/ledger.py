"""What the ledger keeps of an attempt at a reply: endpoint, times, tokens, cost, and how it ended."""

from __future__ import annotations

import logging
import time
from typing import Any

from conversations.context.prompt import estimate_tokens
from conversations.generation import metrics
from conversations.generation.buffer import Ending
from conversations.generation.runs import Run
from conversations.models.conversations import PREVIEW_CHARS
from conversations.tenancy.grants import kind_of

log = logging.getLogger(__name__)


def ledger_values(run: Run) -> dict[str, Any]:
    """Return what the ledger keeps of the attempt under way, its times as seconds ago."""
    attempt, now = run.attempt, time.monotonic()

    def ago(moment: float) -> float | None:
        return now - moment if moment else None

    return {
        "worker": run.worker_id,
        "attempt": attempt.number,
        "endpoint": attempt.endpoint.id if attempt.endpoint else None,
        "endpoint_name": attempt.endpoint.name if attempt.endpoint else "",
        "model": attempt.endpoint.model[:200] if attempt.endpoint else "",
        "credential": kind_of(attempt.endpoint.credential if attempt.endpoint else ""),
        "continued_from": attempt.began_at[0],
        "prompt_messages": len(run.started.prompt),
        "prompt_chars": sum(message.chars for message in run.started.prompt),
        "called_ago": ago(attempt.called),
        "first_token_ago": ago(attempt.first_token),
        "last_token_ago": ago(attempt.last_token),
        "closed_ago": ago(attempt.closed),
    }


def seal_values(run: Run, ending: Ending) -> dict[str, Any]:
    """Return all that the seal of a reply stores: its text, how it ended, and the last row of its ledger."""
    content, reasoning = run.kept_text()
    finished, error = run.attempt.finished, run.attempt.error
    usage = finished.usage if finished else None
    request_id = finished.request_id if finished else error.provider_request_id if error else None
    attempt_status = {"truncated": "complete"}.get(ending.status, ending.status)
    endpoint = run.attempt.endpoint
    cost = estimated_cost(run)
    if usage is not None:
        price = endpoint.cost_micros(usage.input_tokens, usage.output_tokens) if endpoint else None
        cost = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_micros": price,
        }
    return {
        **ledger_values(run),
        "message": run.started.reply_id,
        "content": content,
        "reasoning": reasoning,
        "status": ending.status,
        "finish_reason": ending.finish_reason[:64] if ending.finish_reason else None,
        "error_code": ending.error_code,
        "usage": ending.usage,
        "reference_card": ending.reference_card,
        "preview": content[:PREVIEW_CHARS],
        "attempt_status": attempt_status,
        # The ledger keeps the inner word, also of the attempt that the reply ended with.
        "attempt_error_code": error.code if error and ending.status == "failed" else ending.error_code,
        "request_id": (request_id or "")[:200],
        **cost,
        "tokens_source": "provider" if usage and not usage.is_estimated else "estimated",
        "tools": run.attempt.tools or None,
    }


def round_values(run: Run) -> dict[str, Any]:
    """Return what the ledger keeps of a call of the model that ended by asking for tools."""
    finished = run.attempt.finished
    assert finished is not None
    usage = finished.usage
    cost = estimated_cost(run)
    if usage is not None:
        endpoint = run.attempt.endpoint
        price = endpoint.cost_micros(usage.input_tokens, usage.output_tokens) if endpoint else None
        cost = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cost_micros": price}
    return {
        **ledger_values(run),
        "message": run.started.reply_id,
        "attempt_status": "complete",
        "error_code": "",
        "finish_reason": (finished.finish_reason or "")[:64],
        "request_id": (finished.request_id or "")[:200],
        "tokens_source": "provider" if usage and not usage.is_estimated else "estimated",
        "tools": run.attempt.tools or None,
        "next_from": len(run.buffer.final_text()[0]),
        **cost,
    }


def estimated_cost(run: Run) -> dict[str, Any]:
    """Return what this attempt took and said, by our own count; nothing when it failed before a word.

    Of a reply that several endpoints wrote, each has its own part, and what it said that is not shown.
    """
    attempt, endpoint = run.attempt, run.attempt.endpoint
    content, reasoning = run.buffer.final_text()
    said = estimate_tokens(content[attempt.began_at[0] :]) + estimate_tokens(reasoning[attempt.began_at[1] :])
    said += estimate_tokens("".join(attempt.unshown))
    if attempt.finished is not None:
        said += sum(estimate_tokens(f"{call.name}{call.arguments}") for call in attempt.finished.tool_calls)
    gave_nothing = attempt.error is not None and not attempt.first_token
    asked = attempt.asked_tokens if attempt.called and not gave_nothing else 0
    return {
        "input_tokens": asked,
        "output_tokens": said,
        "cost_micros": endpoint.cost_micros(asked, said) if endpoint else None,
    }


def log_end(run: Run, ending: Ending, values: dict[str, Any]) -> None:
    """Count and trace the end of a reply."""
    metrics.REPLIES_ENDED.labels(ending.status, ending.error_code).inc()
    metrics.CHARS.inc(len(values["content"]))
    seconds = time.monotonic() - run.accepted
    metrics.REPLY_SECONDS.observe(seconds)
    log.info(
        "reply_ended",
        extra={
            **run.trace(),
            "status": ending.status,
            "code": ending.error_code,
            "cause": run.interruption or "",
            "finish_reason": ending.finish_reason,
            "attempts": run.attempt.number,
            "chars": len(values["content"]),
            "input_tokens": values["input_tokens"],
            "output_tokens": values["output_tokens"],
            "tokens_source": values["tokens_source"],
            "seconds": round(seconds, 3),
        },
    )
