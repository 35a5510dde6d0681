"""Tools as a client of the stream meets them: asked for, they are events; otherwise nothing of them is seen."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.fakes.provider import FakeProvider, expected_text
from tests.servers.conftest import Person, person, provider_settings
from tests.servers.reading import Reading, read
from tests.serving import Server, serving

pytestmark = pytest.mark.servers

SAID, THEN = expected_text(1, 3), expected_text(1, 20)
QUESTION = "几点？ [[n=20 rate=100 say=3 tool=current_time,page_text]]"


@pytest.fixture(scope="module")
def offering_database(serving_database: str) -> Iterator[str]:
    """The database, its second demo site offering tools."""
    with psycopg.connect(serving_database, autocommit=True) as connection:
        kept = connection.execute("SELECT settings FROM conversations_site WHERE slug = 'demo2'").fetchone()
        assert kept is not None
        offered = json.dumps({**kept[0], "tools": ["current_time", "page_text"]})
        connection.execute("UPDATE conversations_site SET settings = %s WHERE slug = 'demo2'", [offered])
        yield serving_database
        connection.execute(
            "UPDATE conversations_site SET settings = %s WHERE slug = 'demo2'", [json.dumps(kept[0])]
        )


@pytest.fixture
def carol(server: Server, offering_database: str) -> Iterator[Person]:
    """Carol of the site with tools, in front of each server."""
    with person(server, "carol", "demo2") as found:
        yield found


def tools_of(reading: Reading) -> list[tuple[str, str]]:
    """Return name and status of the tool events."""
    return [(data["name"], data["status"]) for _, event, data in reading.events if event == "tool"]


def test_without_include_nothing_is_seen_of_tools(carol: Person) -> None:
    chat = carol.new_chat()
    reading = carol.say(chat, QUESTION)
    assert {event for _, event, _ in reading.events} == {"message", "done"}
    assert reading.text == SAID + THEN
    question, reply = carol.messages(chat)
    assert (question["role"], reply["role"], reply["content"]) == ("user", "assistant", SAID + THEN)
    assert carol.call("GET", "history").json()["items"][0]["messageCount"] == 2
    assert carol.call("GET", "search", params={"q": "current_time"}).json()["items"] == [] or all(
        item["role"] == "user"
        for item in carol.call("GET", "search", params={"q": "current_time"}).json()["items"]
    )
    assert reading.terminal is not None and reading.terminal[1]["usage"] == {"inputTokens": 20, "outputTokens": 23}


def test_with_include_tools_are_events_in_their_place(carol: Person) -> None:
    reading = carol.say(carol.new_chat(), QUESTION, include=["tool"])
    started = [index for index, (_, event, data) in enumerate(reading.events) if event == "tool"]
    before = "".join(data["token"] for _, event, data in reading.events[: started[0]] if event == "message")
    assert before == SAID
    assert reading.text == SAID + THEN
    assert sorted(tools_of(reading)) == [
        ("current_time", "done"),
        ("current_time", "started"),
        ("page_text", "failed"),
        ("page_text", "started"),
    ]
    for event_id, event, data in reading.events:
        assert (event == "tool") == (event_id is None)
        if event == "tool":
            assert set(data) == {"callId", "name", "arguments", "status", "ms"}
            assert data["arguments"] == {}


def test_a_replay_tells_of_tools_in_their_place_and_leaves_ids_alone(carol: Person) -> None:
    live = carol.say(carol.new_chat(), QUESTION, include=["tool"])
    replay = read(carol.client, "GET", f"/api/xcx/chat/messages/{live.message_id}/stream?include=tool")
    assert tools_of(replay) == [
        ("current_time", "started"),
        ("current_time", "done"),
        ("page_text", "started"),
        ("page_text", "failed"),
    ]
    kinds = [event for _, event, _ in replay.events]
    assert kinds == ["message", *["tool"] * 4, "message", "done"]
    assert replay.events[0][2]["token"] == SAID
    assert replay.text == live.text
    plain = read(carol.client, "GET", f"/api/xcx/chat/messages/{live.message_id}/stream")
    assert [event for _, event, _ in plain.events] == ["message", "done"]
    late = carol.resume(f"{live.message_id}-{len(SAID) + 1}", params={"include": "tool"})
    assert tools_of(late) == [] and late.text == live.text[len(SAID) + 1 :]
    there = carol.resume(f"{live.message_id}-{len(SAID)}", params={"include": "tool"})
    assert [event for _, event, _ in there.events] == [*["tool"] * 4, "message", "done"]


def test_arguments_nested_without_sense_do_not_break_the_stream(carol: Person) -> None:
    nested = '{"a":' * 300 + "{}" + "}" * 300
    question = f"[[n=3 tool=current_time args={nested}]]"
    reading = carol.say(carol.new_chat(), question, include=["tool"])
    assert [data["arguments"] for _, event, data in reading.events if event == "tool"] == [nested] * 2
    assert reading.terminal is not None and reading.terminal[1]["status"] == "complete"


def test_a_whole_reply_uses_tools(carol: Person) -> None:
    answer = carol.call("POST", f"{carol.new_chat()}/messages", json={"content": QUESTION})
    assert answer.status_code == 200
    assert answer.json()["aiReply"]["content"] == SAID + THEN


def test_a_reader_on_another_worker_is_told_too(
    offering_database: str, fake_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("tools") / "server.log"
    settings = provider_settings(fake_provider)
    with (
        serving("uvicorn", offering_database, log, **settings) as here,
        serving("uvicorn", offering_database, log, **settings) as there,
        person(here, "carol", "demo2") as owner,
        person(there, "carol", "demo2") as guest,
    ):
        chat = owner.new_chat()
        begun = owner.say(chat, QUESTION.replace("rate=100", "rate=20"), stop_after_bytes=80)
        found: list[Reading] = []
        path = f"/api/xcx/chat/messages/{begun.message_id}/stream?include=tool"
        thread = threading.Thread(target=lambda: found.append(read(guest.client, "GET", path)))
        thread.start()
        thread.join(15)
        [reading] = found
    assert reading.text == SAID + THEN
    assert sorted(tools_of(reading)) == [
        ("current_time", "done"),
        ("current_time", "started"),
        ("page_text", "failed"),
        ("page_text", "started"),
    ]


def test_the_reference_comes_before_done_only_when_asked_for(meet: Callable[..., Person]) -> None:
    dave = meet("alice")
    reading = dave.say(dave.new_chat(), "[[n=3]]", include=["reference"])
    assert [event for _, event, _ in reading.events][-1] == "done"
    assert "reference" not in {event for _, event, _ in reading.events}


def test_a_killed_worker_in_the_middle_of_a_tool_leaves_a_sealed_reply(
    offering_database: str, fake_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("kill") / "server.log"
    settings = provider_settings(fake_provider)
    with psycopg.connect(offering_database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO conversations_site_tool (site_id, name, description, parameters, method, url, query,"
            " headers, body, secret_encrypted, secret_mask, timeout_seconds, is_active, created_at, updated_at)"
            " SELECT id, 'slow_tool', '', '{}', 'POST', %s, '{}', '{}', %s, '', '', 9, true, now(), now()"
            "   FROM conversations_site WHERE slug = 'demo2'",
            [
                f"http://127.0.0.1:{fake_provider.port}/v1/chat/completions",
                json.dumps({"stream": True, "messages": [{"role": "user", "content": "[[delay=9000]]"}]}),
            ],
        )
        connection.execute(
            "UPDATE conversations_site SET settings = settings || %s WHERE slug = 'demo2'",
            [json.dumps({"tools": ["slow_tool"]})],
        )
    with (
        serving("uvicorn", offering_database, log, workers=1, **settings) as doomed,
        serving("uvicorn", offering_database, log, **settings) as there,
        person(doomed, "carol", "demo2") as owner,
        person(there, "carol", "demo2") as guest,
    ):
        chat = owner.new_chat()
        begun = owner.say(chat, "[[n=9 say=3 tool=slow_tool]]", include=["tool"], stop_after_bytes=150)
        os.killpg(doomed.process.pid, signal.SIGKILL)
        path = f"/api/xcx/chat/messages/{begun.message_id}/stream?include=tool"
        reading = read(guest.client, "GET", path)
        messages = guest.messages(chat)
    assert reading.text == SAID
    assert tools_of(reading) == [("slow_tool", "started"), ("slow_tool", "failed")]
    assert reading.terminal is not None and reading.terminal[1]["status"] == "interrupted"
    assert [(message["role"], message["status"]) for message in messages] == [
        ("user", "complete"),
        ("assistant", "interrupted"),
    ]
