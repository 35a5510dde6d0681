"""The client for OpenAI-compatible endpoints: one streamed POST, its clocks, and its failures by name.

What the bytes of the answer mean is in openai_reducer.py.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson

from providers import errors
from providers.base import Clocks
from providers.clients.openai_reducer import Reducer
from providers.credentials import Secret
from providers.http import READ, RELEASE, TRUSTED
from providers.sse import loads
from providers.types import ChatRequest, StreamItem, storable

_ERROR_BODY_MAX_BYTES = 64 * 1024
_ERROR_BODY_SECONDS = 5.0
_INFLATED_MAX_BYTES = 64 * 1024  # per step, so that a bomb meets the line limit before memory does
# Once the finish reason is known only usage and [DONE] can follow, and not every server sends them.
_AFTER_FINISH_SECONDS = 5.0
_RETRY_AFTER_MAX_SECONDS = 3600.0
_KEY = re.compile(r"[\x21-\x7e]+")
_OURS = frozenset({"model", "messages", "stream"})


class OpenAIChatProvider:
    """A ChatProvider for any server that speaks POST …/chat/completions."""

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: Secret | None = None,
        params: Mapping[str, Any] | None = None,
        clocks: Clocks | None = None,
        is_trusted_address: bool = False,
        client: Callable[[], httpx.AsyncClient],
    ) -> None:
        """Take the endpoint's facts; client returns the HTTP client of the running event loop.

        params are added to every request body; `{"stream_options": null}` leaves that field out, for the few
        servers that refuse it.
        """
        self._url = chat_url(base_url)
        self._model = model
        self._api_key = api_key
        self._params = dict(params or {})
        self._clocks = clocks or Clocks()
        self._is_trusted_address = is_trusted_address
        self._client = client

    async def stream(self, request: ChatRequest) -> AsyncGenerator[StreamItem, None]:
        """Yield the reply as it comes, then Finished. See ChatProvider.stream."""
        reducer = Reducer(line_max_bytes=self._clocks.line_max_bytes)
        watch = _Watch(self._clocks)
        response: httpx.Response | None = None
        lost: httpx.TransportError | None = None
        broken: errors.Broken | None = None
        try:
            client = self._client()
            sent = self._request(client, request)
            watch.begin()
            try:
                response = await client.send(sent, stream=True)
            except httpx.HTTPError as error:
                raise from_httpx(error) from error
            request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
            chunks = aiter(response.stream)  # type: ignore[arg-type]  # raw bytes, before any decoding
            if response.status_code != 200:
                raise await self._refusal(response, chunks, watch)
            inflate = self._check_head(response)
            read = response.extensions.get(READ) or _reader(chunks)
            was_finishing = False
            while not reducer.is_over:
                watch.begin()
                try:
                    chunk = await read()
                except httpx.TransportError as error:
                    lost = error
                    break
                if not chunk:
                    break
                before = reducer.payloads
                try:
                    if inflate is None:
                        reducer.feed(chunk)
                    else:
                        for piece in inflate(chunk):
                            reducer.feed(piece)
                except errors.Broken as error:
                    broken = error
                if reducer.payloads != before:
                    watch.payload()
                    if reducer.finish_reason is not None and not was_finishing:
                        was_finishing = True
                        watch.finishing()
                delta = reducer.take()
                if delta is not None:
                    watch.pause()
                    yield delta
                    watch.resume()
                if broken is not None:
                    raise broken
        except asyncio.CancelledError:
            if not (phase := watch.timed_out()):
                raise
            if not reducer.is_complete:
                raise errors.TimedOut(phase, provider_request_id=reducer.request_id) from None
        except _TotalTimeOut:
            raise errors.TimedOut("total", provider_request_id=reducer.request_id) from None
        finally:
            watch.stop()
            if response is not None:
                if reducer.done and (release := response.extensions.get(RELEASE)) is not None:
                    release()
                await response.aclose()

        reducer.finish()
        if (delta := reducer.take_last()) is not None:
            yield delta
        if reducer.error is not None:
            raise refusal(None, reducer.error, request_id=request_id or reducer.request_id, secret=self._api_key)
        if not reducer.is_complete:
            raise _incomplete(reducer, lost, request_id=request_id or reducer.request_id)
        reducer.request_id = request_id or reducer.request_id
        yield reducer.finished()

    def _request(self, client: httpx.AsyncClient, request: ChatRequest) -> httpx.Request:
        """Return the HTTP request for this question."""
        body: dict[str, Any] = {
            "model": request.model or self._model,
            "messages": [{"role": m.role, "content": storable(m.content)} for m in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.user_ref:
            body["user"] = request.user_ref
        for params in (self._params, request.params):
            body.update((name, value) for name, value in params.items() if name not in _OURS)
        if body["stream_options"] is None:
            del body["stream_options"]
        headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if self._api_key:
            key = self._api_key.reveal()
            if not _KEY.fullmatch(key):
                raise errors.Misconfigured(code="bad_api_key")
            headers["Authorization"] = f"Bearer {key}"
        try:
            return client.build_request(
                "POST",
                self._url,
                content=orjson.dumps(body),
                headers=headers,
                extensions={
                    "timeout": {
                        "connect": self._clocks.connect_seconds,
                        "read": None,
                        "write": None,
                        "pool": None,
                    },
                    TRUSTED: self._is_trusted_address,
                },
            )
        except httpx.InvalidURL:
            raise errors.Misconfigured(code="bad_endpoint") from None
        except TypeError as error:
            raise errors.Misconfigured(code="bad_params") from error

    def _check_head(self, response: httpx.Response) -> Callable[[bytes], Iterable[bytes]] | None:
        """Return how to inflate the body, None when it is plain. Raises MalformedReply for no reply."""
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type in ("text/html", "application/xhtml+xml"):
            raise errors.MalformedReply(code="html_answer", http_status=200)
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding in ("", "identity"):
            return None
        if encoding in ("gzip", "x-gzip", "deflate"):
            return _inflater()
        raise errors.MalformedReply(code="unknown_encoding", http_status=200)

    async def _refusal(
        self, response: httpx.Response, chunks: AsyncIterator[bytes], watch: _Watch
    ) -> errors.ProviderError:
        """Return the error that this status and the first 64 KiB of its body mean."""
        status = response.status_code
        request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
        if 300 <= status < 400:
            return errors.MalformedReply(
                code="redirect_refused", retryable=False, http_status=status, provider_request_id=request_id
            )
        if status < 300:
            return errors.MalformedReply(http_status=status, provider_request_id=request_id)
        body = bytearray()
        watch.limit("first", _ERROR_BODY_SECONDS)
        try:
            async for chunk in chunks:
                body += chunk
                if len(body) >= _ERROR_BODY_MAX_BYTES:
                    break
        except httpx.TransportError:
            pass  # the status alone says enough
        except asyncio.CancelledError:
            if not watch.timed_out():
                raise
        try:
            value = loads(bytes(body[:_ERROR_BODY_MAX_BYTES]))
        except ValueError:
            value = None
        return refusal(
            status,
            _vendor_error(value),
            retry_after_seconds=retry_after_seconds(response.headers.get("retry-after")),
            request_id=request_id,
            secret=self._api_key,
        )


# --- clocks ----------------------------------------------------------------------------------------------


class _TotalTimeOut(Exception):
    """The whole-reply clock ran out while the consumer was not pulling."""


class _Watch:
    """The clocks of one attempt on one timer that is re-armed when it fires early, never per token.

    The task that reads is cancelled when a clock runs out, and timed_out() tells that cancellation from any
    other, in the manner of asyncio.timeout().
    """

    __slots__ = (
        "_cancelling",
        "_clocks",
        "_end",
        "_limit",
        "_loop",
        "_phase",
        "_since",
        "_task",
        "_timer",
        "expired",
    )

    def __init__(self, clocks: Clocks) -> None:
        self._loop = asyncio.get_running_loop()
        self._clocks = clocks
        self._since = self._loop.time()
        self._end = self._since + clocks.total_seconds
        self._phase: Literal["first", "idle"] = "first"
        self._limit = clocks.first_payload_seconds
        self._task: asyncio.Task[Any] | None = None  # the reader, while it reads
        self._cancelling = 0
        self.expired: Literal["first", "idle", "total"] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arm(min(self._since + self._limit, self._end))

    def begin(self) -> None:
        """Say that this task waits for the provider from now on."""
        if self.expired is not None:
            raise _TotalTimeOut
        task = self._task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()

    def payload(self) -> None:
        """Say that data came."""
        self._since = self._loop.time()
        if self._phase == "first":
            self.limit("idle", self._clocks.idle_seconds)

    def finishing(self) -> None:
        """Say that only the formalities of the end are missing."""
        self.limit("idle", min(self._clocks.idle_seconds, _AFTER_FINISH_SECONDS))

    def limit(self, phase: Literal["first", "idle"], seconds: float) -> None:
        """Set the clock that runs now."""
        self._phase, self._limit = phase, seconds
        deadline = min(self._since + seconds, self._end)
        if self._timer is not None and deadline < self._timer.when():
            self._timer.cancel()
            self._arm(deadline)

    def pause(self) -> None:
        """Say that the consumer has the turn."""
        self._task = None

    def resume(self) -> None:
        """Say that the consumer came back."""
        self._since = self._loop.time()

    def stop(self) -> None:
        """Stop all clocks."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def timed_out(self) -> Literal["first", "idle", "total"] | None:
        """Return the clock that caused the CancelledError just caught, None when somebody else did."""
        if self.expired is None or self._task is None:
            return None
        return self.expired if self._task.uncancel() <= self._cancelling else None

    def _arm(self, deadline: float) -> None:
        self._timer = self._loop.call_at(deadline, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if now >= self._end:
            self.expired = "total"
        elif self._task is None:
            self._arm(min(now + self._limit, self._end))
            return
        elif now >= self._since + self._limit:
            self.expired = self._phase
        else:
            self._arm(min(self._since + self._limit, self._end))
            return
        self._timer = None
        if self._task is not None:
            self._task.cancel()


# --- reading ---------------------------------------------------------------------------------------------


def chat_url(base_url: str) -> str:
    """Return the URL to post to, for a base with or without slash, version or the full path.

    A bare host gets `/v1`; a path is taken as the vendor wrote it (`…/compatible-mode/v1`, `…/api/paas/v4`).
    Raises: Misconfigured, if it is not an http(s) URL, or carries credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(base_url.strip())
        port = parts.port
    except ValueError:
        raise errors.Misconfigured(code="bad_base_url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise errors.Misconfigured(code="bad_base_url")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise errors.Misconfigured(code="bad_base_url")
    if re.search(r"[\s\x00-\x1f\\]", base_url.strip()):
        raise errors.Misconfigured(code="bad_base_url")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def retry_after_seconds(value: str | None, *, now: dt.datetime | None = None) -> float | None:
    """Return a Retry-After header in seconds, at most an hour, None when there is none to read."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=dt.UTC)
        seconds = (when - (now or dt.datetime.now(dt.UTC))).total_seconds()
    if seconds != seconds:  # NaN
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX_SECONDS)


