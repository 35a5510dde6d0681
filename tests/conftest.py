"""What every test stands on: a database server, quick password hashes, and the people of `world.py`."""

from __future__ import annotations

import pytest
from django.conf import settings

from tests.world import World, make_world


def pytest_configure(config: pytest.Config) -> None:
    """Hold the embedded server when no other is named, the last to leave stops it; hash passwords quickly."""
    from chatsite import postgres

    if settings.EMBEDDED_POSTGRES:
        held = postgres.hold(settings.VAR_DIR)
        config.add_cleanup(lambda: held.release(stop_when_last=True))
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def world(db: None) -> World:
    """Alice and Bob of Acorn, Carol of Birch, and Dave who waits."""
    return make_world()
