"""The ASGI application: introduces the streaming calls, Django and the process's life to each other."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")

from django.core.asgi import get_asgi_application

django = get_asgi_application()
# WhiteNoise answers static files, a few KiB each, with a sync iterator; Django reads it whole in a thread.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")

from channels.routing import ProtocolTypeRouter  # noqa: E402  (needs the apps to be loaded)

from conversations.api.edge import Edge, Message, Receive, Scope, Send  # noqa: E402  # after the setup
from conversations.api.health import register_readiness  # noqa: E402  # after the setup
from conversations.api.routing import http_router  # noqa: E402  # after the setup
from conversations.generation.engine import Engine, engine, engine_trouble, register_chore  # noqa: E402  # after the setup
from conversations.voice.rooms import sweep_rooms_for_ever  # noqa: E402  # after the setup


class Lifespan:
    """Starts the engine with the server, drains it at the first SIGTERM, and closes it at the end.

    Servers without the lifespan protocol (daphne) start the engine with the first reply; the leases do the
    rest when they end.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the server's two messages."""
        current: Engine | None = None
        while True:
            message: Message = await receive()
            if message["type"] == "lifespan.startup":
                current = engine()
                await current.started()
                _on_sigterm(current)
                register_readiness("replies", partial(_drain_state, current))
                # What is loaded now stays; collecting it again and again costs the tail (DESIGN 8).
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 20, 100)
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if current is not None:
                    await current.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _drain_state(current: Engine) -> str | None:
    return "draining" if current.is_draining else None


def _on_sigterm(current: Engine) -> None:
    """Begin to drain when the server is told to end; the server's own handler runs as well.

    Lifespan's shutdown comes too late for that: only when the last stream is over.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        earlier = signal.getsignal(number)
        try:
            signal.signal(number, _drain_then(loop, current, earlier))
        except ValueError:
            return  # Not the main thread (an embedded test server): nobody sends us signals there.


def _drain_then(loop: asyncio.AbstractEventLoop, current: Engine, earlier: Any) -> Callable[[int, Any], None]:
    def handle(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(current.drain)
        if callable(earlier):
            earlier(number, frame)

    return handle


register_readiness("engine", engine_trouble)
register_chore(sweep_rooms_for_ever)
application = Edge(ProtocolTypeRouter({"http": http_router(django), "lifespan": Lifespan()}))
