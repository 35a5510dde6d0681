"""The client of a configured API: the OpenAI client's clocks, back-pressure and failures, with mapped words."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx

from providers import errors
from providers.base import Clocks, Tap
from providers.clients.declarative.auth import Token, TokenCache, cache_key, read_token
from providers.clients.declarative.conditions import STATUS, any_holds
from providers.clients.declarative.failures import named
from providers.clients.declarative.fill import Values
from providers.clients.declarative.reducer import MappedReducer, error_in
from providers.clients.declarative.request import Prepared, prepare
from providers.clients.declarative.schema import BUILT_IN, RESERVED, Config, Mode, Section, parse_config
from providers.clients.failures import from_httpx, vendor_error
from providers.clients.openai_chat import KEY, OpenAIChatProvider
from providers.clients.tool_shapes import message_json, tool_json
from providers.clients.watch import Watch
from providers.credentials import Secret
from providers.http import TRUSTED
from providers.sse import loads
from providers.types import ChatRequest, Delta, StreamItem

_AUTH_BODY_MAX_BYTES = 64 * 1024
_tokens = TokenCache()


def provider_from_config(
    config: Config | Mapping[str, Any],
    *,
    values: Mapping[str, Any] | None = None,
    api_key: Secret | None = None,
    model: str = "",
    base_url: str = "",
    params: Mapping[str, Any] | None = None,
    mapi: str = "chat",
    mode: Mode | None = None,
    clocks: Clocks | None = None,
    is_trusted_address: bool = False,
    client: Callable[[], httpx.AsyncClient],
    tokens: TokenCache | None = None,
    clock: Callable[[], float] = time.time,
) -> DeclarativeProvider:
    """Return a ChatProvider for one API section of a configuration.

    values are the endpoint's own for what the configuration declares in `values`; base_url is one of them, if it
    is declared. api_key is the key, or a JSON object with one entry for each of the configuration's secrets.
    params go over the configuration's defaults, and a request's over both. mode overrides the section's.
    Raises: ConfigRefused for a bad configuration; Misconfigured for a bad key, an unknown section or value.
    """
    if not isinstance(config, Config):
        config = parse_config(config)
    section = config.sections.get(mapi)
    if section is None:
        raise errors.Misconfigured(code="unknown_section")
    if mode is not None:
        section = replace(section, mode=mode)
    own = {name: value for name, value in config.values.items() if value is not None}
    for name, value in (values or {}).items():
        if name not in config.values:
            raise errors.Misconfigured(code="unknown_value", vendor_code=name)
        if value is not None:
            own[name] = value
    if base_url and "base_url" in config.values:
        own["base_url"] = base_url
    return DeclarativeProvider(
        config,
        section,
        values=own,
        secrets=_secrets(config, api_key),
        model=model,
        params={**config.params, **(params or {})},
        clocks=clocks or Clocks(),
        is_trusted_address=is_trusted_address,
        client=client,
        tokens=tokens or _tokens,
        clock=clock,
    )


class DeclarativeProvider:
    """A ChatProvider that does what a configuration says. Made by provider_from_config."""

    def __init__(
        self,
        config: Config,
        section: Section,
        *,
        values: Mapping[str, Any],
        secrets: Mapping[str, Secret],
        model: str,
        params: Mapping[str, Any],
        clocks: Clocks,
        is_trusted_address: bool,
        client: Callable[[], httpx.AsyncClient],
        tokens: TokenCache,
        clock: Callable[[], float],
    ) -> None:
        """Take the parts that provider_from_config checked."""
        self.config = config
        self.section = section
        self.mode = section.mode
        self.clocks = clocks
        self.is_trusted_address = is_trusted_address
        self.client = client
        self._values = values
        self._secrets = secrets
        self._model = model
        self._params = params
        self._tokens = tokens
        self._clock = clock
        given = config.auth.set_data if config.auth is not None and section.need_auth else ()
        self._token_names = frozenset(name for name, _path in given)
        self._secret_names = config.secrets | self._token_names
        self._key = cache_key(
            config.fingerprint, {name: value.reveal() for name, value in secrets.items()}, values
        )

    async def stream(self, request: ChatRequest, *, tap: Tap | None = None) -> AsyncGenerator[StreamItem, None]:
        """Yield the reply as it comes, then Finished. See ChatProvider.stream.

        A token that the vendor refuses before anything was said is fetched anew, once.
        """
        has_spoken = False

        def noting(text: str, reasoning: str) -> bool:
            nonlocal has_spoken
            has_spoken = True
            assert tap is not None
            return tap(text, reasoning)

        token: Token | None = None
        for may_refresh in (self.section.need_auth, False):
            if self.section.need_auth:
                token = await self.token(stale=token)
            call = _Exchange(self, token)
            try:
                async with aclosing(call.stream(request, tap=noting if tap else None)) as items:
                    async for item in items:
                        has_spoken = has_spoken or (isinstance(item, Delta) and bool(item.text or item.reasoning))
                        yield item
                return
            except errors.ProviderError:
                if not may_refresh or has_spoken or not call.wants_refresh:
                    raise

    def prepare(self, request: ChatRequest, token: Token | None = None, *, is_masked: bool = False) -> Prepared:
        """Return the HTTP request for this question; masked, it shows no secret and may not be sent."""
        names = self.names(request)
        for name in self._token_names:
            names[name] = token.values[name] if token else Secret(f"<{name}>") if is_masked else Secret("")
        extra: dict[str, Any] = {}
        if self.section.pass_params:
            used = self.section.request.names()
            passed = [*self._allowed(request), *self._tools(request)]
            extra = {name: names[name] for name in passed if name not in used}
        template = self.section.request
        if request.is_begun:
            extra |= self.section.continuing.params
            if self.section.continuing.url is not None:
                template = replace(template, url=self.section.continuing.url)
        return prepare(
            template,
            Values(names, is_masked=is_masked),
            secrets=self._secret_names,
            accept="text/event-stream" if self.mode == "stream" else "application/json",
            now=self._clock(),
            extra=extra,
        )

    def prepare_auth(self, *, is_masked: bool = False) -> Prepared:
        """Return the HTTP request of the auth step."""
        assert self.config.auth is not None
        return prepare(
            self.config.auth.request,
            Values({**self._values, **self._secrets}, is_masked=is_masked),
            secrets=self.config.secrets,
            accept="application/json",
            now=self._clock(),
        )

    def unused_params(self, request: ChatRequest) -> list[str]:
        """Return the parameters that this section does not send."""
        used = self.section.request.names()
        given = {**self._params, **request.params}
        sent = self._allowed(request) if self.section.pass_params else {}
        return sorted(name for name, value in given.items() if value is not None and name not in {*used, *sent})

    def names(self, request: ChatRequest) -> dict[str, Any]:
        """Return what templates may name: parameters first, so that nothing of ours can be replaced by one."""
        messages = [message_json(message) for message in request.messages]
        if request.is_begun and messages:
            messages[-1] = {**messages[-1], **self.section.continuing.message}
        names: dict[str, Any] = {**self._allowed(request), **self._values, **self._secrets}
        names["messages"] = messages
        names["prompt"] = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        if system := "\n\n".join(m["content"] for m in messages if m["role"] == "system"):
            names["system"] = system
        names["stream"] = self.mode == "stream"
        if request.model or self._model:
            names["model"] = request.model or self._model
        if request.user_ref:
            names["user"] = request.user_ref
        return {**names, **self._tools(request)}

    def _tools(self, request: ChatRequest) -> dict[str, Any]:
        """Return what templates may name of the tools; nothing when the section cannot say it."""
        if not request.tools or not self.section.says_tools:
            return {}
        tools: dict[str, Any] = {"tools": [tool_json(tool) for tool in request.tools]}
        return {**tools, "tool_choice": request.tool_choice} if request.tool_choice else tools

    def _allowed(self, request: ChatRequest) -> dict[str, Any]:
        """Return the parameters that a request may carry. A default of null stands for no default."""
        ours = {*BUILT_IN, *RESERVED, *self.config.values, *self._secret_names}
        declared = {name: value for name, value in self._params.items() if value is not None}
        return {name: value for name, value in {**declared, **request.params}.items() if name not in ours}

    async def token(self, *, stale: Token | None = None) -> Token:
        """Return a token of the auth step. Raises the ProviderError that kept us from one."""
        return await self._tokens.get(self._key, self._fetch, stale=stale)

    async def _fetch(self) -> Token:
        step = self.config.auth
        assert step is not None
        client = self.client()
        sent = self.build(client, self.prepare_auth())
        try:
            async with asyncio.timeout(self.clocks.first_payload_seconds):
                response = await client.send(sent, stream=True)
                try:
                    body = bytearray()
                    async for chunk in response.stream:  # type: ignore[union-attr]  # raw bytes
                        body += chunk
                        if len(body) > _AUTH_BODY_MAX_BYTES:
                            raise errors.MalformedReply(code="auth_answer_too_long", retryable=False)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise errors.TimedOut("first") from None
        except httpx.HTTPError as error:
            raise from_httpx(error) from None  # its words may hold the URL, and that the secret
        if 300 <= response.status_code < 400:
            raise errors.MalformedReply(code="redirect_refused", retryable=False, http_status=response.status_code)
        try:
            value = loads(bytes(body))
        except ValueError:
            value = None
        now = asyncio.get_running_loop().time()
        return read_token(step, response.status_code, value, now=now, cut=self.cut)

    def build(self, client: httpx.AsyncClient, prepared: Prepared) -> httpx.Request:
        """Return the client's request."""
        try:
            return client.build_request(
                prepared.method,
                prepared.url,
                content=prepared.body,
                headers=dict(prepared.headers),
                extensions={
                    "timeout": {
                        "connect": self.clocks.connect_seconds,
                        "read": None,
                        "write": None,
                        "pool": None,
                    },
                    TRUSTED: self.is_trusted_address,
                },
            )
        except httpx.InvalidURL:
            raise errors.Misconfigured(code="bad_endpoint") from None

    def cut(self, error: Any, token: Token | None = None) -> Any:
        """Return a vendor's {message, …} with every secret of ours cut out of its words."""
        if not isinstance(error, Mapping):
            return error
        known = Values({**self._secrets, **(token.values if token else {})}).secrets()
        said = dict(error)
        for name, words in said.items():
            if isinstance(words, str):
                for secret in known:
                    words = words.replace(secret, "•••")
                said[name] = words
        return said


