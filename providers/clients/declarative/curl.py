"""A first configuration out of a curl command, as vendors' documents show them. No key is kept."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from providers.clients.declarative.configs import load
from providers.clients.declarative.schema import STANDARD_PARAMS

MODEL_WAS = "the model was "
_TAKEN = "what looks like a key became ${api_key}"
_MAX_CHARS = 64 * 1024
_WITH_VALUE = frozenset(
    {"-o", "--output", "-A", "--user-agent", "-e", "--referer", "-m", "--max-time", "--connect-timeout", "-b",
     "--cookie", "-c", "--cookie-jar", "-x", "--proxy", "--retry", "--cacert", "-w", "--write-out"}
)  # fmt: skip
_DATA = frozenset({"-d", "--data", "--data-raw", "--data-binary", "--data-ascii", "--json"})
_SECRET_NAMES = frozenset(
    {"authorization", "api-key", "x-api-key", "x-goog-api-key", "apikey", "api_key", "key", "token",
     "access_token", "secret", "x-auth-token", "x-token", "app-key", "x-app-key"}
)  # fmt: skip
# What keys look like, wherever they stand: a vendor's prefix, a JSON web token, id.secret, a long word.
_KEY = re.compile(
    r"(?:\b(?:sk|pk|ak|rk|ck|key|tok|token|app|pat|gsk|xai|bce|hf|ghp|r8)[-_][A-Za-z0-9_+/=.-]{12,}"
    r"|\bAIza[\w-]{16,}|\bLTAI\w{10,}|\bAK(?:IA|LT)\w{12,}|\beyJ[\w-]{8,}\.[\w-]+"
    r"|\b[0-9a-f]{32}\.[A-Za-z0-9]{12,}|\bBearer\s+(?!\$\{)\S{8,}"
    r"|(?<![A-Za-z0-9])(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{24,})"
)
_SECRET_PART = re.compile(r"(key|token|secret|passw|auth|sign|cookie|credential)")
_DROPPED_HEADERS = frozenset(
    {"host", "content-length", "connection", "accept-encoding", "cookie", "transfer-encoding", "user-agent",
     "accept", "content-type"}
)  # fmt: skip
# How to read the answer: the ready configuration whose request goes to such a path.
_SHAPES = (
    (r"/v1/messages$", "anthropic"),
    (r":(streamG|g)enerateContent$", "gemini"),
    (r"/api/chat$", "ollama_native"),
    (r"/apps/[^/]+/completion$", "dashscope_app"),
    (r"/text-generation/generation$", "dashscope_generation"),
    (r"/wenxinworkshop/chat/", "ernie"),
)
_READING = ("chunk_match", "resp", "tool_calls", "filters", "done_when", "finish_completes", "cumulative",
            "usage_merge", "error")  # fmt: skip


class CurlRefused(ValueError):
    """The command cannot become a configuration; str() says why, without its words."""


def config_from_curl(command: str) -> tuple[dict[str, Any], list[str]]:
    """Return a first configuration, and what a person should know or look at.

    Raises: CurlRefused, when it is no curl command, uploads files, or sends what is not JSON.
    """
    method, url, headers, body, notes = _take_apart(command)
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise CurlRefused("the command has no https:// or http:// address")
    if parts.username is not None:
        notes.append("the address held credentials: they were left out")
    netloc = parts.netloc.rpartition("@")[2]
    shape = next((name for pattern, name in _SHAPES if re.search(pattern, parts.path)), "openai")
    notes.append(f"the answer is read like that of the ready configuration {shape}: try it with a transcript")
    params: dict[str, Any] = {}
    data = _data(body, shape, params, notes) if body is not None else []
    path = "/".join(_literal(piece, []) for piece in parts.path.split("/"))
    if shape in ("gemini", "dashscope_app", "ernie"):
        path, count = re.subn(r"(/models/|/apps/|/wenxinworkshop/chat/)[^/:]+", r"\1${model}", path)
        if count:
            notes.append("the model is in the path")
    if "${api_key}" in path:
        notes.append(_TAKEN)
    chat: dict[str, Any] = {
        "url": "${base_url}" + path,
        "method": method or ("POST" if data else "GET"),
        "headers": list(_headers(headers, notes)),
        "params": [
            {"name": name, "value": "${api_key}" if _is_secret(name) else _literal(value, notes)}
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
        ],
        "data": data,
        **{key: value for key, value in load(shape)["chat"].items() if key in _READING},
    }
    config: dict[str, Any] = {"name": host, "values": {"base_url": f"{parts.scheme}://{netloc}"}}
    if params:
        config["params"] = params
    config["chat"] = {key: value for key, value in chat.items() if value != []}
    return _without_key_names(config), [_KEY.sub("•••", note) for note in notes]


def _take_apart(command: str) -> tuple[str | None, str, list[str], str | None, list[str]]:
    """Return method, address, headers, body and notes."""
    if len(command) > _MAX_CHARS:
        raise CurlRefused("the command is longer than 64 KiB")
    try:
        words = shlex.split(re.sub(r"\\\r?\n", " ", command.strip().removeprefix("$ ")))
    except ValueError:
        raise CurlRefused("the command's quotes do not match") from None
    if not words or words[0].rpartition("/")[2] not in ("curl", "curl.exe"):
        raise CurlRefused("it does not begin with curl")
    method: str | None = None
    url = ""
    headers: list[str] = []
    pieces: list[str] = []
    notes: list[str] = []
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("--") and "=" in word:
            word, _, given = word.partition("=")
            rest = iter([given, *rest])
        if word in ("-X", "--request"):
            method = next(rest, "").upper()
        elif word.startswith("-X") and len(word) > 2:
            method = word[2:].upper()
        elif word in ("-H", "--header"):
            headers.append(next(rest, ""))
        elif word in _DATA:
            pieces.append(next(rest, ""))
        elif word in ("-F", "--form", "--form-string", "-T", "--upload-file"):
            raise CurlRefused("it uploads files (multipart), which cannot be expressed")
        elif word in ("-u", "--user"):
            next(rest, "")
            headers.append("Authorization: Basic")
            notes.append("user and password became Basic ${api_key}: the key is then user:password")
        elif word == "--url":
            url = next(rest, "")
        elif word in _WITH_VALUE:
            next(rest, "")
            notes.append(f"{word} was left out")
        elif not word.startswith("-"):
            url = url or word
    body = "&".join(pieces) if pieces else None
    if body is not None and body.startswith("@"):
        raise CurlRefused("the body is in a file: paste it into the command")
    return method, url, headers, body, notes


def _headers(headers: list[str], notes: list[str]) -> Iterator[dict[str, Any]]:
    for header in headers:
        name, _, value = header.partition(":")
        name, value = name.strip(), value.strip()
        folded = name.lower()
        if not name or folded in _DROPPED_HEADERS:
            continue
        if folded == "authorization":
            scheme = value.partition(" ")[0] if " " in value or value == "Basic" else ""
            if not re.fullmatch(r"[A-Za-z][A-Za-z-]{0,14}", scheme):
                scheme = ""
            item: dict[str, Any] = {"name": name, "value": f"{scheme} ${{api_key}}".strip()}
            if scheme.lower() == "basic":
                item["convertor"] = "to_base64"
            yield item
        elif _is_secret(folded):
            yield {"name": name, "value": "${api_key}"}
            notes.append(f"{name} was taken for the key")
        else:
            yield {"name": name, "value": _literal(value, notes)}


def _data(body: str, shape: str, params: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise CurlRefused("the body is not JSON") from None
    if not isinstance(value, dict):
        raise CurlRefused("the body is not a JSON object")
    data: list[dict[str, Any]] = []
    for name, item in value.items():
        entry: dict[str, Any] = {"name": name}
        if name == "messages" and shape in ("anthropic", "ernie"):
            entry |= {
                "value": "${messages}",
                "convertor": "without_system" if shape == "anthropic" else "to_ernie_messages",
            }
        elif name == "system" and isinstance(item, str | list):
            entry |= {"value": "${messages}", "convertor": "only_system", "optional": True}
        elif name == "contents":
            entry |= {"value": "${messages}", "convertor": "to_gemini_contents"}
        elif name in ("systemInstruction", "system_instruction"):
            entry |= {"value": "${messages}", "convertor": "to_gemini_system", "optional": True}
        elif name in STANDARD_PARAMS and not _KEY.search(json.dumps(item)):
            params[name] = item
            entry |= {"value": f"${{{name}}}", "optional": True}
        else:
            entry["value"] = _templated(name, item, notes)
        if name == "model" and isinstance(item, str) and not _KEY.search(item):
            notes.append(MODEL_WAS + item[:100])
        data.append(entry)
    return data


def _templated(name: str, value: Any, notes: list[str]) -> Any:
    """Return a part of the body with what differs between requests named, and a key left out."""
    if name == "messages" and isinstance(value, list):
        return "${messages}"
    if name in ("model", "stream", "user") and isinstance(value, str | bool):
        return f"${{{name}}}"
    if name in ("prompt", "query", "question") and isinstance(value, str):
        return "${prompt}"
    if isinstance(value, str) and value and _is_secret(name):
        notes.append(f"{name} was taken for the key")
        return "${api_key}"
    if isinstance(value, dict):
        return {key: _templated(key, item, notes) for key, item in value.items()}
    if isinstance(value, list):
        return [_templated("", item, notes) for item in value]
    return _literal(value, notes) if isinstance(value, str) else value


def _without_key_names(value: Any) -> Any:
    """Return a configuration in which no name is a key: values were seen to, but it may stand before the colon."""
    if isinstance(value, dict):
        return {
            _KEY.sub("a_key", name): _KEY.sub("a_key", item)
            if name == "name" and isinstance(item, str)
            else _without_key_names(item)
            for name, item in value.items()
        }
    return [_without_key_names(item) for item in value] if isinstance(value, list) else value


def _is_secret(name: str) -> bool:
    """Return whether what goes by this name may be a key: one too many is mended by hand, one too few is kept."""
    folded = name.lower().replace("-", "_")
    return name.lower() in _SECRET_NAMES or bool(_SECRET_PART.search(folded) and "tokens" not in folded)


def _literal(text: str, notes: list[str]) -> str:
    """Return a text that stands for itself, or ${api_key} when it looks like a key."""
    if _KEY.search(text):
        notes.append(_TAKEN)
        return "${api_key}"
    return text.replace("${", "$${")
