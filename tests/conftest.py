"""What every test stands on: a database server, quick password hashes, and the people of `world.py`."""

from __future__ import annotations

import os

import pytest
from django.conf import settings

from tests.world import World, make_world


def pytest_configure() -> None:
    """Start the embedded server when no other is named; hash passwords quickly."""
    from chatsite import postgres

    if not os.environ.get("DATABASE_URL"):
        postgres.ensure_running(settings.VAR_DIR)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def world(db: None) -> World:
    """Alice and Bob of Acorn, Carol of Birch, and Dave who waits."""
    return make_world()
