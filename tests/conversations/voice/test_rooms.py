"""Rooms from the first call to the last, through the whole application and against a platform."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from conversations import db
from conversations.history.actions import delete_conversation
from conversations.models import Conversation, Membership, VoiceScene, VoiceSession
from conversations.voice.rooms import sweep_rooms
from conversations.voice.sessions import request_stop
from providers.rtc.tokens import read_token, verify_token
from tests.conversations.voice.conftest import Client, talk
from tests.conversations.voice.platform import Platform, envelope
from tests.world import VOICE_SECRETS, World, bearer, make_conversation, make_internal_caller, make_voice_scene

pytestmark = pytest.mark.django_db(transaction=True)


def only_session() -> VoiceSession:
    session: VoiceSession = VoiceSession.across_sites.get()
    return session


def test_get_scenes_gives_a_scene_and_a_room(people: World, scene: VoiceScene) -> None:
    answer = talk(lambda c: c.post("/getScenes?Action=getScenes", {}), bearer(people.alice))
    session = only_session()
    (entry,) = answer.json()["Result"]["scenes"]
    assert answer.json()["ResponseMetadata"] == {"Action": "getScenes"}
    assert entry["scene"] == {
        "id": "Custom",
        "name": "自定义助手",
        "icon": "",
        "botName": "ChatBot01",
        "isInterruptMode": True,
        "isScreenMode": False,
    }
    rtc = entry["rtc"]
    assert set(rtc) == {"AppId", "RoomId", "UserId", "Token"}
    assert (rtc["AppId"], rtc["RoomId"], rtc["UserId"]) == (scene.rtc_app_id, session.room_id, session.user_id)
    said = read_token(rtc["Token"])
    assert (said.room_id, said.user_id, said.privileges) == (
        session.room_id,
        session.user_id,
        dict.fromkeys(range(5), 0),
    )
    assert said.expire_at - said.issued_at == 86_400
    assert verify_token(rtc["Token"], app_key=VOICE_SECRETS["app_key"], now=said.issued_at)
    assert session.membership == people.alice
    assert (session.status, session.conversation_id, session.caller_id) == ("created", None, None)
    assert re.fullmatch(rf"{people.acorn.pk}-[0-9a-f]{{32}}", session.room_id)
    assert [value for value in VOICE_SECRETS.values() if value in answer.text] == []


def test_every_call_gives_another_room_user_and_token(people: World, scene: VoiceScene) -> None:
    async def ask(alice: Client, bob: Client) -> list[dict[str, str]]:
        return await asyncio.gather(*(client.open() for client in (alice, bob) for _ in range(6)))

    rooms = talk(ask, bearer(people.alice), bearer(people.bob))
    for part in ("RoomId", "UserId", "Token"):
        assert len({room[part] for room in rooms}) == 12
    assert len({read_token(room["Token"]).nonce for room in rooms}) > 10
    assert {room["AppId"] for room in rooms} == {scene.rtc_app_id}


def test_a_start_sends_the_scene_with_what_only_we_know(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    before = json.dumps(scene.voice_chat, sort_keys=True)

    async def go(alice: Client) -> Any:
        return await alice.open(), await alice.start()

    rtc, answer = talk(go, bearer(people.alice))
    session = only_session()
    ((action, body),) = platform.calls
    assert (answer.status_code, answer.content) == (200, envelope("StartVoiceChat"))
    assert (action, platform.versions) == ("StartVoiceChat", ["2024-12-01"])
    assert body == {
        **scene.voice_chat,
        "AppId": scene.rtc_app_id,
        "RoomId": rtc["RoomId"],
        "TaskId": session.task_id,
        "AgentConfig": {
            **scene.voice_chat["AgentConfig"],
            "TargetUserId": [rtc["UserId"]],
            "UserId": "ChatBot01",
        },
        "Config": {
            **scene.voice_chat["Config"],
            "LLMConfig": {
                **scene.voice_chat["Config"]["LLMConfig"],
                "Url": f"https://chat.example.com/api/chat_callback?room_id={rtc['RoomId']}",
                "APIKey": VOICE_SECRETS["callback_key"],
            },
        },
    }
    scene.refresh_from_db()
    assert json.dumps(scene.voice_chat, sort_keys=True) == before
    assert (session.status, session.busy_until, session.last_error) == ("started", None, "")
    assert session.started_at and session.stop_due_at
    assert 3590 < (session.stop_due_at - session.started_at).total_seconds() <= 3601
    chat = session.conversation
    assert chat is not None
    assert (chat.context_type, chat.context_id, chat.membership) == ("voice", rtc["RoomId"], people.alice)


def test_a_second_start_is_answered_like_a_success_without_a_call(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> list[httpx.Response]:
        await alice.open()
        return [await alice.start(), await alice.start()]

    _, second = talk(go, bearer(people.alice))
    metadata = second.json()["ResponseMetadata"]
    assert (second.status_code, second.json()["Result"]) == (200, "ok")
    assert metadata.pop("RequestId")
    assert metadata == {
        "Action": "StartVoiceChat",
        "Version": "2024-12-01",
        "Service": "rtc",
        "Region": "cn-north-1",
    }
    assert platform.actions() == ["StartVoiceChat"]


def test_of_many_starts_at_once_one_reaches_the_platform(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    platform.seconds = 0.4

    async def go(alice: Client) -> list[httpx.Response]:
        await alice.open()
        return await asyncio.gather(*(alice.start() for _ in range(8)))

    answers = talk(go, bearer(people.alice))
    assert platform.actions() == ["StartVoiceChat"]
    assert {answer.json()["Result"] for answer in answers} == {"ok"}


def test_a_start_that_waited_for_one_that_was_refused_is_made_itself(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    platform.seconds = 0.3
    platform.instead = lambda action, body: (
        (200, envelope(action, error="InvalidParameter")) if len(platform.calls) == 1 else None
    )

    async def go(alice: Client) -> list[httpx.Response]:
        await alice.open()
        return await asyncio.gather(alice.start(), alice.start())

    answers = talk(go, bearer(people.alice))
    assert platform.actions() == ["StartVoiceChat"] * 2
    assert sorted("Error" in answer.json()["ResponseMetadata"] for answer in answers) == [False, True]
    assert only_session().status == "started"


def test_a_stop_ends_the_context_and_keeps_the_transcript(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> httpx.Response:
        await alice.open()
        await alice.start()
        return await alice.stop()

    answer = talk(go, bearer(people.alice))
    session = only_session()
    start, stop = (body for _, body in platform.calls)
    assert (answer.status_code, answer.content) == (200, envelope("StopVoiceChat"))
    assert stop == {name: start[name] for name in ("AppId", "RoomId", "TaskId")}
    assert platform.running == {}
    assert (session.status, session.stopped_by, session.stop_due_at) == ("stopped", "caller", None)
    chat = session.conversation
    assert chat is not None and chat.context_cleared_at is not None and chat.deleted_at is None


def test_a_stopped_room_is_started_again_as_a_new_task_in_the_same_chat(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> None:
        await alice.open()
        for _ in range(2):
            assert (await alice.start()).json()["Result"] == "ok"
            assert (await alice.stop()).json()["Result"] == "ok"

    talk(go, bearer(people.alice))
    tasks = [body["TaskId"] for _, body in platform.calls]
    assert tasks[0] == tasks[1] != tasks[2] == tasks[3]
    assert len({body["RoomId"] for _, body in platform.calls}) == 1
    assert Conversation.across_sites.count() == 1


@pytest.mark.parametrize("status", ["created", "stopped"])
def test_a_stop_of_what_does_not_run_is_answered_without_a_call(
    people: World, scene: VoiceScene, platform: Platform, status: str
) -> None:
    async def go(alice: Client) -> httpx.Response:
        await alice.open()
        if status == "stopped":
            await alice.start()
            await alice.stop()
            platform.calls.clear()
        return await alice.stop()

    answer = talk(go, bearer(people.alice))
    assert (answer.status_code, answer.json()["Result"], platform.calls) == (200, "ok", [])


def test_two_callers_never_share_a_room_a_token_or_a_word(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def one(client: Client) -> tuple[dict[str, str], list[str]]:
        rtc = await client.open()
        texts = [(await client.start()).text, (await client.start(RoomID=rtc["RoomId"])).text]
        return rtc, [*texts, (await client.stop()).text]

    async def go(*clients: Client) -> Any:
        return await asyncio.gather(*(one(client) for client in clients))

    server = make_internal_caller(people.acorn, membership=people.bob)
    found = talk(go, bearer(people.alice), server)
    starts = [body for action, body in platform.calls if action == "StartVoiceChat"]
    assert len(starts) == 2 and platform.running == {}
    for (mine, texts), (others, _) in (found, found[::-1]):
        (start,) = [body for body in starts if body["RoomId"] == mine["RoomId"]]
        assert start["AgentConfig"]["TargetUserId"] == [mine["UserId"]]
        assert start["Config"]["LLMConfig"]["Url"].endswith(f"?room_id={mine['RoomId']}")
        sent = json.dumps(start)
        assert [word for word in (others["RoomId"], others["UserId"], others["Token"]) if word in sent] == []
        assert [text for text in texts if others["RoomId"] in text or others["UserId"] in text] == []
    chats = VoiceSession.across_sites.values_list("membership__user__username", "conversation__membership_id")
    assert dict(chats) == {"alice": people.alice.pk, "bob": people.bob.pk}


@pytest.mark.parametrize("call", ["start", "stop"])
@pytest.mark.parametrize("stranger", ["bob", "carol", "nobody's"])
def test_a_room_of_another_is_no_room(
    people: World, scene: VoiceScene, platform: Platform, call: str, stranger: str
) -> None:
    make_voice_scene(people.birch, base_url=platform.base_url)
    carol = stranger == "carol"

    async def go(alice: Client, other: Client) -> tuple[httpx.Response, httpx.Response]:
        room = (await alice.open())["RoomId"]
        if call == "stop":
            await alice.start()
        if stranger == "nobody's":
            room = f"{people.acorn.pk}-{'0' * 32}"
        answer = await getattr(other, call)(RoomID=room)
        nobody = await getattr(other, call)(RoomID="1-no-such-room")
        return answer, nobody

    other = people.carol if carol else people.bob
    answer, nobody = talk(go, bearer(people.alice), bearer(other))
    error = answer.json()["ResponseMetadata"]["Error"]
    assert (answer.status_code, error["Code"], error["Reason"]) == (200, -1, "room_not_found")
    assert error == nobody.json()["ResponseMetadata"]["Error"]
    assert platform.actions() == ([] if call == "start" else ["StartVoiceChat"])
    assert len(platform.running) == (0 if call == "start" else 1)


def test_a_chat_is_continued_by_voice_in_the_same_conversation(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    chat = make_conversation(people.alice, title="旅行计划")

    async def go(alice: Client) -> None:
        await alice.open(chatId=chat.pk)
        await alice.start()
        await alice.stop()

    talk(go, bearer(people.alice))
    assert only_session().conversation_id == chat.pk
    chat.refresh_from_db()
    assert chat.context_cleared_at is None  # one conversation, one context
    assert Conversation.across_sites.count() == 1


def test_a_context_is_continued_by_voice(people: World, scene: VoiceScene) -> None:
    talk(lambda c: c.open(contextType="task", contextId="7"), bearer(people.alice))
    chat = only_session().conversation
    assert chat is not None and (chat.context_type, chat.context_id) == ("task", "7")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"chatId": 999_999_999}, "not_found"),
        ({"chatId": {}}, "invalid"),
        ({"contextType": "task"}, "invalid"),
        ({"contextType": "task", "contextId": ""}, "invalid"),
        ({"contextType": "t" * 65, "contextId": "7"}, "invalid"),
    ],
)
def test_a_conversation_that_cannot_be_continued_opens_no_room(
    people: World, scene: VoiceScene, body: dict[str, Any], reason: str
) -> None:
    answer = talk(lambda c: c.post("/getScenes", body), bearer(people.alice))
    assert (answer.status_code, answer.json()["ResponseMetadata"]["Error"]["Reason"]) == (200, reason)
    assert VoiceSession.across_sites.count() == 0


def test_anothers_chat_cannot_be_continued(people: World, scene: VoiceScene) -> None:
    chat = make_conversation(people.alice)
    answer = talk(lambda c: c.post("/getScenes", {"chatId": chat.pk}), bearer(people.bob))
    assert answer.json()["ResponseMetadata"]["Error"]["Reason"] == "not_found"


def test_a_chat_that_was_deleted_meanwhile_gets_a_successor(people: World, scene: VoiceScene) -> None:
    chat = make_conversation(people.alice)

    async def go(alice: Client) -> None:
        await alice.open(chatId=chat.pk)
        await db.unit(delete_conversation, chat)
        await alice.start()

    talk(go, bearer(people.alice))
    session = only_session()
    assert session.conversation_id != chat.pk
    assert session.conversation is not None and session.conversation.context_id == session.room_id


def test_the_latest_room_of_the_scene_is_meant_unless_one_is_named(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> list[str]:
        rooms = [(await alice.open())["RoomId"] for _ in range(3)]
        await alice.start()
        await alice.start(RoomID=rooms[0])
        await alice.stop(RoomID=rooms[0])
        await alice.open()  # a later room that does not run is not the one to be stopped
        await alice.stop()
        return rooms

    first, _, third = talk(go, bearer(people.alice))
    assert [(action, body["RoomId"]) for action, body in platform.calls] == [
        ("StartVoiceChat", third),
        ("StartVoiceChat", first),
        ("StopVoiceChat", first),
        ("StopVoiceChat", third),
    ]


# --- what can go wrong on the way to the platform ---


@pytest.mark.parametrize(("status", "for_server"), [(200, 502), (400, 502), (401, 502), (429, 429), (404, 502)])
def test_a_refusal_goes_through_verbatim(
    people: World, scene: VoiceScene, platform: Platform, status: int, for_server: int
) -> None:
    refusal = envelope("StartVoiceChat", error="InvalidParameter", message="参数 X 有误")
    platform.instead = lambda action, body: (status, refusal)
    server = make_internal_caller(people.acorn, membership=people.bob)

    async def go(alice: Client, bob: Client) -> list[httpx.Response]:
        await alice.open()
        await bob.open()
        return [await alice.start(), await bob.start()]

    mine, servers = talk(go, bearer(people.alice), server)
    assert (mine.status_code, mine.content) == (200, refusal)
    assert (servers.status_code, servers.content) == (for_server, refusal)
    for session in VoiceSession.across_sites.all():
        assert (session.status, session.last_error, session.busy_until) == ("failed", "InvalidParameter", None)


@pytest.mark.parametrize(
    ("answer", "reason", "for_server", "error"),
    [
        ((502, b"<html>Bad Gateway</html>"), "platform_unavailable", 502, "html_answer"),
        ((200, b'{"code":1}'), "platform_unavailable", 502, "not_an_envelope"),
        ((0, b""), "platform_unavailable", 502, "no_answer"),
    ],
)
def test_what_is_no_answer_is_told_in_the_envelope_and_the_task_is_ended_in_case_it_runs(
    people: World,
    scene: VoiceScene,
    platform: Platform,
    answer: tuple[int, bytes],
    reason: str,
    for_server: int,
    error: str,
) -> None:
    platform.instead = lambda action, body: answer if action == "StartVoiceChat" else None
    server = make_internal_caller(people.acorn, membership=people.bob)

    async def go(bob: Client) -> httpx.Response:
        await bob.open()
        return await bob.start()

    told = talk(go, server)
    metadata = told.json()["ResponseMetadata"]
    assert told.status_code == for_server
    assert (metadata["Action"], metadata["Error"]["Code"], metadata["Error"]["Reason"]) == ("proxy", -1, reason)
    assert metadata["Error"]["Message"].startswith("Error: 语音平台")
    session = only_session()
    assert (session.status, session.last_error) == ("stopping", error)
    assert session.stop_due_at is not None


def test_a_platform_that_is_silent_is_given_up_and_a_later_start_ends_the_old_task_first(
    people: World, scene: VoiceScene, platform: Platform, settings: Any
) -> None:
    settings.VOICE_PLATFORM_SECONDS = 0.3
    platform.seconds = 0.8  # it acts, but too late to say so

    async def go(alice: Client) -> list[httpx.Response]:
        await alice.open()
        first = await alice.start()
        await asyncio.sleep(0.8)
        platform.seconds = 0
        return [first, await alice.start()]

    first, second = talk(go, bearer(people.alice))
    assert first.json()["ResponseMetadata"]["Error"]["Reason"] == "platform_timeout"
    assert second.json()["Result"] == "ok"
    assert platform.actions() == ["StartVoiceChat", "StopVoiceChat", "StartVoiceChat"]
    tasks = [body["TaskId"] for _, body in platform.calls]
    assert tasks[0] == tasks[1] != tasks[2]
    assert list(platform.running.values()) == [tasks[2]]


def test_nobody_there_is_a_start_that_failed(people: World, scene: VoiceScene, settings: Any) -> None:
    VoiceScene.across_sites.update(base_url="http://127.0.0.1:9")
    settings.PROVIDER_ALLOWED_ADDRESSES = ["127.0.0.1:9"]

    async def go(alice: Client) -> httpx.Response:
        await alice.open()
        return await alice.start()

    answer = talk(go, bearer(people.alice))
    assert answer.json()["ResponseMetadata"]["Error"]["Reason"] == "platform_unavailable"
    assert (only_session().status, only_session().last_error) == ("failed", "connect_failed")


def test_a_private_address_is_not_called(
    people: World, scene: VoiceScene, platform: Platform, settings: Any
) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = []

    async def go(alice: Client) -> httpx.Response:
        await alice.open()
        return await alice.start()

    answer = talk(go, bearer(people.alice))
    assert answer.json()["ResponseMetadata"]["Error"]["Reason"] == "platform_unavailable"
    assert (only_session().last_error, platform.calls) == ("address_refused", [])


def test_a_caller_who_hangs_up_leaves_nothing_half_done(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    platform.seconds = 0.4

    async def go(alice: Client) -> None:
        await alice.open()
        task = asyncio.create_task(alice.start())
        while not platform.calls:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await alice.start()).json()["Result"] == "ok"

    talk(go, bearer(people.alice))
    assert platform.actions() == ["StartVoiceChat"]
    assert only_session().status == "started"


def test_a_key_that_the_platform_quotes_goes_no_further(
    people: World, scene: VoiceScene, platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    quoted = " ".join(VOICE_SECRETS.values())
    platform.instead = lambda action, body: (400, envelope(action, error=quoted, message=f"有误：{quoted}"))

    async def go(alice: Client) -> httpx.Response:
        await alice.open()
        return await alice.start()

    answer = talk(go, bearer(people.alice))
    assert answer.json()["ResponseMetadata"]["Error"]["Message"] == "有误：*** *** *** ***"
    logged = "".join(f"{record.getMessage()} {vars(record)!r}" for record in caplog.records)
    row = repr(VoiceSession.across_sites.values().get())
    assert "voice_platform_failed" in logged
    assert [secret for secret in VOICE_SECRETS.values() if secret in logged or secret in row] == []


# --- rooms nobody stopped ---


def make_due(**changes: Any) -> None:
    VoiceSession.across_sites.update(stop_due_at="2026-01-01T00:00:00Z", **changes)


def test_a_room_over_its_limit_is_stopped_by_one_worker(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    platform.seconds = 0.1

    async def go(alice: Client) -> list[int]:
        await alice.open()
        await alice.start()
        await db.unit(make_due)
        return await asyncio.gather(*(sweep_rooms() for _ in range(4)))

    tried = talk(go, bearer(people.alice))
    session = only_session()
    assert sum(tried) <= 1  # the engine's own sweeper may have been first
    assert platform.actions() == ["StartVoiceChat", "StopVoiceChat"]
    assert (session.status, session.stopped_by, platform.running) == ("stopped", "limit", {})
    assert session.conversation is not None and session.conversation.context_cleared_at is not None


def test_the_limit_is_the_scenes_else_the_sites(people: World, scene: VoiceScene) -> None:
    people.acorn.settings = {"voice_max_minutes": 7}
    people.acorn.save()

    def minutes() -> float:
        session = VoiceSession.across_sites.latest("pk")
        assert session.started_at and session.stop_due_at
        return round((session.stop_due_at - session.started_at).total_seconds() / 60, 2)

    async def go(alice: Client) -> list[float]:
        found = []
        for limit in (None, 3):
            await db.unit(VoiceScene.across_sites.update, max_minutes=limit)
            await alice.open()
            await alice.start()
            found.append(await db.unit(minutes))
        return found

    assert talk(go, bearer(people.alice)) == [7, 3]


def test_the_room_of_a_member_who_is_suspended_is_stopped(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client, bob: Client) -> None:
        for client in (alice, bob):
            await client.open()
            await client.start()
        await db.unit(Membership.across_sites.filter(pk=people.alice.pk).update, status="suspended")
        while len(platform.running) > 1:
            await sweep_rooms()
            await asyncio.sleep(0.02)
        await sweep_rooms()

    talk(go, bearer(people.alice), bearer(people.bob))
    rows = VoiceSession.across_sites.values_list("membership__user__username", "status", "stopped_by")
    assert sorted(rows) == [("alice", "stopped", "staff"), ("bob", "started", "")]


def test_staff_who_end_a_room_while_it_starts_are_heard(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    platform.seconds = 0.3

    async def go(alice: Client) -> None:
        await alice.open()
        start = asyncio.create_task(alice.start())
        while not platform.calls:
            await asyncio.sleep(0.01)
        assert await db.unit(lambda: request_stop(only_session()))
        await start
        while platform.running:
            await sweep_rooms()
            await asyncio.sleep(0.02)

    talk(go, bearer(people.alice))
    assert only_session().stopped_by == "staff"


def test_a_stop_that_fails_is_repeated_with_longer_pauses_until_it_is_given_up(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    def state() -> tuple[str, int, float]:
        row = only_session()
        return row.status, row.stop_attempts, (row.stop_due_at.timestamp() if row.stop_due_at else 0)

    async def go(alice: Client) -> list[float]:
        await alice.open()
        await alice.start()
        platform.instead = lambda action, body: (500, envelope(action, error="InternalError"))
        assert (await alice.stop()).json()["ResponseMetadata"]["Error"]["Code"] == "InternalError"
        pauses = []
        loop = asyncio.get_running_loop()
        for attempt in range(1, 20):
            status, attempts, due = await db.unit(state)
            assert (status, attempts) == ("stopping", attempt)
            pauses.append(due - (await db.unit(db.database_now)).timestamp())
            await db.unit(make_due)
            deadline = loop.time() + 5
            while (await db.unit(state))[1] == attempt and loop.time() < deadline:
                await sweep_rooms()
                await asyncio.sleep(0.02)
        return pauses

    pauses = talk(go, bearer(people.alice))
    assert pauses == pytest.approx([min(600, 5 * 2**n) for n in range(19)], abs=1.5)
    assert platform.actions() == ["StartVoiceChat", *["StopVoiceChat"] * 20]
    assert (only_session().status, only_session().last_error) == ("failed", "InternalError")


def test_a_worker_that_died_while_it_started_a_room_leaves_it_to_the_sweeper(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> None:
        await alice.open()
        await alice.start()
        # As the claim left it: nobody knows whether the platform acted.
        await db.unit(make_due, status="starting", busy_until="2026-01-01T00:00:00Z")
        while platform.running:
            await sweep_rooms()
            await asyncio.sleep(0.02)

    talk(go, bearer(people.alice))
    assert only_session().status in ("stopping", "stopped")


def test_a_task_that_the_platform_no_longer_knows_is_stopped(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> httpx.Response:
        await alice.open()
        await alice.start()
        platform.running.clear()  # it ends a task by itself when everybody has left
        return await alice.stop()

    answer = talk(go, bearer(people.alice))
    assert answer.json()["ResponseMetadata"]["Error"]["Message"] == "The task has not been started."
    assert only_session().status == "stopped"


def test_keys_that_were_lost_do_not_keep_the_sweeper_busy(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> int:
        await alice.open()
        await alice.start()
        await db.unit(VoiceScene.across_sites.update, secret_key_encrypted="gAAAAA-not-ours")
        await db.unit(make_due)
        return await sweep_rooms() + await sweep_rooms()

    assert talk(go, bearer(people.alice)) == 0
    session = only_session()
    assert (session.status, session.stop_attempts, session.last_error) == ("stopping", 1, "scene_incomplete")
