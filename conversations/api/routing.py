"""Which calls are answered ahead of Django: those that wait for a model, or for the voice platform."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import URLPattern, re_path

from conversations.api import rooms, stream
from conversations.api.callback import callback
from conversations.api.stream import Endpoint

CHAT = r"^api/xcx/chat/"
# Any text may stand for an id here: what no row can have is refused like an id that no row has.
# OpenAI's clients add the second half to a base URL.
CALLBACK = r"^api/chat_callback(?:/chat/completions)?/?$"
REPLY = CHAT + r"messages/(?P<message_id>[^/]+)/"


def http_router(django: Any) -> Any:
    """Return the application for HTTP: the streaming calls, and Django for everything else."""
    return URLRouter(
        [
            _route(CHAT + r"stream/?$", Endpoint(POST=stream.post_stream, GET=stream.get_stream)),
            _route(CHAT + r"stream/selftest/?$", Endpoint(GET=stream.get_selftest)),
            _route(REPLY + r"stream/?$", Endpoint(GET=stream.get_reply_stream)),
            _route(REPLY + r"stop/?$", Endpoint(POST=stream.post_stop)),
            _route(REPLY + r"regenerate/?$", Endpoint(POST=stream.post_regenerate)),
            _route(CHAT + r"(?P<chat_id>[^/]+)/messages/?$", Endpoint(POST=stream.post_message, otherwise=django)),
            _route(r"^getScenes/?$", Endpoint(POST=rooms.post_get_scenes)),
            _route(r"^proxy/?$", Endpoint(POST=rooms.post_proxy)),
            _route(CALLBACK, callback),
            _route(r"", django),
        ]
    )


def _route(pattern: str, application: Any) -> URLPattern:
    """Return a route to an ASGI application; Django's types know routes to views alone."""
    return re_path(pattern, application)
