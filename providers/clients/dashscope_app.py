"""The client for applications of DashScope (Bailian): an agent or a workflow that keeps the conversation itself.

With a session of the vendor's only the newest question is sent; without one the last turns are, and the vendor
begins a session. Never both: the application would read everything twice. What the answer's frames mean is in
dashscope_reducer.py; clocks, taps and failures are those of openai_chat.py. Source: WIRE 3.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlunsplit

import httpx

from providers import errors
from providers.base import Clocks, Tap
from providers.clients.dashscope_reducer import AppReducer
from providers.clients.failures import vendor_error
from providers.clients.openai_chat import KEY, OpenAIChatProvider, split_base_url
from providers.clients.openai_reducer import Reducer
from providers.credentials import Secret
from providers.sse import loads
from providers.types import ChatRequest, Delta, StreamItem, storable

BASE_URL = "https://dashscope.aliyuncs.com/api/v1"
SET_BY_US = frozenset({"model", "messages", "prompt", "session_id", "stream"})
"""What an endpoint's parameters cannot say."""
_OURS = SET_BY_US | {"workspace", "whole", "session_lost", "biz_params"}
_INPUT = ("memory_id", "doc_reference_type", "doc_tag_codes", "image_list", "file_list")
_SESSION_LOST = ("session", "会话")
_WORTH_A_RETRY = (429, 503, 504)
_NOT_A_LOST_SESSION = (errors.Unauthorized, errors.RateLimited, errors.QuotaExceeded, errors.ContentBlocked)


