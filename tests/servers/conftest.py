"""One uvicorn and one daphne for all tests of streams, talking to the same misbehaving provider."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.fakes.provider import FakeProvider
from tests.servers.reading import Reading, read
from tests.serving import Server, serving


@dataclass
class Person:
    """A signed-in member in front of one server."""

    server: Server
    client: httpx.Client

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Return the answer of one call below /api/xcx/chat/."""
        return self.client.request(method, f"/api/xcx/chat/{path}", **request)

    def new_chat(self) -> int:
        """Return a new conversation."""
        answer = self.call("POST", "conversations", json={})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["chatId"])

    def say(self, chat_id: int, content: str, *, stop_after_bytes: int | None = None, **more: Any) -> Reading:
        """Return the stream of a reply to this."""
        headers = more.pop("headers", {})
        return read(
            self.client,
            "POST",
            "/api/xcx/chat/stream",
            json={"chatId": chat_id, "content": content, **more},
            headers=headers,
            stop_after_bytes=stop_after_bytes,
        )

    def resume(self, last_event_id: str, **more: Any) -> Reading:
        """Return the stream from there on."""
        return read(self.client, "GET", "/api/xcx/chat/stream", headers={"Last-Event-ID": last_event_id}, **more)

    def messages(self, chat_id: int) -> list[dict[str, Any]]:
        """Return the messages of a chat, oldest first."""
        answer = self.call("GET", f"{chat_id}/messages")
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])


@contextlib.contextmanager
def person(server: Server, username: str = "alice", site: str = "demo") -> Iterator[Person]:
    """Yield this person, signed in."""
    headers = {**server.sign_in(username, site), "Accept-Encoding": "identity"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=15) as client:
        yield Person(server, client)


def provider_settings(provider: FakeProvider) -> dict[str, str]:
    """Return the settings that connect a server to the fake provider."""
    return {
        "LLM_BASE_URL": f"http://127.0.0.1:{provider.port}/v1",
        "LLM_API_KEY": "sk-canary-0123456789",
        "LLM_MODEL": "fake-1",
        "PROVIDER_ALLOWED_ADDRESSES": f"127.0.0.1:{provider.port}",
    }


@pytest.fixture(scope="session")
def uvicorn_server(
    serving_database: str, fake_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """`manage.py serve` with one worker."""
    log = tmp_path_factory.mktemp("uvicorn") / "server.log"
    with serving("uvicorn", serving_database, log, **provider_settings(fake_provider)) as server:
        yield server


@pytest.fixture(scope="session")
def daphne_server(
    serving_database: str, fake_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """`manage.py runserver`."""
    log = tmp_path_factory.mktemp("daphne") / "server.log"
    with serving("daphne", serving_database, log, **provider_settings(fake_provider)) as server:
        yield server


@pytest.fixture(scope="session", params=["uvicorn", "daphne"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the two servers in turn."""
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture(scope="session")
def alice(server: Server) -> Iterator[Person]:
    """Alice in front of each server."""
    with person(server) as found:
        yield found


@pytest.fixture
def meet(server: Server) -> Iterator[Callable[..., Person]]:
    """Return a function that signs somebody else in: `meet("carol", "demo2")`."""
    with contextlib.ExitStack() as people:
        yield lambda username, site="demo": people.enter_context(person(server, username, site))
