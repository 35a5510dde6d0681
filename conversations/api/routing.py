"""Which calls are answered ahead of Django: those that wait for a model."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import re_path

from conversations.api import stream
from conversations.api.stream import Endpoint

CHAT = r"^api/xcx/chat/"


def http_router(django: Any) -> Any:
    """Return the application for HTTP: the streaming calls, and Django for everything else."""
    return URLRouter(
        [
            re_path(CHAT + r"stream/?$", Endpoint(POST=stream.post_stream, GET=stream.get_stream)),
            re_path(CHAT + r"stream/selftest/?$", Endpoint(GET=stream.get_selftest)),
            re_path(CHAT + r"messages/(?P<message_id>\d+)/stream/?$", Endpoint(GET=stream.get_reply_stream)),
            re_path(CHAT + r"messages/(?P<message_id>\d+)/stop/?$", Endpoint(POST=stream.post_stop)),
            re_path(CHAT + r"messages/(?P<message_id>\d+)/regenerate/?$", Endpoint(POST=stream.post_regenerate)),
            re_path(CHAT + r"(?P<chat_id>\d+)/messages/?$", Endpoint(POST=stream.post_message, otherwise=django)),
            re_path(r"", django),
        ]
    )
