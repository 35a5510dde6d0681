"""System checks of the settings that this room reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from providers.clients.openai_chat import chat_url
from providers.credentials import check_keys
from providers.errors import Misconfigured

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):(\d{1,5})")


@register(Tags.security)
def check_environment_endpoint(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Return what is wrong with LLM_BASE_URL, LLM_API_KEY and LLM_MODEL (providers.E001, E002, E003, W001)."""
    base_url, key, model = settings.LLM_BASE_URL, settings.LLM_API_KEY, settings.LLM_MODEL
    found: list[CheckMessage] = []
    if base_url:
        try:
            chat_url(base_url)
        except Misconfigured:
            found.append(
                Error(
                    "LLM_BASE_URL is not the URL of an endpoint.",
                    hint="Write http(s)://host[:port][/path] without user, password, query or fragment; the key "
                    "goes into LLM_API_KEY.",
                    id="providers.E001",
                )
            )
        if not model:
            found.append(
                Error(
                    "LLM_BASE_URL is set and LLM_MODEL is not.",
                    hint="Set LLM_MODEL to the name the provider knows, for example gpt-4o-mini.",
                    id="providers.E002",
                )
            )
        if base_url.lower().startswith("http://") and key and not _is_local(base_url):
            found.append(
                Warning(
                    "LLM_API_KEY will travel unencrypted, because LLM_BASE_URL is http.",
                    hint="Use https.",
                    id="providers.W002",
                )
            )
    elif key or model:
        found.append(
            Warning(
                "LLM_API_KEY or LLM_MODEL is set and LLM_BASE_URL is not: they are not used.",
                hint="Set LLM_BASE_URL too, or unset them.",
                id="providers.W001",
            )
        )
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        found.append(
            Error(
                "LLM_API_KEY holds characters that no key has.",
                hint="Copy the key again: visible ASCII, no spaces, no line ends.",
                id="providers.E003",
            )
        )
    return found


@register(Tags.security)
def check_provider_settings(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Return what is wrong with the PROVIDER_* settings (providers.E004, E005, E006)."""
    found: list[CheckMessage] = []
    for address in settings.PROVIDER_ALLOWED_ADDRESSES:
        match = _ADDRESS.fullmatch(address)
        if match is None or not 0 < int(match[2]) < 65536:
            found.append(
                Error(
                    f"PROVIDER_ALLOWED_ADDRESSES: {address[:100]!r} is not host:port.",
                    hint="Write host:port,host:port with IPv6 in brackets: 127.0.0.1:8000,[::1]:8000.",
                    id="providers.E004",
                )
            )
    for name in ("CONNECT_SECONDS", "FIRST_SECONDS", "IDLE_SECONDS", "TOTAL_SECONDS", "LINE_MAX_BYTES"):
        value = getattr(settings, f"PROVIDER_{name}")
        if not isinstance(value, int | float) or not value > 0:
            found.append(
                Error(
                    f"PROVIDER_{name} must be a number above zero.",
                    hint="Unset it to get the default.",
                    id="providers.E005",
                )
            )
    if settings.PROVIDER_TRANSPORT not in ("fast", "stock"):
        found.append(
            Error("PROVIDER_TRANSPORT must be fast or stock.", hint="Unset it: fast.", id="providers.E006")
        )
    return found


@register(Tags.security)
def check_secret_keys(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Return an error when secrets could not be encrypted (providers.E007)."""
    try:
        check_keys(settings.SECRET_KEYS)
    except Misconfigured:
        return [
            Error(
                "SECRET_KEYS is not a list of keys.",
                hint="Each is 32 bytes in URL-safe base64; make one with `python manage.py rotate_keys --new`.",
                id="providers.E007",
            )
        ]
    return []


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