def from_httpx(error: httpx.HTTPError) -> errors.ProviderError:
    """Return our error for an httpx one that came before any answer."""
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return errors.TimedOut("connect")
        case httpx.ReadTimeout():
            return errors.TimedOut("first")
        case httpx.WriteTimeout():
            return errors.TimedOut("write")
        case httpx.ConnectError():
            return errors.ConnectFailed()
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.ProxyError():
            return errors.Misconfigured(code="bad_endpoint")
        case httpx.RemoteProtocolError() | httpx.NetworkError():
            return errors.ConnectFailed(code="no_answer")
        case _:
            return errors.MalformedReply()


_KINDS: tuple[tuple[re.Pattern[str], type[errors.ProviderError]], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"throttl|rate_?limit|rate_?quota", errors.RateLimited),
        (r"quota|billing|arrear|insufficient_?balance|\b1113\b", errors.QuotaExceeded),
        (r"content_?filter|content_?policy|data_?inspection|sensitive|moderation|\b1301\b", errors.ContentBlocked),
        (r"too_?many|\b1302\b|flow_?limit", errors.RateLimited),
        (r"api_?key|authentication|unauthor|access_?denied|permission|\b1004\b", errors.Unauthorized),
        (r"model_?not_?(found|exist)|unknown_?model|notfounderror", errors.UnknownModel),
        (r"overload|server_?error|internal|unavailable|engine", errors.Unavailable),
        (r"invalid_?(request|param|argument)|bad_?request|context_length", errors.BadRequest),
    )
)


