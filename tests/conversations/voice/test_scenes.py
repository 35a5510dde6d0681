"""Scenes: what is injected, what the front end sees, what is missing, and files in and out."""

from __future__ import annotations

import json
import stat
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.management import CommandError, call_command

from conversations.models import VoiceScene
from conversations.voice.scene_check import check_scene
from conversations.voice.scene_files import (
    SceneFileRefused,
    check_scene_document,
    export_scene,
    import_scene,
    read_scene_file,
)
from conversations.voice.scenes import bot_id_of, callback_url, front_end_scene, replace_callback_key, start_body
from tests.world import VOICE_SECRETS, World, make_voice_scene, make_voice_session

pytestmark = pytest.mark.django_db

# As the vendor's demo has it (Server/scenes/Custom.json), with our model in place of theirs.
FILE: dict[str, Any] = {
    "SceneConfig": {"icon": "https://x.example/头像.png", "name": "自定义助手", "questions": ["你好？"]},
    "AccountConfig": {"accessKeyId": "AKLT-from-file", "secretKey": "c2VjcmV0LWZyb20tZmlsZQ=="},
    "RTCConfig": {
        "AppId": "661e0000000000000000543c",
        "AppKey": "fedcba9876543210fedcba9876543210",
        "RoomId": "",
        "UserId": "",
        "Token": "",
    },
    "VoiceChat": {
        "AppId": "",
        "RoomId": "",
        "TaskId": "",
        "AgentConfig": {"TargetUserId": [""], "WelcomeMessage": "你好", "UserId": "Bot-1"},
        "Config": {
            "ASRConfig": {"Provider": "volcano", "ProviderParams": {"Mode": "bigmodel", "AppId": "7"}},
            "TTSConfig": {"Provider": "volcano", "ProviderParams": {"app": {"appid": "8"}}, "Extra": [1]},
            "LLMConfig": {"Mode": "CustomLLM", "Url": "", "APIKey": "key-in-the-file-0001", "Custom": '{"a":1}'},
            "InterruptMode": 0,
            "SubtitleConfig": {"SubtitleMode": 1},
        },
    },
}


def codes(scene: VoiceScene) -> list[str]:
    return [problem.code for problem in check_scene(scene)]


def with_llm(scene: VoiceScene, **changes: Any) -> VoiceScene:
    """The scene with another LLMConfig."""
    body = json.loads(json.dumps(scene.voice_chat))
    body["Config"]["LLMConfig"] |= changes
    scene.voice_chat = body
    return scene


# --- what is sent ---


def test_the_vendors_other_spellings_are_kept(world: World) -> None:
    body = {
        "appId": "old",
        "AgentConfig": {"TargetUserID": ["x", "y"], "UserID": "Bot"},
        "Config": {"LLMConfig": {"Mode": "CustomLLM", "URL": "https://old.example/", "ApiKey": "old"}},
        "Unknown": {"Deep": [1, {"Room": None}]},
    }
    scene = make_voice_scene(world.acorn, voice_chat=body)
    session = make_voice_session(scene, world.alice)
    sent = start_body(scene, session)
    assert sent == {
        "appId": scene.rtc_app_id,
        "RoomId": session.room_id,
        "TaskId": session.task_id,
        "AgentConfig": {"TargetUserID": [session.user_id], "UserID": session.bot_id},
        "Config": {
            "LLMConfig": {
                "Mode": "CustomLLM",
                "URL": f"https://chat.example.com/api/chat_callback?room_id={session.room_id}",
                "ApiKey": VOICE_SECRETS["callback_key"],
            }
        },
        "Unknown": {"Deep": [1, {"Room": None}]},
    }


def test_a_start_shares_nothing_with_the_scene_or_another_start(world: World) -> None:
    scene = make_voice_scene(world.acorn)
    before = json.dumps(scene.voice_chat)
    one, other = (start_body(scene, make_voice_session(scene, member)) for member in (world.alice, world.bob))
    one["Config"]["LLMConfig"]["SystemMessages"].append("只给爱丽丝")
    one["AgentConfig"]["TargetUserId"].append("x")
    assert json.dumps(scene.voice_chat) == before
    assert other["Config"]["LLMConfig"]["SystemMessages"] == ["你是小助手。"]
    assert len(other["AgentConfig"]["TargetUserId"]) == 1


def test_a_model_of_the_platforms_own_is_told_nothing_of_our_callback(world: World) -> None:
    llm = {"Mode": "ArkV3", "EndPointId": "ep-1"}
    scene = with_llm(make_voice_scene(world.acorn), **llm)
    sent = start_body(scene, make_voice_session(scene, world.alice))
    assert sent["Config"]["LLMConfig"] == scene.voice_chat["Config"]["LLMConfig"]
    assert VOICE_SECRETS["callback_key"] not in json.dumps(sent)


