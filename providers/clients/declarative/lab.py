"""The provider lab: a dry run of a configuration, without a network.

It shows the request that would be sent, with its secrets masked, and what becomes of every event of a recorded
response. The command `try_provider` prints it; a page may show the same.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import httpx

from providers import errors
from providers.clients.declarative.client import DeclarativeProvider, provider_from_config
from providers.clients.declarative.conditions import STATUS
from providers.clients.declarative.failures import named
from providers.clients.declarative.reducer import MappedReducer, Trace, error_in
from providers.clients.declarative.request import Prepared
from providers.clients.declarative.schema import Config, Mode
from providers.clients.declarative.stored import Stored, check_stored
from providers.clients.failures import vendor_error
from providers.credentials import Secret
from providers.sse import loads
from providers.types import ChatMessage, ChatRequest, Finished

_PLACEHOLDER = "dry-run"
_RAW_MAX_CHARS = 2000
TRACES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Transcript:
    """A recorded response."""

    body: bytes = field(repr=False)
    status: int = 200
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class ShownRequest:
    """A request as it may be shown: no secret is in it."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any


@dataclass(slots=True)
class DryRun:
    """What a configuration would send, and what it makes of a recorded response."""

    auth_request: ShownRequest | None
    request: ShownRequest
    unused_params: list[str]
    traces: list[Trace] = field(default_factory=list)
    traces_left_out: int = 0
    text: str = ""
    reasoning: str = ""
    finished: Finished | None = None
    error: errors.ProviderError | None = None


def read_transcript(data: bytes) -> Transcript:
    """Return a recorded response: a body alone, `curl -i`'s head and body, or a kept case as JSON."""
    if data[:5] == b"HTTP/":
        text_head, mark, body = data.partition(b"\r\n\r\n")
        if not mark:
            text_head, _mark, body = data.partition(b"\n\n")
        first, *lines = text_head.decode("latin-1").splitlines()
        words = first.split()
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        status = int(words[1]) if len(words) > 1 and words[1].isdecimal() else 200
        return Transcript(body, status, headers.get("content-type", ""))
    if data.lstrip()[:1] == b"{":
        try:
            case = json.loads(data)
            if isinstance(case, dict) and isinstance(case.get("bytes_base64"), str):
                body = base64.b64decode(case["bytes_base64"])
                return Transcript(body, int(case.get("http_status", 200)), str(case.get("content_type", "")))
        except (ValueError, TypeError, RecursionError):
            pass  # then it is a body
    return Transcript(data)


def dry_run(
    config: Stored | Config | Mapping[str, Any],
    transcript: Transcript | None = None,
    *,
    mapi: str | None = None,
    mode: Mode | None = None,
    model: str = "a-model",
    base_url: str = "",
    values: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    messages: tuple[ChatMessage, ...] = (ChatMessage("system", "你是助手。"), ChatMessage("user", "你好")),
) -> DryRun:
    """Return what would be sent and what would be read.

    config is what an endpoint keeps, or what became of it. mapi, mode and values go over its own.
    Raises: ConfigRefused or Misconfigured.
    """
    if isinstance(config, Config):
        config = Stored(config)
    stored = config if isinstance(config, Stored) else check_stored(config, mapi=mapi)
    provider = provider_from_config(
        stored.config,
        values={**stored.values, **(values or {})},
        api_key=Secret(json.dumps(dict.fromkeys(stored.config.secrets, _PLACEHOLDER))),
        model=model,
        base_url=base_url,
        mapi=mapi or stored.mapi,
        mode=mode or stored.mode,
        client=_no_client,
    )
    request = ChatRequest(messages, params=params or {})
    has_auth = provider.section.need_auth
    run = DryRun(
        auth_request=_shown(provider.prepare_auth(is_masked=True)) if has_auth else None,
        request=_shown(provider.prepare(request, is_masked=True)),
        unused_params=provider.unused_params(request),
    )
    if transcript is not None:
        _read(provider, transcript, run)
    return run


def _no_client() -> httpx.AsyncClient:
    raise errors.Misconfigured(code="dry_run")


def _shown(prepared: Prepared) -> ShownRequest:
    try:
        body = loads(prepared.body) if prepared.body is not None else None
    except ValueError:
        body = unquote((prepared.body or b"").decode("ascii", "replace"))
    return ShownRequest(prepared.method, unquote(prepared.url), prepared.headers, body)


def _read(provider: DeclarativeProvider, transcript: Transcript, run: DryRun) -> None:
    """Fill in what the provider makes of the response."""
    if transcript.status != 200:
        try:
            value = loads(transcript.body)
        except ValueError:
            value = None
        said = error_in(provider.section.errors, value, {STATUS: transcript.status}) or vendor_error(value)
        run.error = named(transcript.status, said)
        return
    if "html" in transcript.content_type.lower():
        run.error = errors.MalformedReply(code="html_answer", http_status=200)
        return

    def watch(trace: Trace) -> None:
        if len(run.traces) >= TRACES_MAX:
            run.traces_left_out += 1
            return
        trace.raw = trace.raw[:_RAW_MAX_CHARS]
        run.traces.append(trace)

    reducer = MappedReducer(provider.section, watcher=watch)
    try:
        reducer.feed(transcript.body)
        reducer.finish()
    except errors.Broken as error:
        run.error = error
    if (delta := reducer.take_last()) is not None:
        run.text, run.reasoning = delta.text, delta.reasoning
    if run.error is not None:
        return
    if reducer.error is not None:
        run.error = named(None, reducer.error, request_id=reducer.request_id)
    elif reducer.is_complete:
        run.finished = reducer.finished()
    elif reducer.payloads == 0:
        run.error = errors.MalformedReply(code="not_a_reply")
    else:
        run.error = errors.StreamCut()
