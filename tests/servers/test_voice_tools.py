"""Voice and tools together: what a person hears, and what is kept, while models search, call, loop and die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psycopg
import pytest

from tests.fakes.backend import Backend, start_backend
from tests.fakes.provider import FakeProvider, expected_text
from tests.fakes.rtc import WELCOME, FakeRtc, Heard, scene_script, start_fake_rtc
from tests.servers.conftest import Person, person, provider_settings
from tests.servers.test_voice import CALLBACK_KEY, Speaker
from tests.serving import ROOT, Server, environment, new_database, serving

pytestmark = pytest.mark.servers

APOLOGY = "抱歉，我刚才走神了，请您再说一遍。"
DOCUMENT = "# 门店营业时间\n周末从十点开到二十二点，春节初一休息。"


@dataclass
class House:
    """The demo site with a scene, a document, and tools of its own."""

    rtc: FakeRtc
    provider: FakeProvider
    backend: Backend
    database: str
    log: Path

    def switch(self, **settings: Any) -> None:
        """Set settings of the site."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(
                "UPDATE conversations_site SET settings = settings || %s WHERE slug = 'demo'",
                [json.dumps(settings)],
            )

    @property
    def more(self) -> dict[str, str]:
        """The environment of a server in it."""
        allowed = f"{self.rtc.address},127.0.0.1:{self.provider.port},{self.backend.address}"
        return {**provider_settings(self.provider), "PROVIDER_ALLOWED_ADDRESSES": allowed}

    def prompt(self, number: int = -1) -> list[dict[str, Any]]:
        """Return the messages that the model was asked, last by default."""
        return list(self.provider.stats()["bodies"][number]["messages"])


