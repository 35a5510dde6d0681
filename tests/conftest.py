"""What every test stands on: a database server, quick password hashes, and the people of `world.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import settings

from tests.fakes.provider import start_fake_provider
from tests.serving import Server, drop_template, new_database, serving
from tests.world import World, make_world


def pytest_configure(config: pytest.Config) -> None:
    """Hold the embedded server when no other is named, the last to leave stops it; hash passwords quickly."""
    from chatsite import postgres

    if settings.EMBEDDED_POSTGRES:
        held = postgres.hold(settings.VAR_DIR)
        config.add_cleanup(lambda: held.release(stop_when_last=True))
    config.add_cleanup(drop_template)  # the last is the first to be called
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def world(db: None) -> World:
    """Alice and Bob of Acorn, Carol of Birch, and Dave who waits."""
    return make_world()


@pytest.fixture(scope="session")
def fake_provider() -> Iterator[object]:
    """A provider process that does what the question tells it to."""
    with start_fake_provider() as provider:
        yield provider


@pytest.fixture(scope="session")
def serving_database() -> Iterator[str]:
    """The URL of a database with the demo in it, for servers of their own."""
    with new_database() as url:
        yield url


@pytest.fixture(scope="session")
def demo_server(serving_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The product with the demo and the stand-in, as `./bin/run` starts it."""
    log = tmp_path_factory.mktemp("demo") / "server.log"
    with serving("uvicorn", serving_database, log, workers=2) as server:
        yield server
