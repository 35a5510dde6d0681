"""System checks of the settings: each way a value can be wrong has an id and a hint."""

from __future__ import annotations

from collections.abc import Sequence

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connection

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


OLDEST_POSTGRES = 15


@register(Tags.database)
def check_server(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: object
) -> list[CheckMessage]:
    """Return what is wrong with the server or our role in it (chatsite.E002, chatsite.W002).

    Asked only when a command names databases, as `serve` and `migrate` do: plain `check` needs no server.
    """
    if "default" not in (databases or ()):
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
        (is_mighty,) = cursor.fetchone()
        cursor.execute("SHOW server_version_num")
        version = int(cursor.fetchone()[0]) // 10_000
    found: list[CheckMessage] = []
    if version < OLDEST_POSTGRES:
        found.append(
            Error(
                f"PostgreSQL {version} is too old.",
                hint=f"Use {OLDEST_POSTGRES} or newer, or unset DATABASE_URL for the embedded server.",
                id="chatsite.E002",
            )
        )
    if is_mighty:
        found.append(
            Warning(
                "The database role is a superuser or may bypass row-level security.",
                hint="Give DATABASE_URL a plain role: for this one the last lock between tenants is open.",
                id="chatsite.W002",
            )
        )
    return found


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
