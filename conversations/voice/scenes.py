"""What a scene tells the platform and the front end. Pure functions on rows; nothing here talks to anybody.

`VoiceChat` is the vendor's body and opaque: what we inject goes into a deep copy, all else passes untouched.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from django.conf import settings

from conversations.models import VoiceScene, VoiceSession, site_setting
from conversations.models.voice import RTC_ID
from conversations.voice.callback import CALLBACK_PATH
from providers.fields import keep_secret, move_secret
from providers.rtc.client import RtcAccount

CUSTOM_LLM = "CustomLLM"

_RTC_ID = re.compile(RTC_ID + r"\Z")


def account_of(scene: VoiceScene, *, version: str | None = None) -> RtcAccount:
    """Return whose keys sign the calls of a scene, and where they go.

    Raises: providers.errors.Misconfigured, when a stored key cannot be read.
    """
    return RtcAccount(
        access_key_id=scene.secret("access_key_id"),
        secret_key=scene.secret("secret_key"),
        base_url=scene.base_url,
        region=scene.region,
        version=version or scene.version,
    )


def start_body(scene: VoiceScene, session: VoiceSession) -> dict[str, Any]:
    """Return the body of StartVoiceChat for one room: the scene's own, with what only we can know.

    Injected: AppId, RoomId, TaskId, AgentConfig.TargetUserId and UserId; and, where our callback is the model
    (LLMConfig.Mode CustomLLM), LLMConfig.Url with the room, and APIKey. A field that the scene spells otherwise
    (URL, UserID) keeps its spelling.
    """
    body = copy.deepcopy(scene.voice_chat) if isinstance(scene.voice_chat, dict) else {}
    _set(body, "AppId", scene.rtc_app_id)
    _set(body, "RoomId", session.room_id)
    _set(body, "TaskId", session.task_id)
    agent = _section(body, "AgentConfig")
    _set(agent, "TargetUserId", [session.user_id])
    _set(agent, "UserId", session.bot_id)
    if uses_callback(scene):
        llm = llm_section(body)
        _set(llm, "Url", callback_url(scene, session.room_id))
        _set(llm, "APIKey", scene.secret("callback_key").reveal())
    return body


def llm_section(body: dict[str, Any]) -> dict[str, Any]:
    """Return the LLMConfig inside a body of our own, to be changed."""
    return _section(_section(body, "Config"), "LLMConfig")


def task_body(scene: VoiceScene, session: VoiceSession) -> dict[str, Any]:
    """Return the body of StopVoiceChat, which is also the beginning of UpdateVoiceChat's."""
    return {"AppId": scene.rtc_app_id, "RoomId": session.room_id, "TaskId": session.task_id}


def front_end_scene(scene: VoiceScene, *, bot_id: str) -> dict[str, Any]:
    """Return what the vendor's front end shows of a scene; what the scene does not say is absent (WIRE 2.4)."""
    config = section_of(scene.voice_chat, "Config")
    vision = section_of(section_of(config, "LLMConfig"), "VisionConfig")
    avatar = section_of(config, "AvatarConfig")
    shown = {
        **scene.scene_config,
        "id": scene.key,
        "name": scene.name,
        "icon": scene.icon,
        "botName": bot_id,
        "isInterruptMode": _is_number(field_of(config, "InterruptMode"), 0),
        "isScreenMode": _is_number(field_of(section_of(vision, "SnapshotConfig"), "StreamType"), 1),
    }
    for name, value in (
        ("isVision", field_of(vision, "Enable")),
        ("isAvatarScene", field_of(avatar, "Enabled")),
        ("avatarBgUrl", field_of(avatar, "BackgroundUrl")),
    ):
        if value is not None:
            shown[name] = value
    return shown


def bot_id_of(scene: VoiceScene) -> str:
    """Return the name of the bot in the scene's rooms: its own, or a new one when it has none that can be used."""
    wanted = field_of(section_of(scene.voice_chat, "AgentConfig"), "UserId")
    if isinstance(wanted, str) and _RTC_ID.match(wanted):
        return wanted
    return f"bot-{secrets.token_hex(8)}"


def uses_callback(scene: VoiceScene) -> bool:
    """Return whether the scene's model is our callback."""
    return field_of(llm_config(scene), "Mode") == CUSTOM_LLM


def llm_config(scene: VoiceScene) -> Mapping[str, Any]:
    """Return the scene's LLMConfig, empty when it has none."""
    return section_of(section_of(scene.voice_chat, "Config"), "LLMConfig")


def callback_url(scene: VoiceScene, room_id: str) -> str:
    """Return where the platform asks for replies in a room; "" when nobody said where this server is.

    The scene's own base URL, or the setting VOICE_CALLBACK_BASE_URL; without either, the Url in the scene's body.
    """
    base = scene.callback_base_url or settings.VOICE_CALLBACK_BASE_URL
    if base:
        return _with_room(base.rstrip("/") + CALLBACK_PATH, room_id)
    written = field_of(llm_config(scene), "Url")
    return _with_room(written.strip(), room_id) if isinstance(written, str) and written.strip() else ""


def max_minutes(scene: VoiceScene) -> int:
    """Return how long a room of this scene may run before it is stopped."""
    return int(scene.max_minutes or site_setting(scene.site, "voice_max_minutes"))


def ensure_callback_key(scene: VoiceScene) -> None:
    """Give a scene without one a key for the platform to show. Does not save."""
    if not scene.callback_key_encrypted:
        keep_secret(scene, "callback_key", secrets.token_urlsafe(32))


def replace_callback_key(scene: VoiceScene, key: str | None = None) -> None:
    """Give a scene a new key; rooms that run keep the one before it. Does not save."""
    if scene.callback_key_encrypted:
        move_secret(scene, "callback_key", "previous_callback_key")
    keep_secret(scene, "callback_key", key or secrets.token_urlsafe(32))


def _with_room(url: str, room_id: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    pairs = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "room_id"]
    query = urlencode([*pairs, ("room_id", room_id)], quote_via=quote, safe="")
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def _spelled(values: Mapping[str, Any], name: str) -> str:
    """Return a field's name as it stands there: the vendor's own pages differ in its capitals (WIRE 2.2)."""
    if name in values:
        return name
    return next((key for key in values if isinstance(key, str) and key.lower() == name.lower()), name)


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    values[_spelled(values, name)] = value


def field_of(values: Mapping[str, Any], name: str) -> Any:
    """Return a field, however it is spelled; None when it is not there."""
    return values.get(_spelled(values, name))


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object inside, made when there is none."""
    key = _spelled(values, name)
    if not isinstance(values.get(key), dict):
        values[key] = {}
    section: dict[str, Any] = values[key]
    return section


def section_of(values: Any, name: str) -> Mapping[str, Any]:
    """Return an object inside, empty when there is none."""
    found = field_of(values, name) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _is_number(value: Any, wanted: int) -> bool:
    """Return what JavaScript's === would say of a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == wanted
