"""The voice calls are knocked on as a stranger, with real ids of the victim: no leak, no change, no call made.

They answer in the platform's envelope, not with problem documents, so they are knocked on apart.
"""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from django.core.serializers import serialize

from conversations.models import Conversation, InternalCaller, VoiceScene, VoiceSession
from tests.conversations.voice.conftest import Client, talk
from tests.conversations.voice.platform import Platform, start_platform
from tests.world import (
    VOICE_SECRETS,
    World,
    bearer,
    make_conversation,
    make_internal_caller,
    make_voice_scene,
    make_voice_session,
    make_world,
)

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "橡果机密"
START, STOP = "/proxy?Action=StartVoiceChat", "/proxy?Action=StopVoiceChat"


@pytest.fixture
def platform(settings: Any) -> Any:
    with start_platform() as running:
        settings.PROVIDER_ALLOWED_ADDRESSES = [running.address]
        yield running


@pytest.fixture
def world(transactional_db: None) -> World:
    return make_world()


@pytest.fixture
def room(world: World, platform: Platform) -> VoiceSession:
    """Alice's running room, in a scene of Acorn that Birch has not."""
    scene = make_voice_scene(world.acorn, "Secret", name=SECRET, base_url=platform.base_url)
    chat = make_conversation(world.alice, title=SECRET, context_type="task", context_id="7")
    return make_voice_session(scene, world.alice, conversation=chat)


def everything() -> str:
    """All rows that a stranger might change, as text."""
    rows: list[Any] = []
    for model in (VoiceScene, VoiceSession, Conversation, InternalCaller):
        rows += model.across_sites.order_by("pk")
    return serialize("json", rows)


def knocks(room: str, chat: int) -> list[tuple[str, dict[str, Any]]]:
    return [
        (START, {"SceneID": "Secret", "RoomID": room}),
        (STOP, {"SceneID": "Secret", "RoomID": room}),
        ("/getScenes", {"chatId": chat}),
    ]


def told(answer: httpx.Response) -> tuple[int, str]:
    text = re.sub(r'"RequestId":"[^"]*"', "", answer.text)
    return answer.status_code, text


@pytest.mark.parametrize("stranger", ["bob", "carol", "server"])
def test_anothers_ids_are_answered_like_missing_ones(
    world: World, room: VoiceSession, platform: Platform, stranger: str
) -> None:
    credentials: Any
    if stranger == "server":
        credentials = make_internal_caller(world.birch, membership=world.carol)
    else:
        credentials = bearer(getattr(world, stranger))
    before = everything()
    chat = room.conversation_id or 0

    async def go(client: Client) -> list[tuple[int, str]]:
        theirs = [told(await client.post(*knock)) for knock in knocks(room.room_id, chat)]
        nobodys = [told(await client.post(*knock)) for knock in knocks("1-nothing", 999_999_999)]
        assert theirs == nobodys
        return theirs

    answers = talk(go, credentials)
    assert all('"Error"' in text and SECRET not in text and room.room_id not in text for _, text in answers)
    assert everything() == before
    assert platform.calls == []


def test_a_server_reaches_the_rooms_of_the_member_it_names_alone(
    world: World, room: VoiceSession, platform: Platform
) -> None:
    server = make_internal_caller(world.acorn, membership=world.bob)
    platform.running[room.room_id] = room.task_id

    async def go(client: Client) -> list[int]:
        stop = {"SceneID": "Secret", "RoomID": room.room_id}
        answers = [await client.post(STOP, stop), await client.post(STOP, {**stop, "MemberId": world.alice.pk})]
        return [answer.status_code for answer in answers]

    assert talk(go, server) == [404, 200]
    assert platform.actions() == ["StopVoiceChat"]


@pytest.mark.parametrize("status", ["pending", "suspended", "rejected"])
def test_who_is_not_approved_reaches_not_even_their_own_room(
    world: World, room: VoiceSession, platform: Platform, status: str
) -> None:
    credentials = bearer(world.alice)
    world.alice.status = status
    world.alice.save()
    before = everything()

    async def go(client: Client) -> list[tuple[int, str]]:
        return [told(await client.post(*knock)) for knock in knocks(room.room_id, room.conversation_id or 0)]

    assert [code for code, _ in talk(go, credentials)] == [403] * 3
    assert (everything(), platform.calls) == (before, [])


def test_no_key_ever_leaves(world: World, room: VoiceSession, platform: Platform) -> None:
    async def go(client: Client) -> str:
        answers = [await client.post("/getScenes"), *[await client.post(*k) for k in knocks(room.room_id, 0)]]
        return "".join(answer.text + str(answer.headers) for answer in answers)

    text = talk(go, bearer(world.alice))
    assert room.room_id not in text  # getScenes gives a fresh one
    assert [secret for secret in VOICE_SECRETS.values() if secret in text] == []