@pytest.mark.parametrize("body", [{}, {"AgentConfig": "x", "Config": []}, {"Config": {"LLMConfig": None}}])
def test_an_odd_body_is_no_crash(world: World, body: Any) -> None:
    scene = make_voice_scene(world.acorn, voice_chat=body)
    session = make_voice_session(scene, world.alice)
    assert start_body(scene, session)["AgentConfig"] == {"TargetUserId": [session.user_id], "UserId": "ChatBot01"}
    assert front_end_scene(scene, bot_id="b")["isInterruptMode"] is False
    assert "not_custom_llm" in codes(scene)


@pytest.mark.parametrize(
    ("scene_base", "setting", "written", "expected"),
    [
        ("https://a.example/", "https://b.example", "", "https://a.example/api/chat_callback?room_id=1-%E6%88%BF"),
        ("", "https://b.example/app", "", "https://b.example/app/api/chat_callback?room_id=1-%E6%88%BF"),
        ("", "", "https://c.example/x?k=1&room_id=old", "https://c.example/x?k=1&room_id=1-%E6%88%BF"),
        (
            "",
            "https://b.example",
            "https://c.example/x",
            "https://b.example/api/chat_callback?room_id=1-%E6%88%BF",
        ),
        ("", "", "", ""),
    ],
)
def test_where_the_platform_asks(
    world: World, settings: Any, scene_base: str, setting: str, written: str, expected: str
) -> None:
    settings.VOICE_CALLBACK_BASE_URL = setting
    scene = with_llm(make_voice_scene(world.acorn, callback_base_url=scene_base), Url=written)
    assert callback_url(scene, "1-房") == expected


@pytest.mark.parametrize("bot", [None, "", "机器人", "a b", "x" * 129, 5])
def test_a_bot_without_a_usable_name_gets_one_of_its_own(world: World, bot: Any) -> None:
    scene = make_voice_scene(world.acorn, voice_chat={"AgentConfig": {"UserId": bot}})
    assert bot_id_of(scene).startswith("bot-") and bot_id_of(scene) != bot_id_of(scene)


def test_the_front_end_sees_what_the_demo_shows(world: World) -> None:
    body = {
        "Config": {
            "InterruptMode": 1,
            "LLMConfig": {"VisionConfig": {"Enable": False, "SnapshotConfig": {"StreamType": 1}}},
            "AvatarConfig": {
                "Enabled": True,
                "BackgroundUrl": "https://x.example/bg.png",
                "AvatarToken": "geheim",
            },
        }
    }
    scene = make_voice_scene(world.acorn, voice_chat=body, icon="i", scene_config={"questions": ["问"]})
    assert front_end_scene(scene, bot_id="Bot") == {
        "id": "Custom",
        "name": "自定义助手",
        "icon": "i",
        "questions": ["问"],
        "botName": "Bot",
        "isInterruptMode": False,
        "isVision": False,
        "isScreenMode": True,
        "isAvatarScene": True,
        "avatarBgUrl": "https://x.example/bg.png",
    }


def test_a_new_callback_key_leaves_the_one_before_it_good(world: World) -> None:
    scene = make_voice_scene(world.acorn)
    replace_callback_key(scene)
    assert scene.secret("previous_callback_key").reveal() == VOICE_SECRETS["callback_key"]
    assert len(scene.secret("callback_key").reveal()) > 40


# --- what is missing ---


def test_nothing_is_missing_in_a_whole_scene(world: World) -> None:
    assert codes(make_voice_scene(world.acorn)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rtc_app_id": ""}, ["no_app_id"]),
        ({"rtc_app_id": "Your AppId"}, ["no_app_id"]),
        ({"secrets": {"app_key": ""}}, ["no_app_key"]),
        ({"secrets": {"access_key_id": "", "secret_key": ""}}, ["no_access_key_id", "no_secret_key"]),
        ({"secrets": {"callback_key": ""}}, ["no_callback_key"]),
        ({"base_url": "rtc.volcengineapi.com"}, ["bad_base_url"]),
        ({"version": "latest"}, ["bad_version"]),
        ({"callback_base_url": ""}, ["no_callback_url"]),
        ({"callback_base_url": "ftp://chat.example.com"}, ["bad_callback_url"]),
        ({"callback_base_url": "http://chat.example.com"}, ["http_callback"]),
        ({"callback_base_url": "https://127.0.0.1:8000"}, ["private_callback"]),
    ],
)
def test_the_check_names_what_is_missing(world: World, changes: dict[str, Any], expected: list[str]) -> None:
    assert codes(make_voice_scene(world.acorn, **changes)) == expected


