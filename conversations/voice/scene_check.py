"""What is missing in a scene, in words for whoever can mend it: admin, `manage.py check_scene`, a failed start."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from conversations.errors import Language
from conversations.models import VoiceScene
from conversations.models.voice import RTC_ID
from conversations.voice.scenes import (
    CALLBACK_PATH,
    CUSTOM_LLM,
    callback_url,
    field_of,
    llm_config,
    section_of,
    uses_callback,
)
from providers.errors import Misconfigured
from providers.rtc.client import endpoint_url
from providers.rtc.tokens import APP_ID_CHARS

Level = Literal["error", "warning"]

# Code → level, whether a room cannot even be tried with it, Chinese, English.
_PROBLEMS: Mapping[str, tuple[Level, bool, str, str]] = {
    "no_app_id": ("error", True, "缺少 RTC AppId（应为 24 位字符）", "the RTC AppId is missing (24 characters)"),
    "no_app_key": ("error", True, "缺少 RTC AppKey", "the RTC AppKey is missing"),
    "no_access_key_id": ("error", True, "缺少账号的 AccessKey ID", "the account's access key id is missing"),
    "no_secret_key": ("error", True, "缺少账号的 SecretKey", "the account's secret key is missing"),
    "unreadable_key": (
        "error",
        True,
        "已存的密钥无法解密，请重新填写或恢复 SECRET_KEYS",
        "a stored key cannot be decrypted: enter it again, or restore SECRET_KEYS",
    ),
    "bad_base_url": ("error", True, "RTC OpenAPI 地址无效", "the address of the RTC OpenAPI cannot be used"),
    "bad_version": ("error", True, "API 版本应形如 2024-12-01", "the API version is a date such as 2024-12-01"),
    "no_callback_key": ("error", True, "缺少回调密钥", "the callback key is missing"),
    "no_callback_url": (
        "error",
        True,
        "没有回调地址：请设置 VOICE_CALLBACK_BASE_URL 或场景的公网地址",
        "there is no callback URL: set VOICE_CALLBACK_BASE_URL, or the scene's public base URL",
    ),
    "bad_callback_url": ("error", True, "回调地址不是有效的 http(s) URL", "the callback URL is no http(s) URL"),
    "http_callback": (
        "error",
        False,
        '回调地址是 http，而 LLMConfig 没有 Feature {"Http":true}：平台不会调用它',
        'the callback is plain http, and LLMConfig has no Feature {"Http":true}: the platform will not call it',
    ),
    "plain_callback": ("warning", False, "回调地址不是 https", "the callback is not https"),
    "private_callback": (
        "warning",
        False,
        "回调地址是本机或内网地址，平台无法访问",
        "the callback has a private address, which the platform cannot reach",
    ),
    "url_elsewhere": (
        "warning",
        False,
        f"VoiceChat 里的 Url 不以 {CALLBACK_PATH} 结尾：回调可能不会到达本服务",
        f"the Url in VoiceChat does not end in {CALLBACK_PATH}: calls may not arrive here",
    ),
    "url_overruled": (
        "warning",
        False,
        "VoiceChat 里的 Url 不会使用：以公网地址的设置为准",
        "the Url in VoiceChat is not used: the public base URL is set",
    ),
    "not_custom_llm": (
        "warning",
        False,
        f"LLMConfig.Mode 不是 {CUSTOM_LLM}：模型由平台调用，本服务不参与回答",
        f"LLMConfig.Mode is not {CUSTOM_LLM}: the platform calls its own model, and replies are not ours",
    ),
    "no_asr": ("warning", False, "缺少 Config.ASRConfig", "Config.ASRConfig is missing"),
    "no_tts": ("warning", False, "缺少 Config.TTSConfig", "Config.TTSConfig is missing"),
    "bad_bot_id": (
        "warning",
        False,
        "AgentConfig.UserId 不符合 RTC 的命名规则，每个房间会另起一个名字",
        "AgentConfig.UserId is no RTC id: every room gets a name of its own for the bot",
    ),
    "bot_is_the_user": (
        "warning",
        False,
        "AgentConfig.UserId 与 TargetUserId 相同：机器人与用户不能同名（启动时会换成新的用户）",
        "AgentConfig.UserId equals TargetUserId: bot and user must differ (a start names a fresh user)",
    ),
    "several_targets": (
        "warning",
        False,
        "TargetUserId 须是恰好一个用户的列表（启动时会改写）",
        "TargetUserId is a list of exactly one user (a start overwrites it)",
    ),
    "placeholder": ("warning", False, "仍是示例占位符：{where}", "still a placeholder: {where}"),
}
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}\Z", re.ASCII)
_PLACEHOLDER = re.compile(r"(your|<|xxx|\*\*\*|请填)", re.IGNORECASE)
# Only there: a welcome may begin with "Your assistant".
_NAMES_SOMETHING = re.compile(r"(id|key|token|url|type)\Z", re.IGNORECASE)
_PLACEHOLDERS_MAX = 5


@dataclass(frozen=True, slots=True)
class SceneProblem:
    """One thing that is wrong with a scene; `stops_start` when a room cannot even be tried."""

    code: str
    level: Level
    stops_start: bool
    zh: str
    en: str

    def text(self, language: Language) -> str:
        """Return the sentence in one language."""
        return self.en if language == "en" else self.zh


def check_scene(scene: VoiceScene) -> list[SceneProblem]:
    """Return what is wrong with a scene, errors first; empty when nothing is known to be."""
    found = [_problem(*each) for each in (*_of_keys(scene), *_of_callback(scene), *_of_body(scene))]
    return sorted(found, key=lambda problem: problem.level != "error")


def is_version(text: str) -> bool:
    """Return whether this is the name of an API version."""
    return bool(_VERSION.match(text))


def _problem(code: str, where: str = "") -> SceneProblem:
    level, stops_start, zh, en = _PROBLEMS[code]
    return SceneProblem(code, level, stops_start, zh.replace("{where}", where), en.replace("{where}", where))


def _of_keys(scene: VoiceScene) -> Iterator[tuple[str, str]]:
    if len(scene.rtc_app_id) != APP_ID_CHARS or not scene.rtc_app_id.isascii():
        yield "no_app_id", ""
    wanted = ["app_key", "access_key_id", "secret_key", *(["callback_key"] if uses_callback(scene) else [])]
    for name in wanted:
        try:
            is_there = bool(scene.secret(name))
        except Misconfigured:
            yield "unreadable_key", ""
            continue
        if not is_there:
            yield f"no_{name}", ""
    try:
        endpoint_url(scene.base_url)
    except Misconfigured:
        yield "bad_base_url", ""
    if not is_version(scene.version):
        yield "bad_version", ""


def _of_callback(scene: VoiceScene) -> Iterator[tuple[str, str]]:
    if not uses_callback(scene):
        yield "not_custom_llm", ""
        return
    url = callback_url(scene, "room")
    if not url:
        yield "no_callback_url", ""
        return
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        yield "bad_callback_url", ""
        return
    if parts.scheme == "http":
        yield ("plain_callback" if _allows_http(llm_config(scene)) else "http_callback"), ""
    if _is_private(host):
        yield "private_callback", ""
    written = field_of(llm_config(scene), "Url")
    if isinstance(written, str) and written.strip() and written.partition("?")[0] != url.partition("?")[0]:
        yield "url_overruled", ""
    elif not parts.path.rstrip("/").endswith(CALLBACK_PATH):
        yield "url_elsewhere", ""


def _of_body(scene: VoiceScene) -> Iterator[tuple[str, str]]:
    body = scene.voice_chat if isinstance(scene.voice_chat, dict) else {}
    config, agent = section_of(body, "Config"), section_of(body, "AgentConfig")
    if not section_of(config, "ASRConfig"):
        yield "no_asr", ""
    if not section_of(config, "TTSConfig"):
        yield "no_tts", ""
    bot, targets = field_of(agent, "UserId"), field_of(agent, "TargetUserId")
    if bot and not (isinstance(bot, str) and re.fullmatch(RTC_ID, bot)):
        yield "bad_bot_id", ""
    if isinstance(targets, list):
        if bot and bot in targets:
            yield "bot_is_the_user", ""
        if len(targets) != 1:
            yield "several_targets", ""
    elif targets is not None:
        yield "several_targets", ""
    for number, where in enumerate(_placeholders(body, "VoiceChat")):
        if number == _PLACEHOLDERS_MAX:
            return
        yield "placeholder", where


def _placeholders(value: Any, where: str) -> Iterator[str]:
    """Yield where a text of the vendor's example was left as it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _placeholders(inner, f"{where}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _placeholders(inner, f"{where}[{number}]")
    elif isinstance(value, str) and _NAMES_SOMETHING.search(where) and _PLACEHOLDER.match(value):
        yield where


def _allows_http(llm: Mapping[str, Any]) -> bool:
    feature = field_of(llm, "Feature")
    if isinstance(feature, str):
        try:
            feature = json.loads(feature)
        except ValueError:
            return False
    return isinstance(feature, dict) and feature.get("Http") is True


def _is_private(host: str) -> bool:
    if host == "localhost" or host.endswith(".local"):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False
