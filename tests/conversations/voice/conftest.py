"""A platform, scenes that call it, and the whole application to call."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chatsite.asgi import application
from conversations.generation.engine import engine
from conversations.models import InternalCaller, VoiceScene
from conversations.tenancy.internal import sign_internal, string_to_sign
from providers import registry
from tests.conversations.voice.platform import Platform, start_platform
from tests.world import World, make_voice_scene, make_world

SECRET = "internal-secret-for-tests-only-0123456789abcdef"


@pytest.fixture
def platform(settings: Any) -> Iterator[Platform]:
    """A platform that may be called."""
    with start_platform() as running:
        settings.PROVIDER_ALLOWED_ADDRESSES = [running.address]
        settings.VOICE_PLATFORM_SECONDS = 2.0
        yield running


@pytest.fixture
def people(transactional_db: None) -> Iterator[World]:
    """The people of world.py, committed, so that other connections see them."""
    registry.forget()
    yield make_world()
    registry.forget()


@pytest.fixture
def scene(people: World, platform: Platform) -> VoiceScene:
    """Acorn's scene on that platform."""
    made: VoiceScene = make_voice_scene(people.acorn, base_url=platform.base_url)
    return made


def signed(
    method: str, path: str, body: bytes, *, key_id: str = "java-mock", secret: str = SECRET
) -> dict[str, str]:
    """The headers with which an internal caller signs."""
    timestamp, nonce = str(int(time.time())), uuid.uuid4().hex
    path, _, query = path.partition("?")
    text = string_to_sign(
        method=method,
        path=path,
        query_string=query.encode(),
        timestamp=timestamp,
        nonce=nonce,
        key_id=key_id,
        body=body,
    )
    return {
        "X-Internal-Key-Id": key_id,
        "X-Internal-Timestamp": timestamp,
        "X-Internal-Nonce": nonce,
        "X-Internal-Signature": sign_internal(secret, text),
    }


class Client:
    """Speaks to the whole application, as a member or as a server."""

    def __init__(self, http: httpx.AsyncClient, credentials: dict[str, str] | InternalCaller | None) -> None:
        self._http = http
        self._credentials = credentials

    async def post(self, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> httpx.Response:
        """Return the answer to one call."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if isinstance(self._credentials, InternalCaller):
            credentials = signed("POST", path, content, key_id=self._credentials.key_id)
        else:
            credentials = self._credentials or {}
        sent = {"Content-Type": "application/json", **credentials, **(headers or {})}
        return await self._http.post(path, content=content, headers=sent)

    async def open(self, **body: Any) -> dict[str, str]:
        """Return the rtc part of the first scene."""
        answer = await self.post("/getScenes?Action=getScenes", body)
        assert answer.status_code == 200, answer.text
        rtc: dict[str, str] = answer.json()["Result"]["scenes"][0]["rtc"]
        return rtc

    async def start(self, **body: Any) -> httpx.Response:
        """Start a room of the scene Custom."""
        return await self.post("/proxy?Action=StartVoiceChat&Version=2024-12-01", {"SceneID": "Custom", **body})

    async def stop(self, **body: Any) -> httpx.Response:
        """Stop a room of the scene Custom."""
        return await self.post("/proxy?Action=StopVoiceChat&Version=2024-12-01", {"SceneID": "Custom", **body})


def talk(conversation: Any, *credentials: dict[str, str] | InternalCaller | None) -> Any:
    """Return what an async function gives that is called with a client for each of the credentials."""

    async def run() -> Any:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=30) as http:
            try:
                return await conversation(*(Client(http, one) for one in credentials))
            finally:
                await engine().close()

    return asyncio.run(run())
