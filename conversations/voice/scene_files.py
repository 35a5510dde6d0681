"""Scene files of the vendor's demo: in and out.

Shape:  {"SceneConfig": {icon, name, …}, "AccountConfig": {accessKeyId, secretKey},
         "RTCConfig": {AppId, AppKey, RoomId, UserId, Token}, "VoiceChat": {…}}    (WIRE 2.4)
A file's name without `.json` is the scene's id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from conversations.models import Site, VoiceScene
from conversations.voice.scenes import ensure_callback_key, llm_section, replace_callback_key, uses_callback
from providers.fields import keep_secret
from providers.types import storable

FILE_MAX_BYTES = 1024 * 1024
SECTIONS = ("SceneConfig", "AccountConfig", "RTCConfig", "VoiceChat")

_VISIBLE = re.compile(r"[\x21-\x7e]{1,4096}\Z")
_KEY = re.compile(r"[^\s/\\\x00-\x1f]{1,100}\Z")


class SceneFileRefused(ValueError):
    """The file is no scene; the text says where and what, in Chinese and English, and never repeats a key."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file: its scene, whether that is new, and what was left out of it."""

    scene: VoiceScene
    is_new: bool
    notes: tuple[str, ...]


def read_scene_file(data: bytes) -> dict[str, Any]:
    """Return the document in a file.

    Raises: SceneFileRefused.
    """
    if len(data) > FILE_MAX_BYTES:
        raise SceneFileRefused("文件超过 1 MiB / the file is larger than 1 MiB")
    try:
        document = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_number)
    except (ValueError, RecursionError) as error:
        raise SceneFileRefused("不是有效的 JSON / not valid JSON") from error
    check_scene_document(document)
    return dict(document)


def check_scene_document(document: object) -> None:
    """Return when this is a scene's document.

    Raises: SceneFileRefused.
    """
    if not isinstance(document, dict) or not isinstance(document.get("VoiceChat"), dict):
        raise SceneFileRefused("缺少 VoiceChat 对象 / there is no VoiceChat object")
    for section in SECTIONS:
        if not isinstance(document.get(section, {}), dict):
            raise SceneFileRefused(f"{section} 应为对象 / {section} must be an object")
    text = json.dumps(document, ensure_ascii=False)
    if storable(text) != text or re.search(r"(?<!\\)(\\\\)*\\u0000", text):
        raise SceneFileRefused("含有无法保存的字符 / there are characters that cannot be stored")


def import_scene(site: Site, key: str, document: Mapping[str, Any]) -> Imported:
    """Return the scene made of a document, or changed by it; all or nothing.

    A key that the document leaves empty, or that holds a blank (the demo's "Your AK"), keeps the stored one. The
    demo's fixed RoomId, UserId and Token are left out: every caller gets their own. LLMConfig.APIKey of a
    CustomLLM becomes the callback key and does not stay in the body.
    Raises: SceneFileRefused.
    """
    check_scene_document(document)
    if not _KEY.match(key):
        raise SceneFileRefused("场景标识无效 / the scene id cannot be used")
    notes: list[str] = []
    with transaction.atomic():
        found = VoiceScene.objects.for_site(site).select_for_update().filter(key=key).first()
        scene = found or VoiceScene(site=site, key=key)
        _take_config(scene, dict(document.get("SceneConfig", {})))
        account, rtc = document.get("AccountConfig", {}), document.get("RTCConfig", {})
        scene.rtc_app_id = _visible(rtc.get("AppId"), 64) or scene.rtc_app_id
        for name, value in (
            ("access_key_id", account.get("accessKeyId")),
            ("secret_key", account.get("secretKey")),
            ("app_key", rtc.get("AppKey")),
        ):
            if secret := _visible(value):
                keep_secret(scene, name, secret)
            elif value:
                notes.append(f"{name}: 含空白或非 ASCII，视为未填 / has blanks or is not ASCII, taken for empty")
        for name in ("RoomId", "UserId", "Token"):
            if rtc.get(name):
                notes.append(
                    f"RTCConfig.{name}: 不使用，每位用户各有其房间 / not used, each caller gets their own"
                )
        scene.voice_chat = json.loads(json.dumps(document["VoiceChat"]))
        if uses_callback(scene):
            llm = llm_section(scene.voice_chat)
            given = next((_visible(llm.pop(name)) for name in list(llm) if name.lower() == "apikey"), "")
            if given and given != scene.secret("callback_key").reveal():
                replace_callback_key(scene, given)
        ensure_callback_key(scene)
        scene.save()
    notes += [f"{name}: 未知，已忽略 / unknown, ignored" for name in document if name not in SECTIONS]
    return Imported(scene, found is None, tuple(notes))


def export_scene(scene: VoiceScene, *, with_keys: bool = False) -> dict[str, Any]:
    """Return the document of a scene; its keys only when asked for.

    Raises: providers.errors.Misconfigured, with keys that cannot be read.
    """

    def key(name: str) -> str:
        return scene.secret(name).reveal() if with_keys else ""

    voice_chat = json.loads(json.dumps(scene.voice_chat))
    if with_keys and uses_callback(scene):
        llm_section(voice_chat)["APIKey"] = key("callback_key")
    return {
        "SceneConfig": {**scene.scene_config, "icon": scene.icon, "name": scene.name},
        "AccountConfig": {"accessKeyId": key("access_key_id"), "secretKey": key("secret_key")},
        "RTCConfig": {
            "AppId": scene.rtc_app_id,
            "AppKey": key("app_key"),
            "RoomId": "",
            "UserId": "",
            "Token": "",
        },
        "VoiceChat": voice_chat,
    }


def _take_config(scene: VoiceScene, config: dict[str, Any]) -> None:
    name, icon = config.pop("name", None), config.pop("icon", None)
    scene.name = (name.strip()[:200] if isinstance(name, str) else "") or scene.name or scene.key
    scene.icon = icon if isinstance(icon, str) else scene.icon
    # What the front end is told about a scene is ours to say.
    for ours in ("id", "botName", "isInterruptMode", "isVision", "isScreenMode", "isAvatarScene", "avatarBgUrl"):
        config.pop(ours, None)
    scene.scene_config = config


def _visible(value: object, most: int = 4096) -> str:
    """Return a key or an id, "" for what cannot be one."""
    return value if isinstance(value, str) and len(value) <= most and _VISIBLE.match(value) else ""


def _refuse_number(name: str) -> None:
    raise ValueError(name)
