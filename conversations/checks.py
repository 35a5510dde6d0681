"""System checks of the settings that this room reads, and of rows that need one."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connection

from conversations.models import VoiceScene
from conversations.voice.scenes import callback_url, uses_callback


@register(Tags.urls)
def check_callback_base_url(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Return what is wrong with VOICE_CALLBACK_BASE_URL (conversations.E001, conversations.W001)."""
    url = settings.VOICE_CALLBACK_BASE_URL
    if not url:
        return []
    try:
        parts = urlsplit(url)
        is_good = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        )
    except ValueError:
        is_good = False
    if not is_good:
        return [
            Error(
                "VOICE_CALLBACK_BASE_URL is not the base URL of this server.",
                hint="Write https://host[:port][/path] as the voice platform reaches it; the rest is added.",
                id="conversations.E001",
            )
        ]
    if parts.scheme == "http":
        return [
            Warning(
                "VOICE_CALLBACK_BASE_URL is http: keys and what people say travel unencrypted.",
                hint='Use https. Scenes need {"Http":true} in LLMConfig.Feature otherwise.',
                id="conversations.W001",
            )
        ]
    return []


@register(Tags.database)
def check_scenes_have_a_callback(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: object
) -> list[CheckMessage]:
    """Return a warning when there are scenes and nobody said where this server is (conversations.W002).

    Asked only when a command names databases; a database that has not been migrated yet has no scenes.
    """
    if "default" not in (databases or ()) or settings.VOICE_CALLBACK_BASE_URL:
        return []
    if VoiceScene._meta.db_table not in connection.introspection.table_names():
        return []
    rows = VoiceScene.across_sites.filter(is_active=True, callback_base_url="").select_related("site")
    lost = [scene for scene in rows[:200] if uses_callback(scene) and not callback_url(scene, "room")]
    if not lost:
        return []
    names = ", ".join(f"{scene.site.slug}/{scene.key}" for scene in lost[:5])
    return [
        Warning(
            f"Voice scenes have no callback URL: {names}.",
            hint="Set VOICE_CALLBACK_BASE_URL, or the scenes' own public base URL.",
            id="conversations.W002",
        )
    ]
