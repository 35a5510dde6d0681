"""`manage.py prepare_vectors`: make room for vectors, so that documents are found by meaning, too."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from conversations.context import embeddings
from providers import embedding
from providers.errors import ProviderError


class Command(BaseCommand):
    """Needs a server with pgvector, and a role that may create extensions or finds it created."""

    help = "Create the extension `vector` and the table of vectors, as wide as the embedding model's."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take --dimensions."""
        parser.add_argument("--dimensions", type=int, default=0, help="the model's; asked of it when not given")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask the model, then prepare."""
        try:
            dimensions = options["dimensions"] or asyncio.run(self._ask())
            embeddings.prepare(dimensions)
        except embeddings.NoVectors as error:
            raise CommandError(str(error)) from error
        except ProviderError as error:
            raise CommandError(f"The embedding endpoint did not answer: {error.code}") from error
        self.stdout.write(f"Vectors of {dimensions} numbers can be kept; the workers fill them in.")

    async def _ask(self) -> int:
        if not embedding.is_configured():
            raise CommandError("Set EMBEDDING_BASE_URL and EMBEDDING_MODEL, or give --dimensions.")
        return len((await embedding.embed(["长度"], seconds=30))[0])