@pytest.mark.parametrize(
    ("llm", "base", "expected"),
    [
        ({"Mode": "ArkV3"}, "https://chat.example.com", ["not_custom_llm"]),
        ({"Feature": '{"Http":true}'}, "http://chat.example.com", ["plain_callback"]),
        ({"Feature": '{"Http":false}'}, "http://chat.example.com", ["http_callback"]),
        ({"Feature": "{"}, "http://chat.example.com", ["http_callback"]),
        ({"Url": "https://elsewhere.example/chat"}, "", ["url_elsewhere"]),
        ({"Url": "https://elsewhere.example/api/chat_callback"}, "", []),
        ({"Url": "https://old.example/chat"}, "https://chat.example.com", ["url_overruled"]),
        ({"ModelName": "Your Model", "EndPointId": "Your Id"}, "https://chat.example.com", ["placeholder"]),
    ],
)
def test_the_check_reads_the_models_part(
    world: World, llm: dict[str, Any], base: str, expected: list[str]
) -> None:
    assert codes(with_llm(make_voice_scene(world.acorn, callback_base_url=base), **llm)) == expected


def test_the_check_reads_the_bot_and_the_user(world: World) -> None:
    scene = make_voice_scene(world.acorn)
    scene.voice_chat["AgentConfig"] |= {"UserId": "same", "TargetUserId": ["same", "other"]}
    assert codes(scene) == ["bot_is_the_user", "several_targets"]
    scene.voice_chat = {"AgentConfig": {"UserId": "机器人"}, "Config": {"LLMConfig": {"Mode": "CustomLLM"}}}
    assert codes(scene) == ["no_asr", "no_tts", "bad_bot_id"]


def test_a_key_that_cannot_be_read_is_named_without_its_ciphertext(world: World) -> None:
    scene = make_voice_scene(world.acorn)
    scene.app_key_encrypted = "gAAAAA-not-ours"
    (problem,) = check_scene(scene)
    assert (problem.code, problem.level, problem.stops_start) == ("unreadable_key", "error", True)
    assert "gAAAAA" not in problem.zh + problem.en


# --- files ---


def test_a_file_comes_in_and_goes_out_as_it_was(world: World) -> None:
    done = import_scene(world.acorn, "Custom", FILE)
    scene = VoiceScene.objects.for_site(world.acorn).get()
    assert (done.is_new, done.notes, scene.key, scene.name) == (True, (), "Custom", "自定义助手")
    assert "key-in-the-file-0001" not in json.dumps(scene.voice_chat)
    assert export_scene(scene, with_keys=True) == FILE
    without = export_scene(scene)
    assert without["AccountConfig"] == {"accessKeyId": "", "secretKey": ""}
    assert without["RTCConfig"]["AppKey"] == ""
    text = json.dumps(without)
    secrets = ("AKLT-from-file", "c2VjcmV0", "fedcba98", "key-in-the-file-0001")
    assert [secret for secret in secrets if secret in text] == []


def test_a_file_without_keys_keeps_those_there_are(world: World) -> None:
    import_scene(world.acorn, "Custom", FILE)
    without = export_scene(VoiceScene.objects.for_site(world.acorn).get())
    done = import_scene(world.acorn, "Custom", without | {"SceneConfig": {"name": "新名字"}})
    scene = VoiceScene.objects.for_site(world.acorn).get()
    assert (done.is_new, scene.name, scene.icon) == (False, "新名字", "https://x.example/头像.png")
    assert export_scene(scene, with_keys=True)["AccountConfig"] == FILE["AccountConfig"]
    assert scene.secret("callback_key").reveal() == "key-in-the-file-0001"


def test_the_demos_placeholders_and_fixed_rooms_are_left_out_and_said(world: World) -> None:
    document = {
        **FILE,
        "AccountConfig": {"accessKeyId": "Your AK", "secretKey": "您的密钥"},
        "RTCConfig": {"AppId": "Your AppId", "AppKey": "", "RoomId": "Room1", "UserId": "User1", "Token": "001…"},
        "Extra": {},
    }
    done = import_scene(world.acorn, "Custom", document)
    assert len(done.notes) == 6
    assert (done.scene.access_key_id_encrypted, done.scene.rtc_app_id) == ("", "")
    assert {"no_app_id", "no_app_key", "no_access_key_id", "no_secret_key"} <= set(codes(done.scene))
    text = " ".join(done.notes)
    assert "Your AK" not in text and "您的密钥" not in text


