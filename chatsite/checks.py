"""System checks of the settings: each way a value can be wrong has an id and a hint."""

from __future__ import annotations

from collections.abc import Sequence

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from chatsite import env, postgres


@register(Tags.security)
def check_environment(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Return one error for each variable whose value could not be used (chatsite.E001)."""
    return [
        Error(
            problem.message,
            hint=f"Correct or unset {problem.name}; see docs/settings.md.",
            id="chatsite.E001",
        )
        for problem in env.problems
    ]


@register(Tags.database)
def check_pools(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Return a warning when all workers together could want more connections than there are (chatsite.W001)."""
    each = settings.DB_POOL_SIZE + settings.DB_ENGINE_POOL_SIZE + 1
    if not settings.EMBEDDED_POSTGRES or each * settings.WORKERS <= postgres.MAX_CONNECTIONS - 10:
        return []
    return [
        Warning(
            f"{settings.WORKERS} workers may open {each} connections each; the embedded server allows "
            f"{postgres.MAX_CONNECTIONS}.",
            hint="Lower DB_POOL_SIZE, DB_ENGINE_POOL_SIZE or WORKERS.",
            id="chatsite.W001",
        )
    ]