def refusal(
    status: int | None,
    error: Mapping[str, Any] | None,
    *,
    retry_after_seconds: float | None = None,
    request_id: str | None = None,
    secret: Secret | None = None,
) -> errors.ProviderError:
    """Return our error for a vendor's, by HTTP status (None: in the stream) and its {message, type, code}."""
    error = error or {}
    code, kind_word = error.get("code"), error.get("type")
    if status is None and isinstance(code, int) and 400 <= code < 600:
        status = code
    words = f"{code or ''} {kind_word or ''}".lower()
    named = next((kind for pattern, kind in _KINDS if pattern.search(words)), None)
    kind: type[errors.ProviderError]
    if named in (errors.QuotaExceeded, errors.ContentBlocked, errors.UnknownModel):
        kind = named
    elif status == 402:
        kind = errors.QuotaExceeded
    elif status == 429:
        kind = errors.RateLimited
    elif status in (401, 403):
        kind = errors.Unauthorized
    elif status == 404:
        kind = errors.UnknownModel
    elif status is not None and (status >= 500 or status in (408, 425)):
        kind = errors.Unavailable
    elif named is not None:
        kind = named
    else:
        kind = errors.Unavailable if status is None else errors.BadRequest
    message = error.get("message")
    message = message if isinstance(message, str) else None
    if message and secret:
        message = message.replace(secret.reveal(), "•••")
    vendor_code = next((str(word) for word in (code, kind_word) if word not in (None, "")), None)
    return kind(
        retry_after_seconds=retry_after_seconds,
        provider_request_id=request_id,
        http_status=status,
        vendor_code=vendor_code,
        vendor_message=message,
    )