@pytest.fixture(scope="module")
def house(fake_provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The house without a server."""
    log = tmp_path_factory.mktemp("voice-tools") / "server.log"
    with start_fake_rtc() as rtc, start_backend() as backend, new_database() as url:
        yield House(rtc, fake_provider, backend, url, log)


@pytest.fixture(scope="module")
def alice(house: House) -> Iterator[Person]:
    """Alice in front of two workers."""
    with serving("uvicorn", house.database, house.log, workers=2, **house.more) as server:
        script = scene_script(rtc=house.rtc.base_url, server=server.url, callback_key=CALLBACK_KEY)
        env = environment(house.database)
        subprocess.run([sys.executable, "manage.py", "shell", "-c", script], cwd=ROOT, env=env, check=True)
        with psycopg.connect(house.database, autocommit=True) as connection:
            for name, path in (("weather", "/weather"), ("slow_tool", "/slow")):
                connection.execute(
                    "INSERT INTO conversations_site_tool (site_id, name, description, parameters, method, url,"
                    " query, headers, secret_encrypted, secret_mask, timeout_seconds, is_active, created_at,"
                    " updated_at) SELECT id, %s, '', %s, 'GET', %s, %s, '{}', '', '', 9, true, now(), now()"
                    "   FROM conversations_site WHERE slug = 'demo'",
                    [
                        name,
                        json.dumps({"type": "object", "properties": {"city": {"type": "string"}}}),
                        house.backend.url + path,
                        json.dumps({"city": "${args.city}"}),
                    ],
                )
        with person(server, "staff") as staff:
            files = {"file": ("门店.md", DOCUMENT.encode())}
            made = staff.client.post("/api/knowledge/documents", data={"title": "门店须知"}, files=files)
            assert made.status_code == 201, made.text
        house.switch(tools=["current_time", "search_knowledge", "weather", "slow_tool"])
        with person(server) as found:
            yield found
    assert CALLBACK_KEY not in house.log.read_text(errors="replace")


@pytest.fixture
def speaker(alice: Person, house: House) -> Speaker:
    house.switch(knowledge="off")
    return Speaker(alice, house.rtc)


def tool_rows(house: House, room: str) -> list[dict[str, Any]]:
    """Return what is stored of tools in a room, in their order."""
    with psycopg.connect(house.database) as connection:
        rows = connection.execute(
            "SELECT message.content, message.status, message.channel FROM conversations_message message"
            " JOIN conversations_voice_session session ON session.conversation_id = message.conversation_id"
            " WHERE session.room_id = %s AND message.role = 'tool' ORDER BY message.id",
            [room],
        ).fetchall()
    return [{**json.loads(content), "status": status, "channel": channel} for content, status, channel in rows]


def eventually(condition: Callable[[], Any], *, seconds: float = 10) -> Any:
    """Return what the condition gives, once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("asks", "gives"),
    [
        ("tool=current_time", "现在是"),
        ('tool=weather args={"city":"北京"}', '"城市": "北京"'),
        ('tool=search_knowledge args={"query":"门店周末营业时间"}', "周末从十点开到二十二点"),
    ],
    ids=["built_in", "http", "knowledge"],
)
def test_the_official_sdk_reads_a_stream_while_tools_run(
    alice: Person, house: House, speaker: Speaker, asks: str, gives: str
) -> None:
    question = f"请查 [[n=12 say=3 {asks}]]"
    text, reasons, ids, usage = "", [], set(), None
    with openai.OpenAI(
        base_url=f"{alice.server.url}/api/chat_callback",
        api_key=CALLBACK_KEY,
        default_query={"room_id": speaker.room},
        max_retries=0,
    ) as client:
        for chunk in client.chat.completions.create(
            model="ep-sdk",
            messages=[{"role": "user", "content": question}],
            stream=True,
            stream_options={"include_usage": True},
        ):
            choice = chunk.choices[0]
            assert choice.delta.tool_calls is None
            ids.add(chunk.id)
            text += choice.delta.content or ""
            reasons.append(choice.finish_reason)
            usage = chunk.usage or usage
    assert text == expected_text(1, 3) + expected_text(1, 12)
    assert (len(ids), reasons[-1], set(reasons[:-1])) == (1, "stop", {None})
    assert usage is not None and usage.completion_tokens == 15
    assert gives in house.prompt()[-1]["content"] and house.prompt()[-1]["role"] == "tool"
    assert speaker.messages() == [("user", question, "complete"), ("assistant", text, "complete")]
    [run] = tool_rows(house, speaker.room)
    assert (run["outcome"], run["status"], run["channel"]) == ("done", "complete", "voice")


def test_a_search_before_the_answer_is_heard_and_its_words_are_not_stored(house: House, speaker: Speaker) -> None:
    house.switch(knowledge="before")
    question = "门店周末开到几点？[[n=4]]"
    (call,) = speaker.say(question)
    assert call["text"] == expected_text(1, 4)
    *before, asked = house.prompt()
    assert [message["content"] for message in before] == ["说话简短。", WELCOME]
    assert asked["content"] != question and "周末从十点开到二十二点" in asked["content"]
    assert speaker.messages()[0][1] == question
    again = "那春节呢？[[n=2]]"
    speaker.say(again)
    # The earlier question is there as it was said, once.
    assert [m["content"] for m in house.prompt()[1:-1]] == [WELCOME, question, call["text"]]


def test_a_model_that_may_search_is_offered_that_in_voice_too(house: House, speaker: Speaker) -> None:
    house.switch(knowledge="tool")
    (call,) = speaker.say('门店周末？[[n=4 tool=search_knowledge args={"query":"门店周末营业时间"}]]')
    assert call["text"] == expected_text(1, 4)
    body = house.provider.stats()["bodies"][-1]
    assert "search_knowledge" in [tool["function"]["name"] for tool in body["tools"]]
    assert "周末从十点开到二十二点" in body["messages"][-1]["content"]
    card = speaker_card(speaker)
    assert card["type"] == "knowledge" and "门店须知" in [source["title"] for source in card["sources"]]


def speaker_card(speaker: Speaker) -> dict[str, Any]:
    """Return the reference card of the last message of a room."""
    card: dict[str, Any] = speaker._member.messages(speaker.chat_id)[-1]["referenceCard"]
    return card


