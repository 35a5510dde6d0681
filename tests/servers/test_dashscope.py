"""A DashScope application behind two real workers: sessions, lost sessions, documents and blocked answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.provider import FakeProvider, expected_text, start_fake_provider
from tests.servers.conftest import Person, person
from tests.serving import ROOT, environment, new_database, serving

pytestmark = pytest.mark.servers

KEY = "sk-canary-dashscope-0123456789"
CONNECT = """
from providers.models import Endpoint
row = Endpoint(name="百炼", dialect="dashscope_app", base_url={url!r}, model="app-1")
row.params = {{"workspace": "ws_1"}}
row.set_api_key({key!r})
row.save()
"""


@pytest.fixture(scope="module")
def application() -> Iterator[FakeProvider]:
    """The application, in a process of its own: its sessions are this module's."""
    with start_fake_provider() as fake:
        yield fake


@pytest.fixture(scope="module")
def alice(application: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Alice in front of two workers whose only endpoint is the application."""
    log = tmp_path_factory.mktemp("dashscope") / "server.log"
    allowed = {"PROVIDER_ALLOWED_ADDRESSES": application.address}
    with new_database() as url:
        script = CONNECT.format(url=f"http://{application.address}", key=KEY)
        subprocess.run(
            [sys.executable, "manage.py", "shell", "-c", script], cwd=ROOT, env=environment(url), check=True
        )
        with serving("uvicorn", url, log, workers=2, **allowed) as server, person(server) as found:
            yield found
    assert KEY not in log.read_text(errors="replace")


def asked(application: FakeProvider) -> list[dict[str, Any]]:
    """Return the inputs of the requests so far."""
    return [body["input"] for body in application.stats()["bodies"]]


def test_a_chat_with_an_application_goes_on_and_shows_what_it_leans_on(
    alice: Person, application: FakeProvider
) -> None:
    application.reset()
    chat = alice.new_chat()
    first = alice.say(chat, "第一问 [[documents=2 thoughts=1 n=40 rate=200]]", include=["reasoning"])
    alice.say(chat, "第二问 [[lost=1]]")
    third = alice.say(chat, "第三问")
    inputs = asked(application)
    assert first.terminal is not None and third.terminal is not None
    event, data = first.terminal
    assert (event, data["status"], data["finishReason"]) == ("done", "complete", "stop")
    assert [source["title"] for source in data["referenceCard"]["sources"]] == ["手册1", "手册2"]
    assert (first.text, first.reasoning) == (expected_text(n=40), "想0")
    assert alice.messages(chat)[1]["referenceCard"] == data["referenceCard"]
    assert (third.terminal[0], third.text) == ("done", expected_text())
    assert [(set(one), one.get("session_id")) for one in inputs] == [
        ({"prompt", "biz_params"}, None),
        ({"prompt", "biz_params", "session_id"}, "session-1"),
        ({"prompt", "biz_params", "session_id"}, "session-1"),
        ({"messages", "biz_params"}, None),
    ]
    assert set(inputs[0]["biz_params"]) == {"User_ID", "Role", "Nickname"}
    [head, *_] = application.stats()["headers"]
    assert (head["path"], head["x-dashscope-sse"], head["x-dashscope-workspace"]) == (
        "/api/v1/apps/app-1/completion",
        "enable",
        "ws_1",
    )


def test_an_answer_that_is_blocked_keeps_what_was_said(alice: Person) -> None:
    chat = alice.new_chat()
    reading = alice.say(chat, "问 [[fault=apperror after=2]]")
    assert reading.terminal is not None
    event, data = reading.terminal
    assert (event, data["code"], data["savedChars"]) == ("error", "content_blocked", len(expected_text(n=2)))
    assert alice.messages(chat)[1]["content"] == reading.text == expected_text(n=2)
