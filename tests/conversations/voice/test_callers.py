"""Who may open rooms, and what everybody else is told, in the shape that they understand."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from conversations import db
from conversations.models import Membership, VoiceScene, VoiceSession
from tests.conversations.voice.conftest import Client, signed, talk
from tests.conversations.voice.platform import Platform
from tests.world import World, bearer, make_internal_caller, make_member

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = b'{"code":401,"message":"\xe9\x89\xb4\xe6\x9d\x83\xe5\xa4\xb1\xe8\xb4\xa5"}'
CALLS = ("/getScenes?Action=getScenes", "/proxy?Action=StartVoiceChat", "/proxy?Action=StopVoiceChat")


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["ResponseMetadata"]["Error"]
    return error


def test_a_server_acts_for_the_member_it_names(people: World, scene: VoiceScene, platform: Platform) -> None:
    server = make_internal_caller(people.acorn, membership=make_member(people.acorn, "java-service"))

    async def go(c: Client) -> None:
        for who in ({"MemberId": people.alice.pk}, {"MemberId": "bob"}, {}):
            await c.open(**who)
            assert (await c.start(**who)).json()["Result"] == "ok"
            assert (await c.stop(**who)).json()["Result"] == "ok"

    talk(go, server)
    rows = VoiceSession.across_sites.order_by("pk").select_related("membership__user", "conversation")
    names = [(row.membership.user.username, row.conversation.membership_id == row.membership_id) for row in rows]
    assert names == [("alice", True), ("bob", True), ("java-service", True)]
    assert {row.caller_id for row in rows} == {server.pk}


@pytest.mark.parametrize(
    ("member", "status", "reason"),
    [
        (None, 400, "member_missing"),
        ("nobody", 404, "member_not_found"),
        ("carol", 404, "member_not_found"),
        (10**9, 404, "member_not_found"),
        (-1, 404, "member_not_found"),
        (True, 404, "member_not_found"),
        ([], 404, "member_not_found"),
        ("a\0", 404, "member_not_found"),
        ("dave", 403, "not_approved"),
    ],
)
def test_a_server_cannot_act_for_others(
    people: World, scene: VoiceScene, member: Any, status: int, reason: str
) -> None:
    body = {} if member is None else {"MemberId": member}
    server = make_internal_caller(people.acorn)
    answer = talk(lambda c: c.post("/getScenes", body), server)
    assert (answer.status_code, error_of(answer)["Reason"]) == (status, reason)
    assert VoiceSession.across_sites.count() == 0


def test_a_server_whose_own_member_is_suspended_acts_for_nobody(people: World, scene: VoiceScene) -> None:
    Membership.across_sites.filter(pk=people.bob.pk).update(status="suspended")
    answer = talk(lambda c: c.post("/getScenes", {}), make_internal_caller(people.acorn, membership=people.bob))
    assert (answer.status_code, error_of(answer)["Reason"]) == (403, "not_approved")


def test_a_call_is_good_once_and_only_as_it_was_signed(people: World, scene: VoiceScene) -> None:
    make_internal_caller(people.acorn, membership=people.bob)
    body = json.dumps({"SceneID": "Custom", "备注": "你好"}, ensure_ascii=False).encode()
    path = "/proxy?Action=StopVoiceChat&Version=2024-12-01"

    async def go(c: Client) -> list[tuple[int, bytes]]:
        headers = signed("POST", path, body)
        late = {**signed("POST", path, body), "X-Internal-Timestamp": str(int(time.time()) - 301)}
        calls = [
            (path, body, headers),
            (path, body, headers),
            (path, body.replace(b"Custom", b"Other!"), signed("POST", path, body)),
            ("/proxy?Action=StartVoiceChat&Version=2024-12-01", body, signed("POST", path, body)),
            ("/getScenes?Action=StopVoiceChat&Version=2024-12-01", body, signed("POST", path, body)),
            (path, json.dumps(dict(reversed(json.loads(body).items()))).encode(), signed("POST", path, body)),
            (path, body, late),
            (path, body, signed("POST", path, body, secret="another-secret-of-the-same-length-00000000000")),
            (path, body, signed("POST", path, body, key_id="nobody")),
            (path, body, {"X-Internal-Key-Id": "java-mock"}),
            # The order of parameters does not matter.
            ("/proxy?Version=2024-12-01&Action=StopVoiceChat", body, signed("POST", path, body)),
        ]
        answers = [await c.post(path, body, headers=headers) for path, body, headers in calls]
        return [(answer.status_code, answer.content) for answer in answers]

    first, *refused, last = talk(go, None)
    assert first[0] == last[0] == 404 and b"room_not_found" in first[1]
    assert refused == [(401, REFUSED)] * 9


@pytest.mark.parametrize("path", CALLS)
def test_without_anything_to_show_nobody_passes(people: World, scene: VoiceScene, path: str) -> None:
    answer = talk(lambda c: c.post(path, {"SceneID": "Custom"}), None)
    assert (answer.status_code, answer.content) == (401, REFUSED)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    ("credentials", "status", "reason"),
    [
        ({"Authorization": "Bearer x"}, 401, "token_invalid"),
        ({"Authorization": "Basic YTpi"}, 401, "not_signed_in"),
        ("dave", 403, "not_approved"),
        ("ended", 401, "token_invalid"),
    ],
)
def test_a_member_who_may_not_is_told_in_the_envelope(
    people: World, scene: VoiceScene, platform: Platform, path: str, credentials: Any, status: int, reason: str
) -> None:
    if credentials == "dave":
        credentials = bearer(people.dave)
    if credentials == "ended":
        credentials = bearer(people.alice)
        people.alice.logins.update(ended_at=people.alice.created_at)
    answer = talk(lambda c: c.post(path, {"SceneID": "Custom"}), credentials)
    error = error_of(answer)
    assert (answer.status_code, error["Code"], error["Reason"]) == (status, -1, reason)
    assert error["Message"].startswith("Error: ")
    assert (VoiceSession.across_sites.count(), platform.calls) == (0, [])


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/proxy?Action=UpdateVoiceChat", {"SceneID": "Custom"}, 400, "unknown_action"),
        ("/proxy?Action=DeleteApp", {"SceneID": "Custom"}, 400, "unknown_action"),
        ("/proxy?Action=startvoicechat", {"SceneID": "Custom"}, 400, "unknown_action"),
        ("/proxy", {"SceneID": "Custom"}, 400, "unknown_action"),
        ("/getScenes?Action=StartVoiceChat", {}, 400, "unknown_action"),
        ("/proxy?Action=StartVoiceChat", {}, 400, "scene_id_missing"),
        ("/proxy?Action=StartVoiceChat", {"SceneID": ""}, 400, "scene_id_missing"),
        ("/proxy?Action=StartVoiceChat", {"SceneID": ["Custom"]}, 400, "scene_id_missing"),
        ("/proxy?Action=StartVoiceChat", {"SceneID": "a\0"}, 400, "scene_id_missing"),
        ("/proxy?Action=StartVoiceChat", {"SceneID": "不存在"}, 404, "scene_not_found"),
        ("/proxy?Action=StartVoiceChat", {"SceneID": "Custom"}, 404, "room_not_found"),
        ("/proxy?Action=StartVoiceChat", {"SceneID": "Custom", "RoomID": 5}, 404, "room_not_found"),
        ("/proxy?Action=StartVoiceChat", {"SceneID": "Custom", "RoomID": "a\0"}, 404, "room_not_found"),
        ("/proxy?Action=StartVoiceChat&Version=2024", {"SceneID": "Custom"}, 400, "bad_request"),
        ("/proxy?Action=StartVoiceChat&Version=2024-12-01%26a", {"SceneID": "Custom"}, 400, "bad_request"),
        ("/proxy?Action=StartVoiceChat", b"{", 400, "malformed_json"),
        ("/proxy?Action=StartVoiceChat", b"\xff", 400, "malformed_json"),
        ("/proxy?Action=StartVoiceChat", b"[]", 422, "invalid"),
        ("/getScenes", b"not json", 400, "malformed_json"),
    ],
)
def test_bad_input_is_refused_in_the_callers_shape(
    people: World, scene: VoiceScene, platform: Platform, path: str, body: Any, status: int, reason: str
) -> None:
    server = make_internal_caller(people.acorn, membership=people.bob)

    async def go(alice: Client, java: Client) -> list[httpx.Response]:
        return [await alice.post(path, body), await java.post(path, body)]

    mine, servers = talk(go, bearer(people.alice), server)
    call = path.partition("?")[0].strip("/")
    for answer, expected in ((mine, 200), (servers, status)):
        metadata = answer.json()["ResponseMetadata"]
        assert (answer.status_code, metadata["Action"]) == (expected, call)
        assert (metadata["Error"]["Code"], metadata["Error"]["Reason"]) == (-1, reason)
        assert metadata["RequestId"] == answer.headers["x-request-id"]
    assert platform.calls == []


def test_the_sentence_is_in_the_callers_language(people: World, scene: VoiceScene) -> None:
    async def go(alice: Client) -> str:
        answer = await alice.post("/proxy?Action=X", {}, headers={"Accept-Language": "en"})
        return str(error_of(answer)["Message"])

    assert talk(go, bearer(people.alice)) == (
        "Error: This Action is not supported: it must be StartVoiceChat or StopVoiceChat."
    )


@pytest.mark.parametrize("path", ["/getScenes", "/proxy"])
def test_only_post_is_answered(people: World, path: str) -> None:
    async def go(c: Client) -> httpx.Response:
        return await c._http.get(path)

    answer = talk(go, None)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert error_of(answer)["Reason"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/getScenes", "/proxy"])
def test_a_body_without_measure_is_refused_in_the_envelope_too(people: World, settings: Any, path: str) -> None:
    settings.REQUEST_BODY_MAX_BYTES = 1000

    async def go(alice: Client) -> httpx.Response:
        return await alice.post(path, {"SceneID": "x" * 2000})

    answer = talk(go, bearer(people.alice))
    metadata = answer.json()["ResponseMetadata"]
    assert (answer.status_code, metadata["Action"]) == (413, path.strip("/"))
    assert (metadata["Error"]["Code"], metadata["Error"]["Reason"]) == (-1, "body_too_large")
    assert metadata["RequestId"] == answer.headers["x-request-id"]


def test_a_scene_without_keys_is_left_out_and_a_start_says_what_is_missing(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> tuple[httpx.Response, httpx.Response]:
        await alice.open()
        await db.unit(
            VoiceScene.across_sites.update, app_key_encrypted="", secret_key_encrypted="", callback_base_url=""
        )
        return await alice.post("/getScenes", {}), await alice.start()

    opened, started = talk(go, bearer(people.alice))
    assert error_of(opened)["Message"] == "Error: 语音场景的配置不完整。 缺少 RTC AppKey"
    error = error_of(started)
    assert (started.status_code, error["Reason"]) == (200, "scene_incomplete")
    for lack in ("缺少 RTC AppKey", "缺少账号的 SecretKey", "没有回调地址"):
        assert lack in error["Message"]
    assert platform.calls == []
    assert VoiceSession.across_sites.get().status == "created"


def test_a_scene_that_is_off_is_neither_shown_nor_started_but_can_be_stopped(
    people: World, scene: VoiceScene, platform: Platform
) -> None:
    async def go(alice: Client) -> list[httpx.Response]:
        await alice.open()
        await alice.start()
        await db.unit(VoiceScene.across_sites.update, is_active=False)
        return [await alice.post("/getScenes", {}), await alice.start(), await alice.stop()]

    shown, started, stopped = talk(go, bearer(people.alice))
    assert shown.json()["Result"] == {"scenes": []}
    assert error_of(started)["Reason"] == "scene_not_found"
    assert (stopped.json()["Result"], platform.running) == ("ok", {})


def test_who_asks_too_often_is_told_to_wait(people: World, scene: VoiceScene, settings: Any) -> None:
    settings.THROTTLE_SENDS_PER_MINUTE = 3

    async def go(alice: Client) -> list[httpx.Response]:
        return [await alice.post("/getScenes", {}) for _ in range(5)]

    answers = talk(go, bearer(people.alice))
    limited = [answer for answer in answers if answer.status_code == 429]
    assert limited and error_of(limited[0])["Reason"] == "throttled"
