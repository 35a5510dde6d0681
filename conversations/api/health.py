"""Whether this process lives, whether it is ready, and what it counts."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Callable

from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from providers import registry

NO_STORE = {"Cache-Control": "no-store"}

PROXY_HEADERS = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Proto", "X-Forwarded-Host", "Via")
READINESS: dict[str, Callable[[], str | None]] = {}
"""Name → a function that returns None when all is well, else one word on what is not."""

_migrated = False


def register_readiness(name: str, check: Callable[[], str | None]) -> None:
    """Make `/readyz` ask `check`, too; a later one of the same name replaces an earlier one."""
    READINESS[name] = check


@csrf_exempt
@require_safe
def livez(request: HttpRequest) -> HttpResponse:
    """Return 200 while the process answers at all; asks no database."""
    return JsonResponse({"status": "ok"}, headers=NO_STORE)


@csrf_exempt
@require_safe
def readyz(request: HttpRequest) -> HttpResponse:
    """Return 200 when requests can be served, else 503; `checks` says what is not well."""
    checks = {**_database_checks(), "registry": _registry_check()}
    checks.update({name: check() or "ok" for name, check in READINESS.items()})
    is_ready = all(state == "ok" or state.startswith("warning") for state in checks.values())
    return JsonResponse(
        {"status": "ok" if is_ready else "unavailable", "checks": checks},
        status=200 if is_ready else 503,
        headers=NO_STORE,
    )


@csrf_exempt
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Return what this server counts, of all its processes; for loopback or the bearer of METRICS_TOKEN."""
    if not _may_read_metrics(request):
        return HttpResponse(status=404)
    collected = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        collected = CollectorRegistry()
        MultiProcessCollector(collected)
    return HttpResponse(generate_latest(collected), content_type=CONTENT_TYPE_LATEST, headers=NO_STORE)


def _may_read_metrics(request: HttpRequest) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if settings.METRICS_TOKEN and scheme.lower() == "bearer":
        # As bytes: compare_digest refuses text beyond ASCII.
        return secrets.compare_digest(given.strip().encode(), settings.METRICS_TOKEN.encode())
    if any(name in request.headers for name in PROXY_HEADERS):
        return False  # a proxy beside us: the peer is not who asks
    try:
        return ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def _database_checks() -> dict[str, str]:
    """Return the state of database, migrations and role; the rest is unknown when the database is away."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
            row = cursor.fetchone()
        is_mighty = bool(row and row[0])
        return {
            "database": "ok",
            "migrations": "ok" if _is_migrated() else "behind",
            "roles": "warning: the role can look past row-level security" if is_mighty else "ok",
        }
    except (DatabaseError, InterfaceError):
        return {"database": "unavailable"}


def _registry_check() -> str:
    """Return whether this process knows its endpoints; none at all is worth a warning, the API serves on."""
    try:
        return "ok" if registry.current().endpoints else "warning: no usable endpoint"
    except (DatabaseError, InterfaceError):
        return "unknown"


def _is_migrated() -> bool:
    """Return whether all migrations are applied; asked until it is true, since it stays so."""
    global _migrated
    if not _migrated:
        executor = MigrationExecutor(connection)
        _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _migrated