def test_chat_voice_with_tools_and_chat_are_one_history_and_one_context(
    alice: Person, house: House, speaker: Speaker
) -> None:
    chat_id = alice.new_chat()
    typed = "打字一 [[n=2 seed=1 say=1 tool=current_time]]"
    alice.say(chat_id, typed)
    speaker = Speaker(alice, house.rtc, chatId=chat_id)
    spoken = '说话二 [[n=2 seed=2 say=3 tool=weather args={"city":"上海"}]]'
    (call,) = speaker.say(spoken)
    speaker.stop()
    alice.say(chat_id, "打字三 [[n=2 seed=3]]")
    replies = [expected_text(1, 1) + expected_text(1, 2), expected_text(2, 3) + expected_text(2, 2)]
    assert call["text"] == replies[1]
    assert [(message["role"], message["content"]) for message in house.prompt()] == [
        ("user", typed),
        ("assistant", replies[0]),
        ("user", spoken),
        ("assistant", replies[1]),
        ("user", "打字三 [[n=2 seed=3]]"),
    ]
    assert [(role, content) for role, content, _ in speaker.messages(chat_id)] == [
        *[(message["role"], message["content"]) for message in house.prompt()],
        ("assistant", expected_text(3, 2)),
    ]
    listed = alice.call("GET", "history").json()["items"]
    assert next(item for item in listed if item["chatId"] == chat_id)["messageCount"] == 6


def test_a_sentence_that_grows_while_a_tool_runs_keeps_one_turn_and_its_own_tools(
    house: House, speaker: Speaker
) -> None:
    end = " [[n=2 tool=slow_tool]]"
    calls = speaker.say("今天天气怎么样 [[n=2 tool=weather]]", prefill=["今天" + end, "今天天气" + end], gap=0.6)
    assert calls[-1]["text"] == expected_text(1, 2)
    assert [(role, status) for role, _, status in speaker.messages()] == [
        ("user", "complete"),
        ("assistant", "complete"),
    ]
    assert [run["name"] for run in tool_rows(house, speaker.room)] == ["weather"]


@pytest.mark.parametrize(
    ("wish", "status"), [("n=0", "complete"), ("n=0 after=0 fault=content_filter", "truncated")]
)
def test_a_reply_without_a_word_is_apologised_for_not_silent(speaker: Speaker, wish: str, status: str) -> None:
    (call,) = speaker.say(f"嗯 [[{wish}]]")
    assert (call["text"], call["is_done"]) == (APOLOGY, True)
    assert speaker.messages()[1:] == [("assistant", "", status)]


class Caller:
    """The platform's call, made by hand, since a platform knows one server only."""

    def __init__(self, server: Server, room: str) -> None:
        self._url = f"{server.url}/api/chat_callback?room_id={room}"

    def call(self, text: str) -> AbstractContextManager[httpx.Response]:
        """Return the answer, to be read."""
        body = {"messages": [{"role": "user", "content": text}], "stream": True}
        headers = {"Authorization": f"Bearer {CALLBACK_KEY}"}
        return httpx.stream("POST", self._url, json=body, headers=headers, timeout=30)

    def say(self, text: str, heard: Heard | None = None) -> Heard:
        """Return what was heard, to the end or until the server died."""
        heard = Heard() if heard is None else heard
        since, data = time.monotonic(), ""
        try:
            with self.call(text) as answer:
                heard.status = answer.status_code
                for piece in answer.iter_text():
                    *events, data = (data + piece).split("\n\n")
                    for event in events:
                        heard.take(event, since)
        except httpx.HTTPError:
            heard.is_dropped = True
        return heard


