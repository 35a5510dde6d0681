"""The client for OpenAI-compatible endpoints: one streamed POST, its clocks, and its failures by name.

What the bytes of the answer mean is in openai_reducer.py.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx
import orjson

from providers import errors
from providers.base import Clocks, Tap
from providers.clients.failures import from_httpx, refusal, retry_after_seconds, vendor_error, without_secret
from providers.clients.openai_reducer import Reducer
from providers.clients.tool_shapes import message_json, tool_json
from providers.clients.watch import TotalTimeOut, Watch
from providers.credentials import Secret
from providers.http import POUR, READ, RELEASE, TRUSTED, forget_exchange
from providers.sse import loads
from providers.types import ChatRequest, Delta, StreamItem

_ERROR_BODY_MAX_BYTES = 64 * 1024
_ERROR_BODY_SECONDS = 5.0
_INFLATED_MAX_BYTES = 64 * 1024  # per step, so that a bomb meets the line limit before memory does
KEY = re.compile(r"[\x21-\x7e]+")
CONTINUES = "continues"
_OURS = frozenset({"model", "messages", "stream", CONTINUES})


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
        servers that refuse it. `{"continues": {"message": {…}, "params": {…}}}` is for us: what the vendor wants
        in the last message, and in the body, when it is to go on with a text of the assistant.
        """
        self._url = self._url_of(base_url, model)
        self._model = model
        self._api_key = api_key
        self._params = dict(params or {})
        self._clocks = clocks or Clocks()
        self._is_trusted_address = is_trusted_address
        self._client = client

    async def stream(self, request: ChatRequest, *, tap: Tap | None = None) -> AsyncGenerator[StreamItem, None]:
        """Yield the reply as it comes, then Finished. See ChatProvider.stream."""
        reducer = self._new_reducer(request)
        watch = Watch(self._clocks)
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
            request_id = self._request_id_of(response)
            chunks = aiter(response.stream)  # type: ignore[arg-type]  # raw bytes, before any decoding
            if response.status_code != 200:
                raise await self._refusal(response, chunks, watch)
            inflate = self._check_head(response)
            del sent, request
            forget_exchange(response)
            read = response.extensions.get(READ) or _reader(chunks)
            pour = response.extensions.get(POUR) if tap is not None and inflate is None else None
            plain_text, payload = reducer.plain_text, watch.payload
            was_finishing = False

            def note(before: int) -> None:
                nonlocal was_finishing
                if reducer.payloads != before:
                    watch.payload()
                    if reducer.finish_reason is not None and not was_finishing:
                        was_finishing = True
                        watch.finishing()

            def sink(chunk: bytes) -> bool:
                """Take in one read without waking this task, and say whether the next may come the same way."""
                nonlocal broken
                assert tap is not None
                if (text := plain_text(chunk)) is not None:
                    payload()
                    return tap(text, "")
                before = reducer.payloads
                try:
                    reducer.feed(chunk)
                except errors.Broken as error:
                    broken = error
                note(before)
                delta = reducer.take()
                is_wanted = delta is None or tap(delta.text, delta.reasoning)
                return is_wanted and broken is None and not reducer.is_over

            while not reducer.is_over:
                if pour is not None:
                    pour(sink)
                watch.begin()
                try:
                    chunk = await read()
                except httpx.TransportError as error:
                    lost = error
                    break
                if chunk is None:
                    delta: Delta | None = Delta("")  # what came went through the tap: let the consumer look
                elif not chunk:
                    break
                else:
                    before = reducer.payloads
                    try:
                        if inflate is None:
                            reducer.feed(chunk)
                        else:
                            for piece in inflate(chunk):
                                reducer.feed(piece)
                                if reducer.is_over:
                                    break
                                await asyncio.sleep(0)  # what inflates a thousandfold must not hold up the others
                    except errors.Broken as error:
                        broken = error
                    note(before)
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
                named = self._not_ours(reducer.request_id)
                raise errors.TimedOut(phase, provider_request_id=named) from None
        except TotalTimeOut:
            named = self._not_ours(reducer.request_id)
            raise errors.TimedOut("total", provider_request_id=named) from None
        finally:
            watch.stop()
            if response is not None:
                if reducer.done and (release := response.extensions.get(RELEASE)) is not None:
                    release()
                await response.aclose()

        try:
            reducer.finish()
        except errors.Broken as error:
            broken = error
        if (delta := reducer.take_last()) is not None:
            yield delta
        if broken is not None:
            raise broken
        if reducer.error is not None:
            raise self._named(reducer.status, reducer.error, request_id=request_id or reducer.request_id)
        if not reducer.is_complete:
            named = self._not_ours(request_id or reducer.request_id)
            raise _incomplete(reducer, lost, request_id=named)
        reducer.request_id = self._not_ours(request_id or reducer.request_id)
        reducer.finish_reason = self._not_ours(reducer.finish_reason)
        yield reducer.finished()

    def _request_id_of(self, response: httpx.Response) -> str | None:
        """Return the vendor's own name for this call."""
        found = response.headers.get("x-request-id") or response.headers.get("request-id")
        return self._not_ours(found)

    def _not_ours(self, word: str | None) -> str | None:
        """Return a word of the vendor's, None when it quotes our secret: such words are stored and logged."""
        return without_secret(word, self._api_key)

    # What a vendor with another shape and the same manner says otherwise (dashscope_app.py).

    def _url_of(self, base_url: str, model: str) -> str:
        """Return the URL to post to."""
        return chat_url(base_url)

    def _new_reducer(self, request: ChatRequest) -> Reducer:
        """Return what reads the answer to this question."""
        return Reducer(line_max_bytes=self._clocks.line_max_bytes)

    def _error_in(self, body: bytes) -> dict[str, Any] | None:
        """Return {message, type, code, request_id?} of the body of an HTTP error."""
        try:
            return vendor_error(loads(body))
        except ValueError:
            return None

    def _named(
        self,
        status: int | None,
        error: Mapping[str, Any] | None,
        *,
        request_id: str | None,
        retry_after: float | None = None,
    ) -> errors.ProviderError:
        """Return our error for the vendor's; status is None when it came in the stream and named none."""
        return refusal(status, error, retry_after_seconds=retry_after, request_id=request_id, secret=self._api_key)

    def _request(self, client: httpx.AsyncClient, request: ChatRequest) -> httpx.Request:
        """Return the HTTP request for this question."""
        body: dict[str, Any] = {
            "model": request.model or self._model,
            "messages": [message_json(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.user_ref:
            body["user"] = request.user_ref
        for params in (self._params, request.params):
            body.update((name, value) for name, value in params.items() if name not in _OURS)
        if request.is_begun and isinstance(more := self._params.get(CONTINUES), dict):
            body["messages"][-1] |= more.get("message", {})
            body |= more.get("params", {})
        if request.tools:
            body["tools"] = [tool_json(tool) for tool in request.tools]
            if request.tool_choice:
                body["tool_choice"] = request.tool_choice
        if body["stream_options"] is None:
            del body["stream_options"]
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        return self._post(client, self._url, body, headers)

    def _post(
        self, client: httpx.AsyncClient, url: str, body: Mapping[str, Any], headers: dict[str, str]
    ) -> httpx.Request:
        """Return the HTTP request with key, connect clock and the address's trust. Raises Misconfigured."""
        headers["Accept-Encoding"] = "identity"
        if self._api_key:
            key = self._api_key.reveal()
            if not KEY.fullmatch(key):
                raise errors.Misconfigured(code="bad_api_key")
            headers["Authorization"] = f"Bearer {key}"
        try:
            return client.build_request(
                "POST",
                url,
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
        self, response: httpx.Response, chunks: AsyncIterator[bytes], watch: Watch
    ) -> errors.ProviderError:
        """Return the error that this status and the first 64 KiB of its body mean."""
        status = response.status_code
        request_id = self._request_id_of(response)
        if 300 <= status < 400:
            return errors.MalformedReply(
                code="redirect_refused", retryable=False, http_status=status, provider_request_id=request_id
            )
        if status < 300:
            return errors.MalformedReply(http_status=status, provider_request_id=request_id)
        body = bytearray()
        watch.resume()
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
        return self._named(
            status,
            self._error_in(bytes(body[:_ERROR_BODY_MAX_BYTES])),
            request_id=request_id,
            retry_after=retry_after_seconds(response.headers.get("retry-after")),
        )


def chat_url(base_url: str) -> str:
    """Return the URL to post to, for a base with or without slash, version or the full path.

    A bare host gets `/v1`; a path is taken as the vendor wrote it (`…/compatible-mode/v1`, `…/api/paas/v4`).
    Raises: Misconfigured, if it is not an http(s) URL, or carries credentials, a query or a fragment.
    """
    parts = split_base_url(base_url)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def split_base_url(base_url: str) -> SplitResult:
    """Return the parts of a base URL. Raises Misconfigured when it is none."""
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
    return parts


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
