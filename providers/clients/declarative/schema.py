"""What a configuration may say: plain JSON in, frozen values out, or every mistake with its path.

Nothing here does I/O or runs anything from the configuration; a regular expression is looked at by patterns.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl

from providers.clients.declarative.conditions import FACTS, OPS, Condition
from providers.clients.declarative.continuing import KEYS as CONTINUING_KEYS
from providers.clients.declarative.continuing import WAYS, Continuing
from providers.clients.declarative.convertors import CONVERTORS
from providers.clients.declarative.failures import KINDS
from providers.clients.declarative.fill import Ref, UrlTemplate, compile_url, compile_value, refs_of
from providers.clients.declarative.patterns import LinePattern, PatternRefused, compile_pattern
from providers.clients.declarative.pick import Path, compile_path
from providers.clients.declarative.signers import SIGNERS
from providers.clients.declarative.tool_calls import READERS

Mode = Literal["stream", "whole"]

BUILT_IN = frozenset({"messages", "prompt", "system", "model", "stream", "user"})
"""What every request has. prompt is the last thing the user said, user an opaque word or undefined."""

STANDARD_PARAMS = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n",
        "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs",
        "tools", "tool_choice", "parallel_tool_calls", "response_format", "stream_options", "thinking",
        "enable_thinking", "reasoning_effort",
    }
)  # fmt: skip

RESERVED = frozenset(
    {
        "api_key", "apikey", "api_secret", "secret", "secret_key", "access_key", "access_token", "token",
        "password", "authorization", "credential", "base_url", "url", "host",
    }
)  # fmt: skip
"""Names that a request's parameters can never carry, declared or not: they would replace the site's own."""

RESPONSE_NAMES = {
    "content": "content", "text": "content", "reasoning": "reasoning", "reasoning_content": "reasoning",
    "whole_content": "whole_content", "whole_reasoning": "whole_reasoning",
    "finish_reason": "finish_reason", "usage": "usage",
    "input_tokens": "input_tokens", "output_tokens": "output_tokens", "request_id": "request_id",
    "id": "request_id",
}  # fmt: skip

TOP_KEYS = frozenset({"name", "description", "auth", "values", "params", "secrets"})
_REQUEST = frozenset({"url", "method", "headers", "data", "params", "sign", "description"})
SECTION_KEYS = _REQUEST | {
    "need_auth", "mode", "resp", "chunk_match", "chunk_filter", "filters", "done_when", "error", "cumulative",
    "usage_merge", "tool_calls", "finish_completes", "pass_params", "continues",
}  # fmt: skip
AUTH_KEYS = _REQUEST | {"set_data", "expires_field", "refresh_margin", "refresh_on", "error"}
_INEXPRESSIBLE = {
    "files": "multipart uploads", "file": "multipart uploads", "multipart": "multipart uploads",
    "websocket": "WebSocket protocols", "ws": "WebSocket protocols", "poll": "tasks that are asked for later",
    "polling": "tasks that are asked for later", "task": "tasks that are asked for later",
    "query_url": "tasks that are asked for later", "protobuf": "protobuf", "grpc": "gRPC",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_NOT_OURS_TO_SET = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "te", "upgrade", "expect",
     "trailer", "proxy-authorization", "cookie"}
)  # fmt: skip
_KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key", "x-auth-token"})
_SECRET_WORDS = (RESERVED - {"base_url", "url", "host"}) | {
    "key", "app_key", "client_secret", "private_key", "session_token",
}  # fmt: skip
IN_CLEAR = "holds a key in clear: write ${api_key}, and give the key where it is encrypted"
_MAX_CONFIG_BYTES = 64 * 1024
_MAX_DEPTH = 20


class ConfigRefused(ValueError):
    """A configuration that cannot be used; problems holds each mistake as (path, what is wrong)."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{path}: {text}" if path else text for path, text in self.problems))


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of headers, data or params; value is compiled by fill.compile_value."""

    name: str
    value: Any = field(hash=False)
    convertor: str | None = None
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Sign:
    """A named signer and its settings, compiled."""

    name: str
    settings: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """How to put one HTTP request together."""

    url: UrlTemplate
    method: str
    headers: tuple[Item, ...]
    data: tuple[Item, ...]
    params: tuple[Item, ...]
    sign: Sign | None
    is_form: bool

    def names(self) -> frozenset[str]:
        """Return every name that the templates use."""
        nodes: list[Any] = [self.url, *(item.value for item in (*self.headers, *self.data, *self.params))]
        if self.sign is not None:
            nodes.extend(self.sign.settings.values())
        return frozenset(ref.name for node in nodes for ref in refs_of(node))


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """When an event or a body is an error, and where its words are."""

    when: tuple[Condition, ...]
    message: tuple[Path, ...] = ()
    type: tuple[Path, ...] = ()
    code: tuple[Path, ...] = ()
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Blanks mapped fields of an event when its condition holds; without fields, all of them."""

    condition: Condition
    fields: frozenset[str]


