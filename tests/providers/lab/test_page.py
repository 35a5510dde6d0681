"""The provider lab in the admin: what is seen is what try_provider prints, and a key is never seen."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client, RequestFactory
from django.views.debug import ExceptionReporter

from providers.clients.declarative.configs import load, names
from providers.models import Endpoint

pytestmark = pytest.mark.django_db
LAB, ADD = "/admin/providers/endpoint/lab/", "/admin/providers/endpoint/add/"
CANARY = "sk-canary-7f3a9c1e5b2d8040"
CORPUS = Path(__file__).parents[2] / "wire" / "sse_corpus"


def staff(*permissions: str, language: str = "en", **rights: bool) -> Client:
    """Return a browser of somebody with these permissions on endpoints."""
    user = get_user_model().objects.create(username="站员", is_active=True, **{"is_staff": True, **rights})
    user.user_permissions.set(Permission.objects.filter(codename__in=[f"{name}_endpoint" for name in permissions]))
    client = Client(headers={"accept-language": language})
    client.force_login(user)
    return client


@pytest.fixture
def editor() -> Client:
    """Somebody who may see and add endpoints."""
    return staff("view", "add")


def tried(client: Client, config: Any, **fields: Any) -> Any:
    """Return the page after a configuration was tried."""
    text = config if isinstance(config, str) else json.dumps(config, ensure_ascii=False)
    return client.post(LAB, {"do": "try", "config": text, **fields})


def errors_of(response: Any) -> dict[str, list[str]]:
    """Return the mistakes by field."""
    assert response.status_code == 200
    return {name: list(texts) for name, texts in response.context["form"].errors.items()}


def test_the_list_leads_to_the_page(editor: Client) -> None:
    assert f'href="{LAB}"' in editor.get("/admin/providers/endpoint/").content.decode()
    page = editor.get(LAB)
    assert page.status_code == 200
    assert [f"ready:{name}" for name in names()] == [
        value for value, _label in page.context["start_form"].fields["start"].choices[0][1]
    ]


def test_only_staff_who_may_see_endpoints_get_in() -> None:
    stranger = staff("add")
    assert stranger.get(LAB).status_code == 403
    assert tried(stranger, {"ready": "openai"}).status_code == 403
    get_user_model().objects.all().delete()
    assert staff("view", "add", is_staff=False).get(LAB).status_code == 302
    assert Client().post(LAB).status_code == 302


def test_a_post_without_the_token_of_the_form_is_refused() -> None:
    staff("view", "add")
    client = Client(enforce_csrf_checks=True)
    client.force_login(get_user_model().objects.get())
    for address in (LAB, ADD):
        assert client.post(address, {"do": "try", "_from_lab": "1", "config": "{}"}).status_code == 403


def test_a_ready_one_is_filled_in_by_name_or_as_its_whole_text(editor: Client) -> None:
    short = editor.post(LAB, {"do": "load", "start": "ready:azure"}).context["form"].initial
    assert json.loads(short["config"]) == {"ready": "azure"}
    assert json.loads(short["values"]) == load("azure")["values"]
    whole = editor.post(LAB, {"do": "load_whole", "start": "ready:azure"}).context["form"].initial
    assert json.loads(whole["config"]) == load("azure")
    wrong = editor.post(LAB, {"do": "load", "start": "ready:nobody"})
    assert "start" in wrong.context["start_form"].errors


def test_an_endpoint_is_filled_in_without_its_key(editor: Client) -> None:
    row = Endpoint(name="自建", dialect="declarative", model="m-7", config={"ready": "openai", "mapi": "whole"})
    row.base_url = "https://llm.example/v1"
    row.set_api_key(CANARY)
    row.save()
    page = editor.post(LAB, {"do": "load", "start": f"endpoint:{row.pk}"})
    initial = page.context["form"].initial
    assert (json.loads(initial["config"]), initial["model"]) == (row.config, "m-7")
    assert json.loads(initial["values"]) == {"base_url": "https://llm.example/v1"}
    assert CANARY not in page.content.decode()


def test_the_request_is_shown_with_its_secrets_masked(editor: Client) -> None:
    page = tried(
        editor, {"ready": "openai"}, model="gpt-x", question="“北京”天气？", params='{"temperature": 0.3}'
    )
    assert errors_of(page) == {}
    [(title, text)] = page.context["requests"]
    assert title == "Request"
    head, _blank, body = text.partition("\n\n")
    assert head.startswith("POST https://api.openai.com/v1/chat/completions\n")
    assert "Authorization: Bearer <api_key ...>" in head
    sent = json.loads(body)
    assert (sent["model"], sent["temperature"]) == ("gpt-x", 0.3)
    assert sent["messages"][1] == {"role": "user", "content": "“北京”天气？"}
    assert "&lt;api_key ...&gt;" in page.content.decode()


def test_values_section_and_mode_of_the_form_count(editor: Client) -> None:
    page = tried(
        editor,
        {"ready": "azure"},
        model="gpt",
        values='{"base_url": "https://r.openai.azure.com", "api_version": null}',
        mapi="whole",
        mode="stream",
    )
    [(_title, text)] = page.context["requests"]
    assert text.startswith("POST https://r.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=")
    assert '"stream": true' in text
    assert len(tried(editor, {"ready": "ernie"}).context["requests"]) == 2


def test_every_event_of_a_pasted_answer_says_what_became_of_it(editor: Client) -> None:
    answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    answer += 'data: {"choices":[{"index":0,"delta":{"content":"你"}}]}\r\n\r\n'
    answer += 'data: {"choices":[{"index":1,"delta":{"content":"他"}}]}\r\n\r\ndata: oops\r\n\r\n'
    answer += 'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\r\n\r\ndata: [DONE]\r\n\r\n'
    page = tried(editor, {"ready": "openai"}, transcript=answer)
    events = page.context["events"]
    assert [event.mapped for event in events] == [
        [("content", '"你"')], [], [], [("content", '"\N{REPLACEMENT CHARACTER}"')], [],
    ]  # fmt: skip
    assert events[1].dropped == [("content", "filter: choices[0].index truthy")]
    assert [event.says for event in events][2:] == ["dropped: not a JSON object", "", "the end: [DONE]"]
    assert page.context["text"] == "你\N{REPLACEMENT CHARACTER}"
    assert page.context["finished"].malformed_events == 1


@pytest.mark.parametrize(
    ("config", "case", "code"),
    [("anthropic", "70_anthropic_messages", None), ("ernie", "80_ernie_error_plain_json", "unauthorized"),
     ("openai", "34_truncated_no_finish", "stream_cut")],
)  # fmt: skip
def test_an_uploaded_answer_ends_as_a_reply_would(
    editor: Client, config: str, case: str, code: str | None
) -> None:
    file = SimpleUploadedFile("answer.json", (CORPUS / f"{case}.json").read_bytes())
    page = tried(editor, {"ready": config}, transcript_file=file)
    assert page.context.get("error_code") == code
    assert ("The reply would fail" in page.content.decode()) == (code is not None)


def test_tool_calls_are_shown(editor: Client) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "北京"}}}
    answer = json.dumps({"message": {"content": "", "tool_calls": [call]}, "done": True, "done_reason": "stop"})
    html = tried(editor, {"ready": "ollama_native"}, transcript=answer).content.decode()
    assert "weather({&quot;city&quot;:&quot;北京&quot;})" in html


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"config": ""}, "config", "This field is required."),
        ({"config": '{"name": }'}, "config", "Not JSON: line 1, character 10."),
        ({"config": "[]"}, "config", "Write a JSON object."),
        ({"config": '{"ready": "nobody"}'}, "config", "ready: is not one of anthropic, "),
        ({"config": '{"ready": "openai", "mapi": "x"}'}, "config", 'mapi: "x" is not one of the API sections '),
        ({"config": '{"ready": "openai"}', "mapi": "x"}, "mapi", 'mapi: "x" is not one of the API sections '),
        ({"config": '{"ready": "openai"}', "mode": "async"}, "mode", "Select a valid choice."),
        ({"config": '{"ready": "openai"}', "values": '{"x": 1}'}, "values", "values.x: is not one of base_url"),
        ({"config": '{"ready": "openai"}', "values": "[1]"}, "values", "Write a JSON object."),
        ({"config": '{"ready": "openai"}', "values": '{"base_url": "a"}'}, "values", "The base URL cannot be"),
        ({"config": '{"ready": "openai"}', "values": '{"base_url": 7}'}, "values", "The configuration needs"),
        ({"config": '{"ready": "azure"}'}, "values", "The configuration needs"),
        ({"config": '{"ready": "openai"}', "params": '{"seed": 1' + "0" * 30 + "}"}, "params", "The parameters"),
        ({"config": '{"ready": "openai"}', "params": '{"seed": "\\ud800"}'}, "params", "There are characters"),
        ({"config": json.dumps({**load("openai"), "surprise": 1})}, "config", "surprise: is an unknown key"),
        ({"config": json.dumps({"config": {**load("openai"), "x": 1}})}, "config", "config.x: is an unknown key"),
        ({"config": '{"a":' * 3000 + "1" + "}" * 3000}, "config", "Not JSON"),
        ({"config": "x" * 200_000}, "config", "Ensure this value has at most"),
        ({"config": '{"ready": "openai"}', "transcript": "x" * 600_000}, "transcript", "Ensure this value has"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_its_field_with_its_path(
    editor: Client, fields: dict[str, str], field: str, words: str
) -> None:
    page = editor.post(LAB, {"do": "try", **fields})
    found = errors_of(page)
    assert list(found) == [field]
    assert words in found[field][0]
    assert "requests" not in page.context


def test_all_mistakes_are_told_at_once(editor: Client) -> None:
    page = tried(editor, {"ready": "openai", "surprise": 1}, values="{", params="[]", mapi="x" * 65)
    assert set(errors_of(page)) == {"config", "values", "params", "mapi"}


def test_a_file_that_is_too_long_is_refused(editor: Client) -> None:
    file = SimpleUploadedFile("answer.txt", b"x" * (512 * 1024 + 1))
    page = tried(editor, {"ready": "openai"}, transcript_file=file)
    assert errors_of(page) == {"transcript_file": ["The recorded answer is longer than 512 KiB."]}


def test_a_long_answer_makes_no_endless_page(editor: Client) -> None:
    answer = 'data: {"choices":[{"index":0,"delta":{"content":"' + "长" * 100 + '"}}]}\n\n'
    page = tried(editor, {"ready": "openai"}, transcript=answer * 1200)
    assert (len(page.context["events"]), page.context["events_left_out"]) == (200, 1000)
    assert len(page.content) < 2_000_000


CURL = (
    f"curl https://api.vendor.example/v1/{CANARY}/chat?key={CANARY}2 -u me:{CANARY}3 "
    f"-H 'Authorization: Bearer {CANARY}' -H 'X-Vendor: {CANARY}4' -H 'Cookie: s={CANARY}5' -d '"
    + json.dumps(
        {
            "model": f"{CANARY}6",
            "messages": [],
            "auth": {"pass_word": f"{CANARY}7", "deep": [f"{CANARY}8"]},
            "user": f"{CANARY}9",
            "stop": f"{CANARY}10",
            f"{CANARY}11": 1,
        }
    )
    + "'"
)


@pytest.mark.parametrize(
    "command",
    [CURL, CURL.replace("curl ", "wget "), CURL + " -F file=@x", CURL + " '", f"curl {CANARY}",
     f"curl -d {CANARY}", f"curl https://me:{CANARY}@a.example -H 'Authorization: {CANARY} x'",
     "x" * 70_000 + CANARY],
)  # fmt: skip
def test_a_key_in_a_curl_command_is_found_nowhere(
    editor: Client, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    page = editor.post(LAB, {"do": "curl", "curl": command})
    assert page.status_code == 200
    assert "canary" not in page.content.decode() + str(page.headers) + str(page.cookies)
    assert not any("canary" in str(vars(record)) for record in caplog.records)
    assert not any("canary" in str(session.get_decoded()) for session in Session.objects.all())
    assert "canary" not in editor.get(LAB).content.decode()
    if not page.context["curl_form"].errors:
        filled = page.context["form"].initial["config"]
        again = tried(editor, filled, model="m")
        assert "canary" not in again.content.decode()


def test_a_traceback_does_not_show_the_command(settings: Any) -> None:
    settings.DEBUG = True
    request = RequestFactory().post(LAB, {"do": "curl", "curl": CURL})
    request.user = get_user_model()(username="老板", is_staff=True, is_active=True, is_superuser=True)
    [page] = [
        url for url in admin.site.get_model_admin(Endpoint).get_urls() if url.name == "providers_endpoint_lab"
    ]
    request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
    page.callback(request)
    try:
        raise RuntimeError
    except RuntimeError as error:
        reporter = ExceptionReporter(request, type(error), error, error.__traceback__)
        assert CANARY not in reporter.get_traceback_html() + reporter.get_traceback_text()


def test_a_curl_command_becomes_a_configuration_with_its_notes(editor: Client) -> None:
    command = (
        "curl https://api.vendor.example/v1/chat/completions -H 'Authorization: Bearer $KEY' "
        '-d \'{"model": "gpt-x", "messages": [], "stream": true}\''
    )
    page = editor.post(LAB, {"do": "curl", "curl": command})
    config = json.loads(page.context["form"].initial["config"])
    assert config["values"] == {"base_url": "https://api.vendor.example"}
    assert page.context["notes"][-1] == "the model was gpt-x"
    assert page.context["to_mend"] == []
    assert page.context["form"].initial["model"] == "gpt-x"
    assert tried(editor, config, model="gpt-x").context["requests"]


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ({"name": "明", "chat": {
            "url": "https://a.example", "resp": [{"name": "content", "value": "t"}],
            "headers": [{"name": "Authorization", "value": f"Bearer {CANARY}"}]}}, ""),
        ({**load("openai"), "values": {"base_url": "https://a.example", "token": CANARY}}, ""),
        ({**load("openai"), "values": {"base_url": None, "token": None}}, json.dumps({"token": CANARY})),
    ],
)  # fmt: skip
def test_a_key_in_clear_is_refused_and_taken_out_of_what_is_shown_again(
    editor: Client, config: dict[str, Any], values: str
) -> None:
    page = tried(editor, config, values=values)
    [(field, [text])] = errors_of(page).items()
    assert field == ("values" if values else "config")
    assert "holds a key in clear" in text
    html = page.content.decode()
    assert "canary" not in html
    assert "•••" in html


def test_of_several_keys_in_clear_and_keys_in_unknown_places_none_is_shown_again(editor: Client) -> None:
    values = {"base_url": "https://a.example", "token": f"{CANARY}1", "secret": f"{CANARY}2"}
    page = tried(editor, {**load("openai"), "values": values, "api_key": f"{CANARY}3"})
    [(field, texts)] = errors_of(page).items()
    assert (field, len(texts)) == ("config", 3)
    html = page.content.decode()
    assert "canary" not in html
    assert html.count("•••") == 3


def test_one_button_fills_in_the_form_of_a_new_endpoint(editor: Client) -> None:
    fields = {
        "_from_lab": "1",
        "config": json.dumps({"ready": "azure"}),
        "values": '{"base_url": "https://r.openai.azure.com"}',
        "mode": "whole",
        "model": "gpt",
        "params": '{"temperature": 0.2}',
    }
    page = editor.post(ADD, fields)
    assert page.status_code == 200
    initial = page.context["adminform"].form.initial
    assert (initial["name"], initial["dialect"], initial["model"]) == ("azure", "declarative", "gpt")
    kept = {"ready": "azure", "values": {"base_url": "https://r.openai.azure.com"}, "mode": "whole"}
    assert (initial["config"], initial["params"]) == (kept, {"temperature": 0.2})
    assert not Endpoint.objects.exists()
    filled = {
        "name": "新的", "dialect": "declarative", "model": "gpt", "priority": "10", "weight": "1", "params": "{}",
        "config": json.dumps(initial["config"]), "grants-TOTAL_FORMS": "0", "grants-INITIAL_FORMS": "0",
    }  # fmt: skip
    assert editor.post(ADD, filled).status_code == 302
    assert Endpoint.objects.get().config == kept


def test_a_plain_configuration_is_taken_over_as_it_is(editor: Client) -> None:
    page = editor.post(ADD, {"_from_lab": "1", "config": json.dumps(load("openai"))})
    assert page.context["adminform"].form.initial["config"] == load("openai")
    back = editor.post(ADD, {"_from_lab": "1", "config": '{"ready": "nobody"}'})
    assert back.templates[0].name == "admin/providers/endpoint/lab.html"
    assert "config" in errors_of(back)


def test_who_may_not_add_has_no_such_button() -> None:
    reader = staff("view")
    assert "_from_lab" not in reader.get(LAB).content.decode()
    assert reader.post(ADD, {"_from_lab": "1", "config": '{"ready": "openai"}'}).status_code == 403


def test_markup_in_what_is_pasted_stays_text(editor: Client) -> None:
    mark = "<script>alert(1)</script>"
    answer = json.dumps({"choices": [{"index": 0, "delta": {"content": mark}, "finish_reason": mark}]})
    page = tried(editor, {"ready": "openai"}, model=mark, question=mark, transcript=f"data: {answer}\n\n")
    assert page.context["text"] == mark
    assert mark not in page.content.decode()


def test_the_page_speaks_chinese() -> None:
    reader = staff("view", "add", language="zh-hans")
    page = tried(reader, {**load("openai"), "surprise": 1})
    assert errors_of(page) == {"config": ["surprise: 是未知的键（API 段是含有 url 的对象）"]}
    html = tried(reader, {"ready": "openai"}, transcript="data: [DONE]\n\n").content.decode()
    for words in ("接入点试验台", "录下的回答", "结束：[DONE]", "用它新建接入点"):
        assert words in html