def _vendor_error(value: Any) -> dict[str, Any] | None:
    """Return {message, type, code} of an HTTP error body, in the shapes vendors use."""
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    return {
        "message": value.get("message") or value.get("detail"),
        "type": value.get("type"),
        "code": value.get("code"),
    }


def _incomplete(
    reducer: Reducer, lost: httpx.TransportError | None, *, request_id: str | None
) -> errors.ProviderError:
    """Return what to call a body that ended before the model said that it had finished (13)."""
    if lost is not None:
        return errors.StreamCut(code="connection_lost", provider_request_id=request_id)
    if reducer.payloads == 0:
        return errors.MalformedReply(code="not_a_reply", provider_request_id=request_id)
    return errors.StreamCut(provider_request_id=request_id)


def _reader(chunks: AsyncIterator[bytes]) -> Callable[[], Awaitable[bytes]]:
    """Return a function that waits for the next bytes of a body, b"" at its end."""

    async def read() -> bytes:
        while (chunk := await anext(chunks, None)) is not None:
            if chunk:
                return chunk
        return b""

    return read


def _inflater() -> Callable[[bytes], Iterable[bytes]]:
    """Return a function that inflates gzip or deflate in steps of bounded size."""
    engine = zlib.decompressobj(47)

    def inflate(chunk: bytes) -> Iterable[bytes]:
        try:
            while chunk:
                piece = engine.decompress(chunk, _INFLATED_MAX_BYTES)
                if piece:
                    yield piece
                chunk = engine.unconsumed_tail
        except zlib.error as error:
            raise errors.MalformedReply(code="bad_encoding") from error

    return inflate
