"""The server and our role in it are checked when a command names the database."""

from __future__ import annotations

import psycopg
import pytest
from django.conf import settings as django_settings
from django.db import connection

from chatsite import checks


@pytest.mark.django_db
def test_a_plain_role_on_a_new_server_is_fine() -> None:
    assert checks.check_server(None, databases=["default"]) == []


def test_plain_check_needs_no_server() -> None:
    assert checks.check_server(None) == []


@pytest.mark.django_db
def test_a_role_that_looks_past_row_level_security_is_warned_of() -> None:
    """As the superuser of the embedded server sees it; a server of somebody else lends us no such role."""
    if not django_settings.EMBEDDED_POSTGRES:
        pytest.skip("needs the superuser of the embedded server")
    connection.ensure_connection()
    assert isinstance(connection.connection, psycopg.Connection)
    role = django_settings.DATABASES["default"]["USER"]
    name = connection.settings_dict["NAME"]
    host = django_settings.DATABASES["default"]["HOST"]
    with psycopg.connect(dbname=name, host=host, user="postgres", autocommit=True) as superuser:
        superuser.execute(f'ALTER ROLE "{role}" BYPASSRLS')
        try:
            found = checks.check_server(None, databases=["default"])
        finally:
            superuser.execute(f'ALTER ROLE "{role}" NOBYPASSRLS')
    assert [(message.id, bool(message.hint)) for message in found] == [("chatsite.W002", True)]


@pytest.mark.django_db
def test_an_old_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "OLDEST_POSTGRES", 99)
    assert [message.id for message in checks.check_server(None, databases=["default"])] == ["chatsite.E002"]