class DashScopeAppProvider(OpenAIChatProvider):
    """A ChatProvider for POST …/apps/{app id}/completion, streamed or whole.

    params go into the body's `parameters`, over `incremental_output: true` (null leaves that out: then every frame
    repeats the text so far, which is understood too); these go elsewhere:

      memory_id, doc_reference_type, doc_tag_codes, image_list, file_list   into `input`
      biz_params      into `input`, under those of the request
      workspace       the header X-DashScope-WorkSpace
      whole           true asks for one JSON answer instead of a stream
      session_lost    words in the code or message of a refusal that mean that the session is gone
    """

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
        """Take the endpoint's facts; model is the application's id, base_url may be ""."""
        super().__init__(
            base_url=base_url,
            model=model,
            api_key=api_key,
            params=params,
            clocks=clocks,
            is_trusted_address=is_trusted_address,
            client=client,
        )
        words = self._params.get("session_lost")
        words = words if isinstance(words, list) else _SESSION_LOST
        self._session_lost = tuple(word.lower() for word in words if isinstance(word, str) and word)

    async def stream(self, request: ChatRequest, *, tap: Tap | None = None) -> AsyncGenerator[StreamItem, None]:
        """Yield the reply as it comes, then Finished with the session to go on with. See ChatProvider.stream.

        A session that the vendor has lost is replaced by a new one, seeded with the last turns, once and before
        anything was said.
        """
        if request.messages and request.messages[-1].role != "user":
            request = replace(request, vendor_session=None)  # a text to go on with, which no session has seen
        if request.vendor_session:
            has_spoken = False

            def noting(text: str, reasoning: str) -> bool:
                nonlocal has_spoken
                has_spoken = True
                assert tap is not None
                return tap(text, reasoning)

            try:
                async with aclosing(super().stream(request, tap=noting if tap else None)) as items:
                    async for item in items:
                        has_spoken = has_spoken or (isinstance(item, Delta) and bool(item.text or item.reasoning))
                        yield item
                return
            except errors.ProviderError as error:
                if has_spoken or not self._says_session_lost(error):
                    raise
            request = replace(request, vendor_session=None)
        async with aclosing(super().stream(request, tap=tap)) as items:
            async for item in items:
                yield item

    def _says_session_lost(self, error: errors.ProviderError) -> bool:
        """Return whether this refusal of a request with a session means that the vendor has none by that name."""
        if isinstance(error, _NOT_A_LOST_SESSION) or (error.http_status or 400) >= 500:
            return False
        said = f"{error.vendor_code or ''} {error.vendor_message or ''}".lower()
        return any(word in said for word in self._session_lost)

    def _url_of(self, base_url: str, model: str) -> str:
        return app_url(base_url, model)

    def _new_reducer(self, request: ChatRequest) -> Reducer:
        is_cumulative = self._parameters(request).get("incremental_output") is not True
        return AppReducer(is_cumulative=is_cumulative, line_max_bytes=self._clocks.line_max_bytes)

    def _error_in(self, body: bytes) -> dict[str, Any] | None:
        try:
            value = loads(body)
        except ValueError:
            reducer = AppReducer()  # an error status may come with an event stream
            try:
                reducer.feed(body)
                reducer.finish()
            except errors.Broken:
                return None
            return None if reducer.error is None else {**reducer.error, "request_id": reducer.request_id}
        error = vendor_error(value)
        return None if error is None else {**error, "request_id": value.get("request_id")}

    def _named(
        self,
        status: int | None,
        error: Mapping[str, Any] | None,
        *,
        request_id: str | None,
        retry_after: float | None = None,
    ) -> errors.ProviderError:
        if not request_id and error and isinstance(found := error.get("request_id"), str):
            request_id = found
        named = super()._named(status, error, request_id=request_id, retry_after=retry_after)
        named.retryable &= status in _WORTH_A_RETRY or isinstance(named, errors.RateLimited)
        return named

    def _parameters(self, request: ChatRequest) -> dict[str, Any]:
        """Return the body's `parameters`."""
        parameters: dict[str, Any] = {} if self._is_whole else {"incremental_output": True}
        for params in (self._params, request.params):
            parameters.update((name, value) for name, value in params.items() if name not in (*_OURS, *_INPUT))
        if parameters.get("incremental_output", True) is None:
            del parameters["incremental_output"]
        return parameters

    @property
    def _is_whole(self) -> bool:
        return self._params.get("whole") is True

    def _request(self, client: httpx.AsyncClient, request: ChatRequest) -> httpx.Request:
        asked: dict[str, Any]
        messages = [{"role": m.role, "content": storable(m.content)} for m in request.messages]
        questions = [message["content"] for message in messages if message["role"] == "user"]
        if request.vendor_session:
            asked = {"prompt": questions[-1] if questions else "", "session_id": request.vendor_session}
        elif len(messages) == len(questions) == 1:
            asked = {"prompt": questions[0]}
        else:
            asked = {"messages": messages}
        own = self._params.get("biz_params")
        if biz_params := {**(own if isinstance(own, dict) else {}), **request.biz_params}:
            asked["biz_params"] = biz_params
        asked.update((name, self._params[name]) for name in _INPUT if self._params.get(name))
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if self._is_whole:
            headers["Accept"] = "application/json; charset=utf-8"
        else:
            headers |= {"Accept": "text/event-stream", "X-DashScope-SSE": "enable"}
        if workspace := self._params.get("workspace"):
            if not isinstance(workspace, str) or not KEY.fullmatch(workspace):
                raise errors.Misconfigured(code="bad_params")
            headers["X-DashScope-WorkSpace"] = workspace
        body = {"model": "", "parameters": self._parameters(request), "input": asked}
        return self._post(client, self._url, body, headers)


def app_url(base_url: str, app_id: str) -> str:
    """Return the URL to post to; an empty base is the vendor's own, a bare host gets `/api/v1`.

    Raises: Misconfigured, if the base is no base URL, or there is no application id.
    """
    parts = split_base_url(base_url or BASE_URL)
    if not app_id.strip():
        raise errors.Misconfigured(code="bad_endpoint")
    path = (parts.path.rstrip("/") or "/api/v1") + f"/apps/{quote(app_id.strip(), safe='')}/completion"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))
