"""The provider lab: masked requests, every event of a transcript, first configurations out of curl."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from providers import errors
from providers.clients.declarative.configs import load, names
from providers.clients.declarative.curl import CurlRefused, config_from_curl
from providers.clients.declarative.lab import Transcript, dry_run, read_transcript
from providers.clients.declarative.schema import parse_config
from providers.types import Usage

CORPUS = Path(__file__).parents[3] / "wire" / "sse_corpus"
CANARY = "sk-canary-0123456789abcdef"


def case(name: str) -> Transcript:
    """Return a kept stream as a transcript."""
    return read_transcript((CORPUS / f"{name}.json").read_bytes())


def run(*arguments: str) -> str:
    """Return what try_provider prints."""
    out = StringIO()
    call_command("try_provider", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


@pytest.mark.parametrize("name", names())
def test_every_ready_configuration_can_be_tried_dry_and_shows_no_key(name: str) -> None:
    for mapi in ("chat", "whole"):
        tried = dry_run(load(name), mapi=mapi, base_url="https://vendor.example")
        assert tried.request.url.startswith("https://vendor.example")
        shown = f"{tried.request} {tried.auth_request}"
        assert "dry-run" not in shown
        assert ("<api_key ...>" in shown) == (name != "ollama_native")


def test_each_event_says_what_was_mapped_and_what_was_dropped_and_why() -> None:
    tried = dry_run(load("anthropic"), case("70_anthropic_messages"))
    says = [(trace.event, trace.mapped, trace.says) for trace in tried.traces]
    assert says[2] == ("ping", {}, "nothing in it is mapped")
    assert says[3] == ("content_block_delta", {"content": "Hel"}, "")
    assert says[-1] == ("message_stop", {}, "the end: done_when")
    assert (tried.text, tried.error) == ("Hello", None)
    assert tried.finished is not None
    assert (tried.finished.finish_reason, tried.finished.usage) == ("end_turn", Usage(12, 5))
    others = dry_run(load("openai"), case("07_two_choices_interleaved"))
    dropped = [trace.dropped for trace in others.traces if trace.dropped]
    assert dropped[0] == [("content", "filter: choices[0].index truthy")]
    noise = dry_run(load("openai"), case("46_malformed_json_event"))
    assert "dropped: not a JSON object" in [trace.says for trace in noise.traces]


@pytest.mark.parametrize(
    ("config", "transcript", "kind"),
    [
        ("anthropic", case("71_anthropic_error_event"), errors.Unavailable),
        ("ernie", case("80_ernie_error_plain_json"), errors.Unauthorized),
        ("openai", case("34_truncated_no_finish"), errors.StreamCut),
        ("openai", Transcript(b"<html></html>", content_type="text/html"), errors.MalformedReply),
        ("openai", Transcript(b"nothing at all"), errors.MalformedReply),
        ("openai", Transcript(b'{"error":{"message":"no","code":"invalid_api_key"}}', 401), errors.Unauthorized),
        ("openai", Transcript(b"busy", 503), errors.Unavailable),
    ],
)
def test_a_transcript_that_fails_has_the_error_that_a_reply_would_have(
    config: str, transcript: Transcript, kind: type[errors.ProviderError]
) -> None:
    assert type(dry_run(load(config), transcript).error) is kind


def test_a_transcript_is_a_body_or_what_curl_prints_or_a_kept_case() -> None:
    head = b"HTTP/1.1 429 Too Many\r\nContent-Type: application/json\r\n\r\n{}"
    assert read_transcript(head) == Transcript(b"{}", 429, "application/json")
    assert read_transcript(b"HTTP/2 200\ncontent-type: text/event-stream\n\ndata: x\n\n").body == b"data: x\n\n"
    assert read_transcript(b'{"a":1}') == Transcript(b'{"a":1}')
    for odd in (b'{"bytes_base64":"e30=","http_status":null}', b'{"bytes_base64":'):
        assert read_transcript(odd) == Transcript(odd)
    assert read_transcript(b"data: x\n\n") == Transcript(b"data: x\n\n")
    assert case("61_json_body_instead_of_sse").content_type == "application/json"


def test_the_command_prints_request_events_and_reply() -> None:
    printed = run("openai", "--transcript", str(CORPUS / "01_openai_basic.json"), "--param", "logit_bias={}")
    assert "POST https://api.openai.com/v1/chat/completions" in printed
    assert "Authorization: Bearer <api_key ...>" in printed
    assert '"logit_bias": {}' in printed
    assert '  content = "Hello"' in printed
    assert 'text = "Hello world"' in printed
    assert "the end: [DONE]" in printed
    unsent = run("gemini", "--param", "logprobs=true", "--section", "whole")
    assert "not sent: the parameter logprobs is in no template" in unsent
    assert "auth request" in run("ernie")


def test_the_command_fails_with_words_that_name_the_path(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    config = load("openai")
    config["chat"]["headers"][0]["value"] = "${foo}"
    bad.write_text(json.dumps(config))
    with pytest.raises(CommandError, match=r'chat\.headers\[0\]\.value: names an unknown value "foo"'):
        run(str(bad))
    bad.write_text("{")
    none = str(tmp_path / "none.json")
    for arguments in (
        [str(bad)], [none], [], ["openai", "--value", "x"], ["openai", "--section", "nix"],
        ["openai", "--transcript", none],
    ):  # fmt: skip
        with pytest.raises(CommandError):
            run(*arguments)
    with pytest.raises(CommandError, match="the reply would fail: stream_cut"):
        run("openai", "--transcript", str(CORPUS / "34_truncated_no_finish.json"))


OPENAI_CURL = f"""curl https://api.vendor.example/v1/chat/completions?trace=1 \\
  -H "Content-Type: application/json" \\
  -H 'Authorization: Bearer {CANARY}' --compressed \\
  -d '{{"model": "gpt-x", "messages": [{{"role": "user", "content": "Hello!"}}], "stream": true,
       "temperature": 0.7, "note": "${{x}}"}}'"""


