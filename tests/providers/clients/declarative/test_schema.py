"""A configuration is read whole, or refused with the path of every mistake."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from providers.clients.declarative.schema import ConfigRefused, parse_config

GOOD: dict[str, Any] = {
    "name": "示例",
    "values": {"region": "cn"},
    "params": {"style": None},
    "secrets": ["secret_key"],
    "auth": {
        "url": "https://a.example/token",
        "method": "POST",
        "headers": {},
        "params": [{"name": "client_id", "value": "${api_key}"}],
        "set_data": [{"name": "ticket", "field": "data.access_token"}],
        "expires_field": "data.expires_in",
        "refresh_on": {"name": "code", "op": "in", "value": [110, 111]},
    },
    "chat": {
        "url": "https://a.example/${region}/${model}",
        "need_auth": True,
        "headers": [{"name": "Authorization", "value": "Bearer ${ticket}"}],
        "data": [
            {"name": "messages", "value": "${messages}", "convertor": "without_system"},
            {"name": "style", "value": "${style}", "optional": True},
        ],
        "resp": [{"name": "content", "value": "choices.0.delta.content"}],
        "chunk_match": r"^data:\s?(.*)$",
        "chunk_filter": {"name": "finish_reason", "op": "==", "value": "stop", "field": "content"},
        "done_when": [{"all": [{"name": "__event", "value": "end"}, {"name": "done", "op": "truthy"}]}],
        "error": {"when": [{"name": "error"}], "message": ["error.message", "error"], "kind": "rate_limited"},
    },
}


def problems(raw: Any) -> list[str]:
    """Return every mistake as `path: what`."""
    with pytest.raises(ConfigRefused) as caught:
        parse_config(raw)
    return [f"{path}: {text}" for path, text in caught.value.problems]


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the good configuration with one thing changed; `a.0.b` is the path."""
    raw = copy.deepcopy(GOOD)
    *steps, last = path.split(".")
    at: Any = raw
    for step in steps:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return raw