class _Exchange(OpenAIChatProvider):
    """One request and its answer. wants_refresh: the answer says that the token is no longer good."""

    def __init__(self, provider: DeclarativeProvider, token: Token | None) -> None:
        self._provider = provider
        self._token = token
        self._api_key = None
        self._clocks = provider.clocks
        self._client = provider.client
        self._reducer: MappedReducer | None = None
        self._refused: Any = None
        self._status: int | None = None
        self.wants_refresh = False

    def _new_reducer(self, request: ChatRequest) -> MappedReducer:
        self._reducer = MappedReducer(self._provider.section, line_max_bytes=self._clocks.line_max_bytes)
        return self._reducer

    def _request(self, client: httpx.AsyncClient, request: ChatRequest) -> httpx.Request:
        return self._provider.build(client, self._provider.prepare(request, self._token))

    def _not_ours(self, word: str | None) -> str | None:
        return word if self._provider.cut({"word": word}, self._token)["word"] == word else None

    async def _refusal(
        self, response: httpx.Response, chunks: AsyncIterator[bytes], watch: Watch
    ) -> errors.ProviderError:
        self._status = response.status_code
        return await super()._refusal(response, chunks, watch)

    def _error_in(self, body: bytes) -> dict[str, Any] | None:
        try:
            self._refused = loads(body)
        except ValueError:
            return None
        found = error_in(self._provider.section.errors, self._refused, {STATUS: self._status})
        return found or vendor_error(self._refused)

    def _named(
        self,
        status: int | None,
        error: Mapping[str, Any] | None,
        *,
        request_id: str | None,
        retry_after: float | None = None,
    ) -> errors.ProviderError:
        said = self._provider.cut(error, self._token)
        found = named(status, said, request_id=self._not_ours(request_id), retry_after=retry_after)
        step = self._provider.config.auth
        if self._token is not None and step is not None:
            event = self._refused if status is not None or self._reducer is None else self._reducer.error_event
            facts = {STATUS: status if status is not None else 200}
            self.wants_refresh = (
                any_holds(step.refresh_on, event, facts)
                if step.refresh_on
                else isinstance(found, errors.Unauthorized)
            )
        return found


def _secrets(config: Config, api_key: Secret | None) -> dict[str, Secret]:
    """Return the secrets by name. Raises Misconfigured for a key that no header could hold."""
    if not api_key:
        return {}
    text = api_key.reveal()
    record: Mapping[str, Any] = {"api_key": text}
    if text.lstrip().startswith("{"):
        try:
            record = json.loads(text)
        except ValueError:
            raise errors.Misconfigured(code="bad_api_key") from None
    found: dict[str, Secret] = {}
    for name in config.secrets:
        value = record.get(name)
        if value in (None, ""):
            continue
        if not isinstance(value, str) or not KEY.fullmatch(value):
            raise errors.Misconfigured(code="bad_api_key")
        found[name] = Secret(value)
    return found