def test_a_curl_command_becomes_a_configuration_that_sends_the_same_and_holds_no_key() -> None:
    config, notes = config_from_curl(OPENAI_CURL)
    assert "canary" not in json.dumps([config, notes])
    assert parse_config(config).name == "api.vendor.example"
    tried = dry_run(config, case("01_openai_basic"), model="gpt-x")
    assert tried.request.url == "https://api.vendor.example/v1/chat/completions?trace=1"
    assert tried.request.headers["Authorization"] == "Bearer <api_key ...>"
    body = dict(tried.request.body)
    assert [message["role"] for message in body.pop("messages")] == ["system", "user"]
    assert body == {"model": "gpt-x", "stream": True, "temperature": 0.7, "note": "${x}"}
    assert tried.text == "Hello world"


@pytest.mark.parametrize(
    ("command", "transcript", "text"),
    [
        ("curl https://api.anthropic.com/v1/messages -H 'x-api-key: $KEY' -H 'anthropic-version: 2023-06-01' "
         "--data '{\"model\":\"c\",\"max_tokens\":9,\"system\":\"s\",\"messages\":[]}'",
         "70_anthropic_messages", "Hello"),
        ("curl http://localhost:11434/api/chat -d '{\"model\":\"m\",\"messages\":[],\"options\":{\"seed\":1}}'",
         "73_ollama_native_ndjson", "你好😀"),
        ("curl -X POST https://dashscope.aliyuncs.com/api/v1/apps/ID/completion -H 'Authorization: Bearer k' "
         "--data '{\"input\":{\"prompt\":\"你是谁\"},\"parameters\":{\"incremental_output\":true}}'",
         "77_dashscope_app_error", "我"),
    ],
)  # fmt: skip
def test_the_answer_of_a_known_shape_is_read_at_once(command: str, transcript: str, text: str) -> None:
    config, _notes = config_from_curl(command)
    tried = dry_run(config, case(transcript), model="m")
    assert tried.text == text


def test_gemini_and_keys_in_the_query_and_basic_are_understood() -> None:
    config, notes = config_from_curl(
        "curl 'https://g.example/v1beta/models/gem-1:streamGenerateContent?alt=sse&key=AIza-canary' "
        '-d \'{"contents":[{"parts":[{"text":"Hi"}]}]}\''
    )
    assert "canary" not in json.dumps([config, notes])
    tried = dry_run(config, model="gem-2")
    assert tried.request.url == (
        "https://g.example/v1beta/models/gem-2:streamGenerateContent?alt=sse&key=<api_key ...>"
    )
    basic, _ = config_from_curl(f'curl -u me:{CANARY} https://a.example/chat -d \'{{"query":"x"}}\'')
    assert "canary" not in json.dumps(basic)
    assert basic["chat"]["headers"][0]["convertor"] == "to_base64"
    parse_config(basic)


@pytest.mark.parametrize(
    "command",
    ["", "wget https://a.example", "curl", "curl ftp://a.example", "curl https://a.example -F file=@x",
     "curl https://a.example -d @body.json", "curl https://a.example -d 'a=b'", "curl https://a.example -d '[1]'",
     "curl 'https://a.example", "curl https://a.example -d '" + "x" * 70_000 + "'"],
)  # fmt: skip
def test_what_cannot_become_a_configuration_is_refused_in_words(command: str) -> None:
    with pytest.raises(CurlRefused):
        config_from_curl(command)


def test_the_command_prints_a_first_configuration() -> None:
    printed: dict[str, Any] = json.loads(run("--from-curl", OPENAI_CURL))
    assert printed["values"] == {"base_url": "https://api.vendor.example"}
    with pytest.raises(CommandError, match="does not begin with curl"):
        run("--from-curl", f"wget {CANARY}")
