"""The embedding endpoint of the environment: the one door to vectors for rooms above this one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from django.conf import settings

from providers.clients.embeddings import EmbeddingsClient
from providers.credentials import Secret
from providers.http import close_shared_clients, shared_client
from providers.registry import policy_from_settings


def is_configured() -> bool:
    """Return whether there is an endpoint to ask."""
    return bool(settings.EMBEDDING_BASE_URL and settings.EMBEDDING_MODEL)


def model_name() -> str:
    """Return the model whose vectors are comparable with each other."""
    size = f"@{settings.EMBEDDING_DIMENSIONS}" if settings.EMBEDDING_DIMENSIONS else ""
    return f"{settings.EMBEDDING_MODEL}{size}"[:200]


async def embed(texts: Sequence[str], *, seconds: float) -> list[list[float]]:
    """Return a vector for each text. Raises: ProviderError."""
    client = EmbeddingsClient(
        base_url=settings.EMBEDDING_BASE_URL,
        model=settings.EMBEDDING_MODEL,
        api_key=Secret(settings.EMBEDDING_API_KEY),
        dimensions=settings.EMBEDDING_DIMENSIONS,
        is_trusted_address=True,  # the operator wrote it into the environment
        client=lambda: shared_client(policy_from_settings()),
    )
    return await client.embed(texts, seconds=seconds)


def embed_now(texts: Sequence[str], *, seconds: float) -> list[list[float]]:
    """Return the same to sync code, which has no event loop. Raises: ProviderError."""

    async def run() -> list[list[float]]:
        try:
            return await embed(texts, seconds=seconds)
        finally:
            await close_shared_clients()

    return asyncio.run(run())