def test_who_interrupts_a_tool_leaves_a_reply_with_what_was_heard(
    alice: Person, house: House, speaker: Speaker
) -> None:
    question, heard = "等一下 [[n=9 say=3 tool=slow_tool]]", Heard()
    with Caller(alice.server, speaker.room).call(question) as answer:
        pieces = answer.iter_text()
        while len(heard.text) < len(expected_text(1, 3)):
            for event in next(pieces).split("\n\n")[:-1]:
                heard.take(event, 0)
        eventually(lambda: tool_rows(house, speaker.room))
    began = time.monotonic()
    (after,) = speaker.say("换一个问题 [[n=2]]")
    assert after["text"] == expected_text(1, 2) and time.monotonic() - began < 2.5
    assert [(content, status) for _, content, status in speaker.messages()] == [
        (question, "complete"),
        (expected_text(1, 3), "stopped"),
        ("换一个问题 [[n=2]]", "complete"),
        (expected_text(1, 2), "complete"),
    ]
    [run] = tool_rows(house, speaker.room)
    assert run["status"] == "interrupted" and "outcome" not in run


@pytest.mark.parametrize("when", ["in_speech", "in_a_tool"])
def test_a_worker_killed_in_a_turn_loses_nothing_heard_and_the_room_goes_on(
    alice: Person, house: House, speaker: Speaker, when: str
) -> None:
    question = {
        "in_speech": "讲个长故事 [[n=400 rate=40]]",
        "in_a_tool": "查一下再讲 [[n=9 say=3 tool=slow_tool]]",
    }[when]
    first = Heard()
    with serving("uvicorn", house.database, house.log, workers=1, **house.more) as doomed:
        thread = threading.Thread(target=Caller(doomed, speaker.room).say, args=(question, first))
        thread.start()
        enough = 20 if when == "in_speech" else len(expected_text(1, 3))
        eventually(lambda: len(first.text) >= enough)
        if when == "in_a_tool":
            eventually(lambda: tool_rows(house, speaker.room))
        os.killpg(doomed.process.pid, signal.SIGKILL)
        thread.join(10)
    assert first.is_dropped and not first.is_done and first.wrong == []
    after = Caller(alice.server, speaker.room).say("还在吗 [[n=2 seed=5]]")
    assert (after.text, after.finish_reason, after.wrong) == (expected_text(5, 2), "stop", [])
    said, kept, _, reply = speaker.messages()
    assert (said[1], kept[2]) == (question, "interrupted")
    assert kept[1].startswith(first.text)
    assert reply == ("assistant", expected_text(5, 2), "complete")
    assert [message["content"] for message in house.prompt()] == [question, kept[1], "还在吗 [[n=2 seed=5]]"]
    with psycopg.connect(house.database) as connection:
        left = connection.execute(
            "SELECT (SELECT count(*) FROM conversations_message WHERE status = 'streaming'),"
            " (SELECT count(*) FROM conversations_generation WHERE status = 'running')"
        ).fetchone()
    assert left == (0, 0)


def test_a_turn_whose_worker_was_killed_is_answered_when_it_comes_again(
    alice: Person, house: House, speaker: Speaker
) -> None:
    question = "再说一遍 [[n=40 rate=40 say=2 tool=current_time]]"
    first = Heard()
    with serving("uvicorn", house.database, house.log, workers=1, **house.more) as doomed:
        thread = threading.Thread(target=Caller(doomed, speaker.room).say, args=(question, first))
        thread.start()
        eventually(lambda: len(first.text) >= 20)
        os.killpg(doomed.process.pid, signal.SIGKILL)
        thread.join(10)
    caller = Caller(alice.server, speaker.room)
    # Whoever comes before anybody knows of the death hears what there is, and is asked to say it again.
    early = caller.say(question)
    assert early.text.removesuffix(APOLOGY).startswith(first.text) and early.finish_reason == "stop"
    again = caller.say(question)
    whole = expected_text(1, 2) + expected_text(1, 40)
    assert (again.text, again.finish_reason) == (whole, "stop")
    assert speaker.messages() == [("user", question, "complete"), ("assistant", whole, "complete")]
    assert [run["outcome"] for run in tool_rows(house, speaker.room)] == ["done"]
