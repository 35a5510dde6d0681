from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from conversations.api import health
from providers import registry


@pytest.fixture
def readiness() -> Iterator[None]:
    """No registered checks and no snapshot of endpoints; the checks are put back afterwards."""
    before = dict(health.READINESS)
    health.READINESS.clear()
    registry.forget()
    yield
    registry.forget()
    health.READINESS.clear()
    health.READINESS.update(before)


def test_the_process_lives_without_a_database(client: Client) -> None:
    # There is no database fixture here: asking one would fail this test.
    response = client.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.usefixtures("db", "readiness")
def test_ready_names_what_was_checked(client: Client) -> None:
    health.register_readiness("drain", lambda: None)
    answer = client.get("/readyz")
    assert answer.status_code == 200
    checks = answer.json()["checks"]
    assert checks == {"database": "ok", "migrations": "ok", "roles": "ok", "registry": "ok", "drain": "ok"}


@pytest.mark.usefixtures("db", "readiness")
def test_a_server_that_drains_is_not_ready(client: Client) -> None:
    health.register_readiness("drain", lambda: "draining")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["drain"]) == (503, "draining")


def test_metrics_are_for_loopback(client: Client) -> None:
    assert b"python_info" in client.get("/metrics").content
    assert client.get("/metrics", REMOTE_ADDR="203.0.113.5").status_code == 404
    assert client.get("/metrics", REMOTE_ADDR="").status_code == 404
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Proto", "Via"):
        assert client.get("/metrics", headers={name: "127.0.0.1"}).status_code == 404


def test_metrics_are_for_who_has_the_token(client: Client, settings: Any) -> None:
    settings.METRICS_TOKEN = "令牌-a-token"
    afar = {"REMOTE_ADDR": "203.0.113.5"}
    assert client.get("/metrics", headers={"Authorization": "Bearer 令牌-a-token"}, **afar).status_code == 200
    for wrong in ("Bearer other", "Bearer ", "Basic 令牌-a-token", "Bearer é"):
        assert client.get("/metrics", headers={"Authorization": wrong}, **afar).status_code == 404


def test_health_is_only_read() -> None:
    client = Client(enforce_csrf_checks=True)
    assert client.post("/livez").status_code == 405