def test_a_good_configuration_is_read() -> None:
    config = parse_config(GOOD)
    assert config.name == "示例"
    assert list(config.sections) == ["chat"]
    assert config.secrets == {"api_key", "secret_key"}
    assert config.sections["chat"].request.names() == {"region", "model", "ticket", "messages", "style"}


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("name", "", "name: is not a text"),
        ("surprise", 1, "surprise: is an unknown key (an API section is an object with a url)"),
        ("chat.surprise", 1, "chat.surprise: is an unknown key"),
        ("chat.headers.0.valu", 1, "chat.headers[0].valu: is an unknown key"),
        ("chat.headers.0.value", "${foo}", 'chat.headers[0].value: names an unknown value "foo"'),
        ("chat.headers.0.value", "${foo", "chat.headers[0].value: has a ${ without its }"),
        ("chat.headers.0.value", "a\r\nb", "chat.headers[0].value: has characters that no header can hold"),
        ("chat.headers.0.value", "Bearer sk-in-clear",
         "chat.headers[0].value: holds a key in clear: write ${api_key}, and give the key where it is encrypted"),
        ("chat.headers.0.name", "Host", "chat.headers[0].name: Host is not for a configuration to set"),
        ("chat.headers.0.name", "a b", "chat.headers[0].name: is not a header's name"),
        ("chat.headers.0.name", "X-DashScope-Async",
         "chat.headers[0].name: tasks that are asked for later cannot be expressed"),
        ("chat.data.0.convertor", "eval", None),
        ("chat.data.1.name", "messages", 'chat.data[1].name: "messages" is there twice'),
        ("chat.data.0.value", {"a": [{"b": "${nix}"}]}, 'chat.data[0].value: names an unknown value "nix"'),
        ("chat.data.0.value", "${api_key.x}", 'chat.data[0].value: names "api_key.x": a secret has no parts'),
        ("chat.url", "ws://a.example",
         "chat.url: is a WebSocket, which cannot be expressed: use the service's HTTP form"),
        ("chat.url", "https://u:p@a.example/", "chat.url: has credentials in it"),
        ("chat.url", "https://a.example/#x", "chat.url: has a fragment"),
        ("chat.url", "${model}/chat",
         'chat.url: begins with "model", which is not declared in values: '
         "a host never comes from a request or a secret"),
        ("chat.url", "${api_key}/chat",
         'chat.url: begins with "api_key", which is not declared in values: '
         "a host never comes from a request or a secret"),
        ("chat.continues", 1, "chat.continues: is neither a way nor an object {way, message, params, url}"),
        ("chat.continues", "perhaps", "chat.continues.way: is not one of prefix, instruction, none"),
        ("chat.continues", {"way": "prefix", "nix": 1}, "chat.continues.nix: is an unknown key"),
        ("chat.continues", {"way": "prefix", "message": {"role": "user"}},
         "chat.continues.message: is not an object without content and role"),
        ("chat.continues", {"way": "prefix", "params": {"api-key": "sk-in-clear"}},
         "chat.continues.params: holds a key in clear: write ${api_key}, and give the key where it is encrypted"),
        ("chat.continues", {"way": "prefix", "url": "${model}/beta"},
         'chat.continues.url: begins with "model", which is not declared in values: '
         "a host never comes from a request or a secret"),
        ("chat.continues", {"way": "none", "message": {"x": True}},
         "chat.continues: message, params and url belong to the way prefix alone"),
        ("chat.method", "DELETE", "chat.method: is not GET, POST or PUT"),
        ("chat.mode", "async", "chat.mode: tasks that are asked for later cannot be expressed"),
        ("chat.mode", 3, "chat.mode: is neither stream nor whole"),
        ("chat.files", [], "chat.files: multipart uploads cannot be expressed"),
        ("chat.polling", {}, "chat.polling: tasks that are asked for later cannot be expressed"),
        ("websocket", {}, "websocket: WebSocket protocols cannot be expressed"),
        ("chat.chunk_match", "(a+)+$", "chat.chunk_match: could run away: a repeat inside a repeat"),
        ("chat.chunk_filter.op", "=~", "chat.chunk_filter.op: is not one of == != in exists truthy contains"),
        ("chat.chunk_filter.field", "foo", None),
        ("chat.done_when.0.all.0.name", "__nix", None),
        ("chat.chunk_filter.op", ["=="], "chat.chunk_filter.op: is not one of == != in exists truthy contains"),
        ("chat.done_when", [], "chat.done_when: has no condition"),
        ("chat.error.kind", "cosmic", None),
        ("chat.error.message", 3, "chat.error.message: is not a path such as choices[0].delta.content"),
        ("chat.resp", [], "chat.resp: is not a list of {name, value}: nothing of the answer would be read"),
        ("chat.resp.0.value", "a..b", "chat.resp[0].value: is not a path such as choices[0].delta.content"),
        ("chat.resp.0.name", "usage", "chat.resp: has no content"),
        ("chat.tool_calls", "paths",
         "chat.tool_calls: is not one of openai, anthropic, gemini, ollama"),
        ("chat.cumulative", "yes", "chat.cumulative: is neither true nor false"),
        ("chat.need_auth", False,
         'chat.headers[0].value: names "ticket", which only a section with "need_auth": true has'),
        ("auth.params.0.value", "${ticket}",
         'auth.params[0].value: names "ticket", which this very step provides (cyclic auth)'),
        ("auth.params.0.value", "${prompt}",
         'auth.params[0].value: names "prompt", which differs between requests: '
         "the auth step is shared by all of them"),
        ("auth.need_auth", True, "auth.need_auth: the auth step cannot need itself (cyclic auth)"),
        ("auth.set_data.0.name", "api_key", 'auth.set_data[0].name: the name "api_key" is taken'),
        ("auth.refresh_margin", -1, "auth.refresh_margin: is not a number of seconds from 0 to 86400"),
        ("params.api_key", "x", "params.api_key: the name is taken"),
        ("params.apikey", "x", "params.apikey: is reserved: a request must not be able to replace it"),
        ("values.temperature", 1, "values.temperature: is a parameter of the request: declare it in params"),
        ("values.messages", [], "values.messages: the name is taken"),
        ("secrets", "k", "secrets: is not a list of names"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_its_path(path: str, value: Any, problem: str | None) -> None:
    found = problems(changed(path, value))
    if problem is None:
        where = path.replace(".0", "[0]")
        assert len(found) == 1 and found[0].startswith(f"{where}: is not one of ")
    else:
        assert problem in found


@pytest.mark.parametrize(
    "raw", [None, [], "text", 3, {"name": "x"}, {"name": "x", "chat": object()}, {"name": "\ud800"}]
)
def test_what_is_no_configuration_at_all_is_refused(raw: Any) -> None:
    assert problems(raw)


def test_a_configuration_that_is_too_large_or_too_deep_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    for raw in (changed("chat.data.0.value", deep), changed("description", "x" * 70_000)):
        assert "longer than 64 KiB or nested more than 20 deep" in problems(raw)[0]
    for _ in range(100_000):
        deep = [deep]
    assert "not JSON" in problems({"name": deep})[0]


def test_all_mistakes_are_shown_at_once() -> None:
    raw = changed("chat.url", "nowhere")
    raw["chat"]["method"] = "X"
    raw["other"] = 1
    assert len(problems(raw)) == 3


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("chat.headers.0", {"name": "X-Token", "value": "sk-in-clear"}),
        ("chat.params", [{"name": "key", "value": "sk-in-clear"}]),
        ("chat.data.0", {"name": "api_key", "value": "sk-in-clear"}),
        ("chat.url", "https://a.example/chat?x=1&key=sk-in-clear"),
        ("values.access_token", "sk-in-clear"),
        ("values.client_secret", "sk-in-clear"),
        ("chat.sign", {"name": "volcengine", "access_key": "${api_key}", "secret_key": "sk-in-clear",
                       "region": "cn", "service": "ark"}),
    ],
)  # fmt: skip
def test_a_key_in_clear_is_refused_and_not_repeated(path: str, value: Any) -> None:
    found = problems(changed(path, value))
    assert any("holds a key in clear" in problem for problem in found), found
    assert "sk-in-clear" not in str(found)


def test_a_signer_is_made_of_our_own_values_and_complete() -> None:
    sign = {"name": "volcengine", "access_key": "${api_key}", "secret_key": "${secret_key}", "region": "${region}"}
    assert problems(changed("chat.sign", sign)) == ["chat.sign.service: is missing"]
    assert problems(changed("chat.sign", {**sign, "service": "${prompt}"})) == [
        'chat.sign.service: names "prompt", which comes from the request: a signature is made of our own values'
    ]
    assert problems(changed("chat.sign", {"name": "aws"})) == ["chat.sign.name: is not one of volcengine"]
    assert parse_config(changed("chat.sign", {**sign, "service": "ark"})).sections["chat"].request.sign is not None