@dataclass(frozen=True, slots=True)
class AuthStep:
    """A request for a token before the others."""

    request: RequestTemplate
    set_data: tuple[tuple[str, Path], ...]
    expires: Path | None
    refresh_margin_seconds: float
    refresh_on: tuple[Condition, ...]
    errors: tuple[ErrorRule, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One API: what is sent, and what the answer means."""

    name: str
    request: RequestTemplate
    need_auth: bool
    mode: Mode
    resp: Mapping[str, tuple[Path, ...]] = field(hash=False)
    line_pattern: LinePattern | None
    filters: tuple[Filter, ...]
    done_when: tuple[Condition, ...]
    errors: tuple[ErrorRule, ...]
    cumulative: bool
    usage_merge: bool
    tool_calls: str | None
    finish_completes: bool
    pass_params: bool
    continuing: Continuing

    @property
    def says_tools(self) -> bool:
        """Whether tools can be offered to the model, and what it asks of them be read."""
        # What passes parameters on as they are speaks OpenAI's language, or names the tools in its own.
        is_passed = self.pass_params and self.tool_calls == "openai"
        return bool(self.tool_calls) and (is_passed or "tools" in self.request.names())


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration: values and params are what it declares, with defaults (None: no default)."""

    name: str
    description: str
    auth: AuthStep | None
    sections: Mapping[str, Section] = field(hash=False)
    values: Mapping[str, Any] = field(hash=False)
    params: Mapping[str, Any] = field(hash=False)
    secrets: frozenset[str]
    fingerprint: str


def parse_config(raw: Any) -> Config:
    """Return the configuration. Raises ConfigRefused with every mistake that was found."""
    return _Parser().config(raw)


class _Parser:
    """Collects mistakes while it reads, so that one look shows them all."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {}
        self.params: dict[str, Any] = {}
        self.secrets: frozenset[str] = frozenset()

    def bad(self, path: str, text: str) -> None:
        self.problems.append((path, text))

    def config(self, raw: Any) -> Config:
        try:
            fingerprint = json.dumps(raw, sort_keys=True, ensure_ascii=False, allow_nan=False)
            depth = _depth(raw)
            size = len(fingerprint.encode())
        except UnicodeEncodeError:
            raise ConfigRefused(
                [("", "the configuration has half of a character (a lone surrogate) in it")]
            ) from None
        except (TypeError, ValueError, RecursionError):
            raise ConfigRefused([("", "the configuration is not JSON")]) from None
        if not isinstance(raw, dict):
            raise ConfigRefused([("", "the configuration is not an object")])
        if size > _MAX_CONFIG_BYTES or depth > _MAX_DEPTH:
            raise ConfigRefused([("", "the configuration is longer than 64 KiB or nested more than 20 deep")])
        name = self.text(raw, "name", "", default=None)
        if name is None:
            self.bad("name", "is missing")
        description = self.text(raw, "description", "", default="")
        self.secrets = self.secret_names(raw.get("secrets", []))
        self.values = self.declared(raw, "values")
        self.params = self.declared(raw, "params")
        auth = self.auth(raw["auth"]) if raw.get("auth") is not None else None
        sections: dict[str, Section] = {}
        for key, value in raw.items():
            if key in TOP_KEYS:
                continue
            if key in _INEXPRESSIBLE:
                self.bad(key, f"{_INEXPRESSIBLE[key]} cannot be expressed")
            elif not isinstance(value, dict) or "url" not in value:
                self.bad(key, "is an unknown key (an API section is an object with a url)")
            elif not _NAME.fullmatch(key):
                self.bad(key, "is not a name for an API section")
            elif (section := self.section(key, value, auth)) is not None:
                sections[key] = section
        if not self.problems and not sections:
            self.bad("", "there is no API section, for example chat")
        if self.problems:
            raise ConfigRefused(self.problems)
        return Config(
            name or "", description or "", auth, sections, self.values, self.params, self.secrets, fingerprint
        )

    def secret_names(self, raw: Any) -> frozenset[str]:
        if not isinstance(raw, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in raw):
            self.bad("secrets", "is not a list of names")
            return frozenset({"api_key"})
        for position, name in enumerate(raw):
            if name in BUILT_IN or name in STANDARD_PARAMS:
                self.bad(f"secrets[{position}]", f'the name "{name}" is taken')
        return frozenset({"api_key", *raw})

    def declared(self, raw: Mapping[str, Any], key: str) -> dict[str, Any]:
        found = raw.get(key, {})
        if isinstance(found, list):
            found = dict.fromkeys(name for name in found if isinstance(name, str))
        if not isinstance(found, dict):
            self.bad(key, "is neither an object of defaults nor a list of names")
            return {}
        for name in found:
            path = f"{key}.{name}"
            if not _NAME.fullmatch(name):
                self.bad(path, "is not a name")
            elif name in BUILT_IN or name in self.secrets:
                self.bad(path, "the name is taken")
            elif key == "values" and name in STANDARD_PARAMS:
                self.bad(path, "is a parameter of the request: declare it in params")
            elif key == "values" and names_a_secret(name) and found[name] not in (None, ""):
                self.bad(path, IN_CLEAR)
            elif key == "params" and (name in RESERVED or name in self.values):
                self.bad(path, "is reserved: a request must not be able to replace it")
        return dict(found)

    def text(self, raw: Mapping[str, Any], key: str, path: str, *, default: str | None) -> str | None:
        value = raw.get(key, default)
        if value is not default and (not isinstance(value, str) or not value or len(value) > 2000):
            self.bad(_join(path, key), "is not a text")
            return default
        return value

    def flag(self, raw: Mapping[str, Any], key: str, path: str, default: bool = False) -> bool:
        value = raw.get(key, default)
        if not isinstance(value, bool):
            self.bad(_join(path, key), "is neither true nor false")
            return default
        return value

    def keys(self, raw: Mapping[str, Any], allowed: Iterable[str], path: str) -> None:
        for key in raw:
            if key in allowed:
                continue
            if key in _INEXPRESSIBLE:
                self.bad(_join(path, key), f"{_INEXPRESSIBLE[key]} cannot be expressed")
            else:
                self.bad(_join(path, key), "is an unknown key")

    def request(
        self, raw: Mapping[str, Any], path: str, explain: Callable[[Ref], str | None]
    ) -> RequestTemplate | None:
        """Return the request; explain says why a name may not be used here, None when it may."""
        before = len(self.problems)
        url = self.url(raw.get("url"), _join(path, "url"), explain)
        method = raw.get("method", "POST")
        if not isinstance(method, str) or method.upper() not in ("GET", "POST", "PUT"):
            self.bad(_join(path, "method"), "is not GET, POST or PUT")
            method = "POST"
        headers = self.items(raw, "headers", path, explain)
        data = self.items(raw, "data", path, explain)
        params = self.items(raw, "params", path, explain)
        if method.upper() == "GET" and data:
            self.bad(_join(path, "data"), "a GET has no body: use params")
        sign = self.sign(raw["sign"], _join(path, "sign"), explain) if raw.get("sign") is not None else None
        is_form = False
        for position, item in enumerate(headers):
            where = f"{_join(path, 'headers')}[{position}]"
            if not _HEADER_NAME.fullmatch(item.name):
                self.bad(f"{where}.name", "is not a header's name")
            elif item.name.lower() in _NOT_OURS_TO_SET:
                self.bad(f"{where}.name", f"{item.name} is not for a configuration to set")
            if isinstance(item.value, str):
                self.literal_header(item, where)
                if item.name.lower() == "content-type":
                    is_form = "x-www-form-urlencoded" in item.value.lower()
                    if "multipart" in item.value.lower():
                        self.bad(f"{where}.value", "multipart uploads cannot be expressed")
                    elif not is_form and "json" not in item.value.lower():
                        self.bad(f"{where}.value", "only JSON and form bodies can be expressed")
            elif item.name.lower() == "content-type":
                self.bad(f"{where}.value", "has a value in it: the kind of body is fixed")
            if item.name.lower() == "x-dashscope-async":
                self.bad(f"{where}.name", "tasks that are asked for later cannot be expressed")
        if len(self.problems) > before or url is None:
            return None
        return RequestTemplate(url, method.upper(), headers, data, params, sign, is_form)

    def url(self, raw: Any, path: str, explain: Callable[[Ref], str | None]) -> UrlTemplate | None:
        if not isinstance(raw, str):
            self.bad(path, "is missing")
            return None
        try:
            url = compile_url(raw)
        except ValueError as error:
            self.bad(path, str(error))
            return None
        self.refs(url, path, explain)
        literal = "".join(part if isinstance(part, str) else "" for part in url.query)
        if any(names_a_secret(name) and value for name, value in parse_qsl(literal)):
            self.bad(path, IN_CLEAR)
        if url.base is not None and (url.base.name not in self.values or url.base.rest):
            self.bad(
                path,
                f'begins with "{url.base}", which is not declared in values: '
                "a host never comes from a request or a secret",
            )
        return url

    def continuing(self, raw: Any, path: str, explain: Callable[[Ref], str | None]) -> Continuing:
        if isinstance(raw, str):
            raw = {"way": raw}
        if not isinstance(raw, dict):
            self.bad(path, "is neither a way nor an object {way, message, params, url}")
            return Continuing()
        self.keys(raw, CONTINUING_KEYS, path)
        if raw.get("way") not in WAYS:
            self.bad(_join(path, "way"), f"is not one of {', '.join(WAYS)}")
        for name, taken in (("message", {"role", "content"}), ("params", {"model", "messages", "stream"})):
            value = raw.get(name, {})
            if not isinstance(value, dict) or taken & set(value):
                self.bad(_join(path, name), f"is not an object without {' and '.join(sorted(taken))}")
            elif any(names_a_secret(key) for key in value):
                self.bad(_join(path, name), IN_CLEAR)
        if raw.get("way") != "prefix" and set(raw) - {"way"}:
            self.bad(path, "message, params and url belong to the way prefix alone")
        url = self.url(raw["url"], _join(path, "url"), explain) if "url" in raw else None
        return Continuing(raw.get("way", ""), raw.get("message", {}), raw.get("params", {}), url)

    def literal_header(self, item: Item, where: str) -> None:
        if item.name.lower() in _KEY_HEADERS and item.value and not names_a_secret(item.name):
            self.bad(f"{where}.value", IN_CLEAR)
        if not item.value.isascii() or any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in item.value):
            self.bad(f"{where}.value", "has characters that no header can hold")

    def items(
        self, raw: Mapping[str, Any], key: str, path: str, explain: Callable[[Ref], str | None]
    ) -> tuple[Item, ...]:
        found = raw.get(key, [])
        where = _join(path, key)
        if found == {}:  # the document's own example writes an empty object
            found = []
        if not isinstance(found, list):
            self.bad(where, "is not a list of {name, value}")
            return ()
        items: list[Item] = []
        seen: set[str] = set()
        for position, entry in enumerate(found):
            spot = f"{where}[{position}]"
            if not isinstance(entry, dict):
                self.bad(spot, "is not an object {name, value}")
                continue
            self.keys(entry, ("name", "value", "convertor", "optional"), spot)
            name = entry.get("name")
            if not isinstance(name, str) or not name or len(name) > 200 or "${" in name:
                self.bad(f"{spot}.name", "is missing or has a value in it")
                continue
            folded = name.lower() if key == "headers" else name
            if folded in seen and key != "params":
                self.bad(f"{spot}.name", f'"{name}" is there twice')
            seen.add(folded)
            if "value" not in entry:
                self.bad(f"{spot}.value", "is missing")
                continue
            convertor = entry.get("convertor")
            if convertor in ("", None):
                convertor = None
            elif not isinstance(convertor, str) or convertor not in CONVERTORS:
                self.bad(f"{spot}.convertor", f"is not one of {', '.join(sorted(CONVERTORS))}")
                convertor = None
            try:
                value = compile_value(entry["value"])
            except ValueError as error:
                self.bad(f"{spot}.value", str(error))
                continue
            self.refs(value, f"{spot}.value", explain)
            if isinstance(value, str) and value and names_a_secret(name):
                self.bad(f"{spot}.value", IN_CLEAR)
            items.append(Item(name, value, convertor, self.flag(entry, "optional", spot)))
        return tuple(items)

    def refs(self, node: Any, path: str, explain: Callable[[Ref], str | None]) -> None:
        for ref in refs_of(node):
            if (why := explain(ref)) is not None:
                self.bad(path, why)

    def sign(self, raw: Any, path: str, explain: Callable[[Ref], str | None]) -> Sign | None:
        if not isinstance(raw, dict) or str(raw.get("name")) not in SIGNERS:
            self.bad(path if not isinstance(raw, dict) else f"{path}.name", f"is not one of {', '.join(SIGNERS)}")
            return None
        signer = SIGNERS[raw["name"]]
        self.keys(raw, {"name"} | signer.required | signer.optional, path)
        settings: dict[str, Any] = {}
        for key in sorted(signer.required | signer.optional):
            if key not in raw:
                if key in signer.required:
                    self.bad(f"{path}.{key}", "is missing")
                continue
            if not isinstance(raw[key], str):
                self.bad(f"{path}.{key}", "is not a text")
                continue
            try:
                settings[key] = compile_value(raw[key])
            except ValueError as error:
                self.bad(f"{path}.{key}", str(error))
                continue
            if isinstance(settings[key], str) and settings[key] and names_a_secret(key):
                self.bad(f"{path}.{key}", IN_CLEAR)
            for ref in refs_of(settings[key]):
                why = explain(ref)
                if why is None and ref.name not in self.secrets and ref.name not in self.values:
                    why = f'names "{ref}", which comes from the request: a signature is made of our own values'
                if why is not None:
                    self.bad(f"{path}.{key}", why)
        return Sign(raw["name"], settings)

    def auth(self, raw: Any) -> AuthStep | None:
        if not isinstance(raw, dict):
            self.bad("auth", "is not an object")
            return None
        if raw.get("need_auth"):
            self.bad("auth.need_auth", "the auth step cannot need itself (cyclic auth)")
        self.keys(raw, AUTH_KEYS | {"need_auth"}, "auth")
        given: list[tuple[str, Path]] = []
        found = raw.get("set_data")
        if not isinstance(found, list) or not found:
            self.bad("auth.set_data", "is not a list of {name, field}: the step would give nothing")
            found = []
        for position, entry in enumerate(found):
            spot = f"auth.set_data[{position}]"
            if not isinstance(entry, dict):
                self.bad(spot, "is not an object {name, field}")
                continue
            self.keys(entry, ("name", "field"), spot)
            name = entry.get("name")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                self.bad(f"{spot}.name", "is not a name")
                continue
            if (
                name in BUILT_IN
                or name in self.secrets
                or name in {*self.values, *self.params}
                or name in STANDARD_PARAMS
            ):
                self.bad(f"{spot}.name", f'the name "{name}" is taken')
            path = self.path(entry.get("field"), f"{spot}.field")
            if path is not None:
                given.append((name, path))
        own = {name for name, _path in given}

        def explain(ref: Ref) -> str | None:
            if ref.name in own:
                return f'names "{ref}", which this very step provides (cyclic auth)'
            if ref.name in self.values or ref.name in self.secrets:
                return None
            if ref.name in BUILT_IN or ref.name in STANDARD_PARAMS or ref.name in self.params:
                return f'names "{ref}", which differs between requests: the auth step is shared by all of them'
            return f'names an unknown value "{ref.name}"'

        request = self.request(raw, "auth", explain)
        expires = self.path(raw["expires_field"], "auth.expires_field") if "expires_field" in raw else None
        margin = raw.get("refresh_margin", 60)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= 86400:
            self.bad("auth.refresh_margin", "is not a number of seconds from 0 to 86400")
            margin = 60
        refresh_on = self.conditions(raw["refresh_on"], "auth.refresh_on") if "refresh_on" in raw else ()
        rules = self.error_rules(raw["error"], "auth.error") if "error" in raw else ()
        if request is None:
            return None
        return AuthStep(request, tuple(given), expires, float(margin), refresh_on, rules)

    def section(self, key: str, raw: Mapping[str, Any], auth: AuthStep | None) -> Section | None:
        self.keys(raw, SECTION_KEYS, key)
        need_auth = self.flag(raw, "need_auth", key)
        auth_names = {name for name, _path in auth.set_data} if auth else set()
        if need_auth and auth is None and not any(path.startswith("auth") for path, _text in self.problems):
            self.bad(f"{key}.need_auth", "there is no auth step")

        def explain(ref: Ref) -> str | None:
            name = ref.name
            if name in auth_names:
                return None if need_auth else f'names "{ref}", which only a section with "need_auth": true has'
            if ref.rest and name in self.secrets:
                return f'names "{ref}": a secret has no parts'
            if name in BUILT_IN or name in STANDARD_PARAMS or name in self.params:
                return None
            if name in self.values or name in self.secrets:
                return None
            return f'names an unknown value "{name}"'

        request = self.request(raw, key, explain)
        mode = raw.get("mode", "stream")
        if mode not in ("stream", "whole"):
            words = "tasks that are asked for later cannot be expressed" if mode in ("async", "poll") else ""
            self.bad(f"{key}.mode", words or "is neither stream nor whole")
            mode = "stream"
        resp = self.resp(raw.get("resp"), f"{key}.resp")
        pattern = None
        if raw.get("chunk_match") not in (None, ""):
            if not isinstance(raw["chunk_match"], str):
                self.bad(f"{key}.chunk_match", "is not a text")
            else:
                try:
                    pattern = compile_pattern(raw["chunk_match"])
                except PatternRefused as error:
                    self.bad(f"{key}.chunk_match", str(error))
        done_when = self.conditions(raw["done_when"], f"{key}.done_when") if "done_when" in raw else ()
        rules = self.error_rules(raw["error"], f"{key}.error") if "error" in raw else ()
        tool_calls = raw.get("tool_calls")
        if tool_calls is not None and not (isinstance(tool_calls, str) and tool_calls in READERS):
            self.bad(f"{key}.tool_calls", f"is not one of {', '.join(READERS)}")
            tool_calls = None
        section_filters = self.filters(raw, key)
        flags = {
            "cumulative": self.flag(raw, "cumulative", key),
            "usage_merge": self.flag(raw, "usage_merge", key),
            "finish_completes": self.flag(raw, "finish_completes", key, default=True),
            "pass_params": self.flag(raw, "pass_params", key),
        }
        continuing = Continuing()
        if "continues" in raw:
            continuing = self.continuing(raw["continues"], f"{key}.continues", explain)
        if not flags["finish_completes"] and not done_when:
            self.bad(f"{key}.finish_completes", "false needs a done_when: else nothing says that a reply is whole")
        if request is None:
            return None
        return Section(
            name=key,
            request=request,
            need_auth=need_auth,
            mode=mode,
            resp=resp,
            line_pattern=pattern,
            filters=section_filters,
            done_when=done_when,
            errors=rules,
            tool_calls=tool_calls,
            continuing=continuing,
            **flags,
        )

    def resp(self, raw: Any, where: str) -> dict[str, tuple[Path, ...]]:
        if not isinstance(raw, list) or not raw:
            self.bad(where, "is not a list of {name, value}: nothing of the answer would be read")
            return {}
        found: dict[str, tuple[Path, ...]] = {}
        for position, entry in enumerate(raw):
            spot = f"{where}[{position}]"
            if not isinstance(entry, dict):
                self.bad(spot, "is not an object {name, value}")
                continue
            self.keys(entry, ("name", "value"), spot)
            name = RESPONSE_NAMES.get(str(entry.get("name")))
            if name is None:
                self.bad(f"{spot}.name", f"is not one of {', '.join(sorted(RESPONSE_NAMES))}")
            elif name in found:
                self.bad(f"{spot}.name", f'"{name}" is there twice')
            else:
                found[name] = self.paths(entry.get("value"), f"{spot}.value")
        if "content" not in found and "whole_content" not in found:
            self.bad(where, "has no content")
        return found

    def filters(self, raw: Mapping[str, Any], key: str) -> tuple[Filter, ...]:
        entries: list[tuple[str, Any]] = []
        if raw.get("chunk_filter") not in (None, {}):
            entries.append((f"{key}.chunk_filter", raw["chunk_filter"]))
        if "filters" in raw:
            if isinstance(raw["filters"], list):
                entries += [(f"{key}.filters[{n}]", entry) for n, entry in enumerate(raw["filters"])]
            else:
                self.bad(f"{key}.filters", "is not a list")
        filters: list[Filter] = []
        for spot, entry in entries:
            if not isinstance(entry, dict):
                self.bad(spot, "is not an object {name, op, value, field}")
                continue
            fields = entry.get("field", [])
            names = [RESPONSE_NAMES.get(str(f)) for f in (fields if isinstance(fields, list) else [fields])]
            if None in names:
                self.bad(f"{spot}.field", f"is not one of {', '.join(sorted(RESPONSE_NAMES))}")
            condition = self.condition({k: v for k, v in entry.items() if k != "field"}, spot)
            if condition is not None:
                filters.append(Filter(condition, frozenset(name for name in names if name)))
        return tuple(filters)

    def conditions(self, raw: Any, path: str) -> tuple[Condition, ...]:
        entries = raw if isinstance(raw, list) else [raw]
        if not entries:
            self.bad(path, "has no condition")
        found = [
            self.condition(entry, f"{path}[{position}]" if isinstance(raw, list) else path)
            for position, entry in enumerate(entries)
        ]
        return tuple(condition for condition in found if condition is not None)

    def condition(self, raw: Any, path: str) -> Condition | None:
        if not isinstance(raw, dict):
            self.bad(path, "is not an object {name, op, value}")
            return None
        if "all" in raw:
            self.keys(raw, ("all",), path)
            if not isinstance(raw["all"], list) or not raw["all"]:
                self.bad(f"{path}.all", "is not a list of conditions")
                return None
            return Condition(parts=self.conditions(raw["all"], f"{path}.all"))
        self.keys(raw, ("name", "op", "value"), path)
        op = raw.get("op", "==" if "value" in raw else "exists")
        if not isinstance(op, str) or op not in OPS:
            self.bad(f"{path}.op", f"is not one of {' '.join(OPS)}")
            return None
        if op in ("==", "!=", "in", "contains") and "value" not in raw:
            self.bad(f"{path}.value", "is missing")
        if op == "in" and not isinstance(raw.get("value"), list):
            self.bad(f"{path}.value", "is not a list")
            return None
        name = raw.get("name")
        if isinstance(name, str) and name.startswith("__"):
            if name not in FACTS:
                self.bad(f"{path}.name", f"is not one of {', '.join(sorted(FACTS))}")
            return Condition(name=name, op=op, value=raw.get("value"))
        compiled = self.path(name, f"{path}.name")
        return None if compiled is None else Condition(str(name), compiled, op, raw.get("value"))

    def error_rules(self, raw: Any, path: str) -> tuple[ErrorRule, ...]:
        entries = raw if isinstance(raw, list) else [raw]
        rules: list[ErrorRule] = []
        for position, entry in enumerate(entries):
            spot = f"{path}[{position}]" if isinstance(raw, list) else path
            if not isinstance(entry, dict):
                self.bad(spot, "is not an object {when, message, type, code}")
                continue
            self.keys(entry, ("when", "message", "type", "code", "kind"), spot)
            kind = entry.get("kind")
            if kind is not None and not (isinstance(kind, str) and kind in KINDS):
                self.bad(f"{spot}.kind", f"is not one of {', '.join(sorted(KINDS))}")
            if "when" not in entry:
                self.bad(f"{spot}.when", "is missing")
                continue
            rules.append(
                ErrorRule(
                    when=self.conditions(entry["when"], f"{spot}.when"),
                    kind=kind,
                    **{
                        word: self.paths(entry[word], f"{spot}.{word}") if word in entry else ()
                        for word in ("message", "type", "code")
                    },
                )
            )
        return tuple(rules)

    def paths(self, raw: Any, path: str) -> tuple[Path, ...]:
        """Return one path or several, the first that finds something counting."""
        entries = raw if isinstance(raw, list) else [raw]
        if not entries or len(entries) > 10:
            self.bad(path, "is not a path or a list of up to ten")
        found = [self.path(entry, path if entry is raw else f"{path}[{n}]") for n, entry in enumerate(entries)]
        return tuple(item for item in found if item is not None)

    def path(self, raw: Any, path: str) -> Path | None:
        try:
            return compile_path(raw if isinstance(raw, str) else "")
        except ValueError:
            self.bad(path, "is not a path such as choices[0].delta.content")
            return None


def names_a_secret(name: str) -> bool:
    """Return whether what goes by this name is a key."""
    return name.lower().replace("-", "_").removeprefix("x_") in _SECRET_WORDS


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
