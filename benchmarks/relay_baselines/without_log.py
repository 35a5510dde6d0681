"""What durability costs: the product with a log that forgets, so that nothing waits for a commit.

Only for measuring. Everything else is the product's own: the engine takes its store as an argument.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")

from chatsite.asgi import application as product
from conversations.generation import engine as engines
from conversations.generation.store import Store


class ForgetfulStore(Store):
    """A store that starts and seals replies, and keeps nothing of what is said in between."""

    async def append(self, *, worker: int, sequence: int, payload: str) -> tuple[bool, list[int]]:
        """Say at once that all is well."""
        return True, []

    async def fold(self, *, worker: int, parts: Sequence[tuple[int, int, str, int, str]], purge: int) -> None:
        """Fold nothing."""


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve the product; its engine is made here, before the product asks for one."""
    if scope["type"] == "lifespan":
        loop = asyncio.get_running_loop()
        engines._engines[loop] = engines.Engine(store=ForgetfulStore())
    await product(scope, receive, send)