def test_a_scene_without_a_callback_key_gets_one(world: World) -> None:
    document = json.loads(json.dumps(FILE))
    del document["VoiceChat"]["Config"]["LLMConfig"]["APIKey"]
    done = import_scene(world.acorn, "Custom", document)
    assert len(done.scene.secret("callback_key").reveal()) > 40


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"VoiceChat":[]}',
        b'{"VoiceChat":{},"RTCConfig":[]}',
        b"\xff",
        b'{"VoiceChat":{"a":NaN}}',
        b'{"VoiceChat":{"a":"\\u0000"}}',
        b'{"VoiceChat":{"a":"\\ud800"}}',
        b" " * (1024 * 1024 + 1),
        b"[" * 100_000,
    ],
    ids=range(11),
)
def test_a_file_that_is_no_scene_is_refused(data: bytes) -> None:
    with pytest.raises(SceneFileRefused):
        read_scene_file(data)


@pytest.mark.parametrize("key", ["", "a b", "a/b", "..\\x", "x" * 101, "a\n"])
def test_a_scene_needs_a_usable_id(world: World, key: str) -> None:
    with pytest.raises(SceneFileRefused):
        import_scene(world.acorn, key, FILE)
    assert VoiceScene.across_sites.count() == 0


def test_text_that_only_looks_like_nul_is_text() -> None:
    check_scene_document({"VoiceChat": {"a": "什么是 \\u0000？"}})


# --- commands ---


def run(*arguments: str, **options: Any) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out, **options)
    return out.getvalue()


def test_scenes_go_through_the_commands(world: World, tmp_path: Path) -> None:
    source, target = tmp_path / "客服.json", tmp_path / "out.json"
    source.write_text("\ufeff" + json.dumps(FILE, ensure_ascii=False), encoding="utf-8")
    said = run("import_scene", "acorn", str(source))
    assert said.startswith("+ 客服\n")
    assert "! no_callback_url" in said
    assert json.loads(run("export_scene", "acorn", "客服"))["AccountConfig"]["secretKey"] == ""
    run("export_scene", "acorn", "客服", "--with-keys", "--output", str(target))
    assert json.loads(target.read_text(encoding="utf-8")) == FILE
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run("import_scene", "acorn", str(source)).startswith("= 客服\n")


def test_the_commands_say_what_is_wrong_and_change_nothing(world: World, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(FILE), encoding="utf-8")
    bad.write_text("{}", encoding="utf-8")
    for arguments, words in (
        (("import_scene", "acorn", str(good), str(bad)), "VoiceChat"),
        (("import_scene", "nowhere", str(good)), "Known: acorn, birch"),
        (("import_scene", "acorn", str(tmp_path / "none.json")), "Nothing was imported"),
        (("import_scene", "acorn", str(good), str(bad), "--key", "x"), "single file"),
        (("export_scene", "acorn", "none"), "no scene"),
        (("export_scene", "acorn", "none", "--with-keys"), "--output"),
        (("check_scene", "acorn", "none"), "no scene"),
    ):
        with pytest.raises(CommandError, match=words):
            run(*arguments)
    assert VoiceScene.across_sites.count() == 0


def test_check_scene_fails_on_errors_alone(world: World) -> None:
    make_voice_scene(world.acorn, "good")
    assert run("check_scene", "acorn") == "good: ok\n"
    make_voice_scene(world.acorn, "poor", callback_base_url="")
    with pytest.raises(CommandError, match="1 errors"):
        run("check_scene", "acorn")
    assert run("check_scene", "acorn", "good") == "good: ok\n"


# --- system checks ---


def found() -> list[CheckMessage]:
    return [
        message for message in run_checks(databases=["default"]) if str(message.id).startswith("conversations.")
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", []),
        ("https://chat.example.com/app", []),
        ("http://chat.example.com", ["conversations.W001"]),
        ("chat.example.com", ["conversations.E001"]),
        ("https://chat.example.com/?a=1", ["conversations.E001"]),
        ("https://[", ["conversations.E001"]),
    ],
)
def test_the_setting_is_checked(db: None, settings: Any, url: str, expected: list[str]) -> None:
    settings.VOICE_CALLBACK_BASE_URL = url
    assert [message.id for message in found()] == expected


def test_scenes_that_nobody_could_call_back_are_reported(world: World, settings: Any) -> None:
    settings.VOICE_CALLBACK_BASE_URL = ""
    make_voice_scene(world.acorn, "good")
    with_llm(make_voice_scene(world.acorn, "other model", callback_base_url=""), Mode="ArkV3").save()
    assert found() == []
    make_voice_scene(world.birch, "lost", callback_base_url="")
    (message,) = found()
    assert (message.id, "birch/lost" in message.msg, "other" in message.msg) == ("conversations.W002", True, False)
    settings.VOICE_CALLBACK_BASE_URL = "https://chat.example.com"
    assert found() == []
