"""Voice in the admin: keys go in and never come out, files in and out, rooms that staff end, callers' secrets."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from conversations.models import InternalCaller, User, VoiceScene, VoiceSession
from providers.fields import secret_of
from tests.conversations.admin.people import client_of, make_manager
from tests.world import (
    VOICE_SECRETS,
    World,
    make_internal_caller,
    make_voice_scene,
    make_voice_session,
)

LIST = "/admin/conversations/voicescene/"
SECRET = "0123456789abcdef0123456789abcdef-first"


@pytest.fixture
def manager(world: World) -> Client:
    return client_of(make_manager(world.acorn, "erin").user)


@pytest.fixture
def root(world: World) -> Client:
    return client_of(User.objects.create(username="root", is_staff=True, is_superuser=True))


def scene_form(**changes: Any) -> dict[str, Any]:
    """A scene as the form sends it."""
    given = {
        "key": "Custom",
        "name": "自定义助手",
        "icon": "",
        "is_active": "on",
        "rtc_app_id": "661e0000000000000000543c",
        "base_url": "https://rtc.volcengineapi.com/",
        "region": "cn-north-1",
        "version": "2024-12-01",
        "callback_base_url": "https://chat.example.com/",
        "max_minutes": "",
        "voice_chat": json.dumps({"Config": {"LLMConfig": {"Mode": "CustomLLM"}}}),
        "scene_config": "{}",
        **{name: "" for name in ("access_key_id", "secret_key", "app_key")},
    }
    return {**given, **changes}


def errors_of(answer: Any) -> dict[str, Any]:
    return (
        dict(answer.context["adminform"].form.errors) if answer.context and "adminform" in answer.context else {}
    )


def test_a_manager_makes_a_scene_of_their_own_site(world: World, manager: Client) -> None:
    keys = {name: VOICE_SECRETS[name] for name in ("access_key_id", "secret_key", "app_key")}
    answer = manager.post(LIST + "add/", scene_form(site=world.acorn.pk, **keys))
    assert (answer.status_code, errors_of(answer)) == (302, {})
    scene = VoiceScene.objects.for_site(world.acorn).get()
    assert {name: scene.secret(name).reveal() for name in keys} == keys
    assert len(scene.secret("callback_key").reveal()) > 40
    assert (scene.base_url, scene.callback_base_url) == (
        "https://rtc.volcengineapi.com",
        "https://chat.example.com",
    )
    answer = manager.post(LIST + "add/", scene_form(site=world.birch.pk, key="Theirs"))
    assert "site" in errors_of(answer)


def test_keys_go_in_and_never_come_out(world: World, manager: Client) -> None:
    scene = make_voice_scene(world.acorn)
    url = f"{LIST}{scene.pk}/change/"
    pages = [manager.get(url), manager.get(LIST), manager.get(f"{LIST}{scene.pk}/history/")]
    pages.append(manager.post(url, scene_form(name="", app_key="new-app-key-0123456789", secret_key="with blank")))
    assert set(errors_of(pages[-1])) == {"name", "secret_key"}
    text = "".join(page.content.decode() for page in pages)
    shown = [*VOICE_SECRETS.values(), "new-app-key-0123456789", "with blank", scene.app_key_encrypted]
    assert [secret for secret in shown if secret in text] == []
    assert scene.app_key_mask in text


def test_an_empty_key_field_keeps_what_is_stored(world: World, manager: Client) -> None:
    scene = make_voice_scene(world.acorn)
    url = f"{LIST}{scene.pk}/change/"
    assert errors_of(manager.post(url, scene_form(app_key="new-app-key-0123456789"))) == {}
    scene.refresh_from_db()
    assert scene.secret("app_key").reveal() == "new-app-key-0123456789"
    assert scene.secret("secret_key").reveal() == VOICE_SECRETS["secret_key"]
    assert scene.secret("callback_key").reveal() == VOICE_SECRETS["callback_key"]
    assert errors_of(manager.post(url, scene_form(new_callback_key="on"))) == {}
    scene.refresh_from_db()
    assert scene.secret("callback_key").reveal() != VOICE_SECRETS["callback_key"]
    assert scene.secret("previous_callback_key").reveal() == VOICE_SECRETS["callback_key"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "a b"),
        ("base_url", "rtc.volcengineapi.com"),
        ("base_url", "https://u:p@rtc.volcengineapi.com"),
        ("callback_base_url", "chat.example.com"),
        ("callback_base_url", "https://chat.example.com/?a=1"),
        ("voice_chat", "[]"),
        ("voice_chat", "{"),
        ("voice_chat", '{"a":"\\u0000"}'),
        ("scene_config", '"x"'),
        ("max_minutes", "0"),
        ("max_minutes", "1441"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(world: World, manager: Client, field: str, value: str) -> None:
    answer = manager.post(LIST + "add/", scene_form(site=world.acorn.pk, **{field: value}))
    assert list(errors_of(answer)) == [field]
    assert VoiceScene.across_sites.count() == 0


def test_the_page_says_what_is_missing(world: World, manager: Client) -> None:
    scene = make_voice_scene(world.acorn, callback_base_url="", secrets={"app_key": ""})
    page = manager.get(f"{LIST}{scene.pk}/change/").content.decode()
    assert "缺少 RTC AppKey" in page and "没有回调地址" in page
    listed = manager.get(LIST).content.decode()
    assert "不完整" in listed and 'id="scene-import"' in listed


def upload(client: Client, site: int, document: Any, name: str = "客服.json", **more: str) -> Any:
    file = SimpleUploadedFile(name, json.dumps(document).encode(), content_type="application/json")
    return client.post(LIST + "import/", {"site": str(site), "file": file, **more}, follow=True)


DOCUMENT = {"SceneConfig": {"name": "客服"}, "VoiceChat": {"Config": {"LLMConfig": {"Mode": "CustomLLM"}}}}


def test_a_file_makes_a_scene_and_changes_it(world: World, manager: Client) -> None:
    upload(manager, world.acorn.pk, DOCUMENT)
    page = upload(manager, world.acorn.pk, {**DOCUMENT, "SceneConfig": {"name": "新客服"}})
    scene = VoiceScene.objects.for_site(world.acorn).get()
    assert (scene.key, scene.name) == ("客服", "新客服")
    assert "已按文件修改" in page.content.decode()
    upload(manager, world.acorn.pk, DOCUMENT, key="other")
    assert VoiceScene.objects.for_site(world.acorn).count() == 2


@pytest.mark.parametrize(
    ("document", "name", "words"), [([], "a.json", "VoiceChat"), (DOCUMENT, "a b.json", "场景标识无效")]
)
def test_a_file_that_is_no_scene_changes_nothing(
    world: World, manager: Client, document: Any, name: str, words: str
) -> None:
    assert words in upload(manager, world.acorn.pk, document, name).content.decode()
    assert VoiceScene.across_sites.count() == 0


@pytest.mark.parametrize("site", ["birch", "nothing"])
def test_a_file_cannot_go_into_another_site(world: World, manager: Client, site: str) -> None:
    upload(manager, world.birch.pk if site == "birch" else 0, DOCUMENT)
    assert VoiceScene.across_sites.count() == 0


def test_scenes_are_exported_without_keys(world: World, manager: Client) -> None:
    scenes = [make_voice_scene(world.acorn, key) for key in ("客服", "导购")]
    theirs = make_voice_scene(world.birch)

    def export(*rows: VoiceScene) -> Any:
        chosen = [str(row.pk) for row in rows]
        return manager.post(LIST, {"action": "export_files", "_selected_action": chosen})

    one = export(scenes[0], theirs)
    document = json.loads(one.content)
    assert document["RTCConfig"] == {
        "AppId": "661e0000000000000000543c",
        "AppKey": "",
        "RoomId": "",
        "UserId": "",
        "Token": "",
    }
    assert "acorn-%E5%AE%A2%E6%9C%8D.json" in one["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(export(*scenes).content)) as archive:
        assert sorted(archive.namelist()) == ["acorn-客服.json", "acorn-导购.json"]
        text = one.content.decode() + "".join(archive.read(name).decode() for name in archive.namelist())
    assert [secret for secret in VOICE_SECRETS.values() if secret in text] == []


def test_staff_end_the_rooms_of_their_site(world: World, manager: Client) -> None:
    mine = make_voice_session(make_voice_scene(world.acorn), world.alice)
    over = make_voice_session(mine.scene, world.alice, status="stopped", stop_due_at=None)
    theirs = make_voice_session(make_voice_scene(world.birch), world.carol)
    url = "/admin/conversations/voicesession/"
    chosen = [str(row.pk) for row in (mine, over, theirs)]
    page = manager.post(url, {"action": "stop_rooms", "_selected_action": chosen}, follow=True)
    assert "将停止 1 个房间" in page.content.decode()
    due = {row.pk: (row.stopped_by, row.stop_due_at) for row in VoiceSession.across_sites.all()}
    assert due[mine.pk][0] == "staff" and due[mine.pk][1] < mine.stop_due_at
    assert (due[over.pk], due[theirs.pk]) == (("", None), ("", theirs.stop_due_at))
    detail = manager.get(f"{url}{mine.pk}/change/").content.decode()
    assert mine.room_id in detail and mine.task_id in detail
    assert manager.post(f"{url}{mine.pk}/change/", {"status": "stopped"}).status_code == 403


def caller_form(world: World, **changes: Any) -> dict[str, Any]:
    given = {"site": world.acorn.pk, "key_id": "java-mock", "name": "", "membership": "", "is_active": "on"}
    return {**given, "secret": SECRET, **changes}


CALLERS = "/admin/conversations/internalcaller/"


def test_a_superuser_makes_a_caller_and_changes_its_secret_in_two_steps(world: World, root: Client) -> None:
    assert errors_of(root.post(CALLERS + "add/", caller_form(world, membership=world.alice.pk))) == {}
    caller = InternalCaller.objects.for_site(world.acorn).get()
    url = f"{CALLERS}{caller.pk}/change/"
    second = "fedcba9876543210fedcba9876543210-second"

    def secrets() -> list[str]:
        caller.refresh_from_db()
        return [secret_of(caller, name).reveal() for name in ("secret", "previous_secret")]

    assert secrets() == [SECRET, ""]
    assert errors_of(root.post(url, caller_form(world, secret=second))) == {}
    assert secrets() == [second, SECRET]
    page = root.get(url).content.decode()
    assert SECRET not in page and second not in page and caller.secret_mask in page
    assert errors_of(root.post(url, caller_form(world, secret="", drop_previous="on"))) == {}
    assert secrets() == [second, ""]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"secret": ""}, "secret"),
        ({"secret": "short"}, "secret"),
        ({"secret": "x" * 40 + " y"}, "secret"),
        ({"key_id": "a b"}, "key_id"),
        ({"membership": "carol"}, "membership"),
    ],
)
def test_a_caller_needs_a_long_secret_and_a_member_of_its_site(
    world: World, root: Client, changes: dict[str, Any], field: str
) -> None:
    if "membership" in changes:
        changes = {"membership": world.carol.pk}
    answer = root.post(CALLERS + "add/", caller_form(world, **changes))
    assert list(errors_of(answer)) == [field]
    assert InternalCaller.across_sites.count() == 0


def test_a_manager_sees_the_callers_of_their_site_and_changes_none(world: World, manager: Client) -> None:
    caller = make_internal_caller(world.acorn, name="Java 后端")
    page = manager.get(f"{CALLERS}{caller.pk}/change/")
    assert page.status_code == 200 and "Java 后端" in page.content.decode()
    assert manager.post(f"{CALLERS}{caller.pk}/change/", caller_form(world)).status_code == 403
    assert manager.get(CALLERS + "add/").status_code == 403
