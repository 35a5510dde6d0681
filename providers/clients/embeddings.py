"""Embeddings of the OpenAI kind: texts in, vectors out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import orjson

from providers import errors
from providers.clients.failures import from_httpx, refusal
from providers.clients.openai_chat import chat_url
from providers.credentials import Secret
from providers.http import TRUSTED
from providers.types import storable

ANSWER_MAX_BYTES = 64 * 1024 * 1024


class EmbeddingsClient:
    """A client for one model behind `/embeddings`. Stateless between calls."""

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: Secret,
        client: Callable[[], httpx.AsyncClient],
        is_trusted_address: bool = False,
        dimensions: int = 0,
    ) -> None:
        self._url = chat_url(base_url).removesuffix("/chat/completions") + "/embeddings"
        self._model = model
        self._api_key = api_key
        self._client = client
        self._is_trusted = is_trusted_address
        self._dimensions = dimensions

    async def embed(self, texts: Sequence[str], *, seconds: float = 30.0) -> list[list[float]]:
        """Return a vector for each text, in their order; within the seconds.

        Raises: ProviderError.
        """
        body: dict[str, Any] = {"model": self._model, "input": [storable(text) for text in texts]}
        if self._dimensions:
            body["dimensions"] = self._dimensions
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key.reveal()}"
        request = httpx.Request("POST", self._url, headers=headers, content=orjson.dumps(body))
        request.extensions[TRUSTED] = self._is_trusted
        try:
            async with asyncio.timeout(seconds):
                status, said = await self._exchange(request)
        except TimeoutError as error:
            raise errors.TimedOut("total") from error
        except httpx.HTTPError as error:
            raise from_httpx(error) from error
        value = _json(said)
        if status != 200:
            said_wrong = value.get("error") if isinstance(value, dict) else None
            raise refusal(status, said_wrong if isinstance(said_wrong, dict) else None, secret=self._api_key)
        return _vectors(value, len(texts))

    async def _exchange(self, request: httpx.Request) -> tuple[int, bytes]:
        response = await self._client().send(request, stream=True)
        said = bytearray()
        try:
            async for part in response.aiter_raw():
                said += part
                if len(said) > ANSWER_MAX_BYTES:
                    raise errors.MalformedReply()
        finally:
            await response.aclose()
        return response.status_code, bytes(said)


def _json(said: bytes) -> Any:
    try:
        return orjson.loads(said)
    except orjson.JSONDecodeError:
        return None


def _vectors(value: Any, count: int) -> list[list[float]]:
    """Return the vectors of an answer in the order of the texts. Raises: MalformedReply."""
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise errors.MalformedReply()
    vectors: dict[int, list[float]] = {}
    for place, row in enumerate(rows):
        vector = row.get("embedding") if isinstance(row, dict) else None
        index = row.get("index", place) if isinstance(row, dict) else None
        if not isinstance(index, int) or not isinstance(vector, list) or not vector:
            raise errors.MalformedReply()
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in vector):
            raise errors.MalformedReply()
        vectors[index] = [float(number) for number in vector]
    if sorted(vectors) != list(range(count)) or len({len(vector) for vector in vectors.values()}) != 1:
        raise errors.MalformedReply()
    return [vectors[place] for place in range(count)]
