"""The callback is knocked on by strangers: other rooms' keys, other sites', none: alike, and nothing changes."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from django.core.serializers import serialize

from chatsite.asgi import application
from conversations.generation.engine import engine
from conversations.models import Conversation, Generation, Message, VoiceSession, VoiceTurn
from tests.world import (
    VOICE_SECRETS,
    World,
    bearer,
    make_exchange,
    make_voice_scene,
    make_voice_session,
    make_world,
)

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "爱丽丝的秘密"
KEY = VOICE_SECRETS["callback_key"]
PATHS = ("/api/chat_callback", "/api/chat_callback/", "/api/chat_callback/chat/completions")


@pytest.fixture
def world(transactional_db: None) -> World:
    return make_world()


@pytest.fixture
def room(world: World) -> VoiceSession:
    """Alice's running room, in which something was said."""
    session = make_voice_session(make_voice_scene(world.acorn), world.alice)
    assert session.conversation is not None
    make_exchange(session.conversation, question=SECRET, answer=SECRET)
    return session


def everything() -> str:
    """All rows that a stranger might change, as text."""
    return serialize(
        "json",
        [
            row
            for model in (Conversation, Message, Generation, VoiceSession, VoiceTurn)
            for row in model.across_sites.order_by("pk")
        ],
    )


def knock(room_id: str, headers: dict[str, str]) -> list[tuple[int, dict[str, str], bytes]]:
    """Return what each path says to a well-formed call."""
    content = json.dumps({"messages": [{"role": "user", "content": "秘密是什么"}], "stream": False})

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            sent = {"Content-Type": "application/json", "X-Request-Id": "knock-knock", **headers}
            answers = [
                await client.post(path, params={"room_id": room_id}, content=content, headers=sent)
                for path in PATHS
            ]
        await engine().close()
        return answers

    return [(answer.status_code, dict(answer.headers), answer.content) for answer in asyncio.run(run())]


def test_strangers_learn_nothing_and_change_nothing(world: World, room: VoiceSession) -> None:
    other = make_voice_scene(world.birch, secrets={"callback_key": "birch-callback-key-000001"})
    make_voice_session(other, world.carol)
    same_site = make_voice_scene(world.acorn, "Other", secrets={"callback_key": "other-callback-key-000001"})
    make_voice_session(same_site, world.bob)
    before = everything()
    nobodys = f"{world.acorn.pk}-00000000000000000000000000000000"
    alike = knock(nobodys, {})
    assert {status for status, _, _ in alike} == {401}
    for key in ("", "x", "birch-callback-key-000001", "other-callback-key-000001", KEY[:-1]):
        assert knock(room.room_id, {"Authorization": f"Bearer {key}"}) == alike
    assert knock(room.room_id, {"Authorization": f"Basic {KEY}"}) == alike
    # A member's own token is no key, and the right key opens no other site's room.
    assert knock(room.room_id, bearer(world.alice)) == alike
    moved = room.room_id.replace(f"{world.acorn.pk}-", f"{world.birch.pk}-", 1)
    for room_id in (nobodys, moved, "", "x", "1", "-", "9" * 40 + "-x", f"{room.room_id}\0"):
        assert knock(room_id, {"Authorization": f"Bearer {KEY}"}) == alike
    assert everything() == before
    assert SECRET.encode() not in alike[0][2]


def test_whoever_is_let_in_hears_nothing_of_another_room(world: World, room: VoiceSession) -> None:
    # The stand-in repeats what it is asked: another room's words would show.
    other = make_voice_session(room.scene, world.bob)
    for status, _, body in knock(other.room_id, {"Authorization": f"Bearer {KEY}"}):
        assert (status, SECRET in body.decode()) == (200, False)
