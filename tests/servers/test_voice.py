"""People who speak, under uvicorn and under daphne: a platform of its own process, real sockets, real hang-ups."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from benchmarks.lib.report import Report
from benchmarks.voice import judge, plan
from tests.fakes.provider import FakeProvider, expected_text
from tests.fakes.rtc import SECRET_KEY, WELCOME, FakeRtc, scene_script, start_fake_rtc
from tests.servers.conftest import Person, person, provider_settings
from tests.serving import ROOT, Kind, environment, new_database, serving

pytestmark = pytest.mark.servers

CALLBACK_KEY = "canary-callback-key-0123456789"


@pytest.fixture(scope="module")
def rtc() -> Iterator[FakeRtc]:
    """The platform."""
    with start_fake_rtc() as platform:
        yield platform


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def alice(
    request: pytest.FixtureRequest,
    rtc: FakeRtc,
    fake_provider: FakeProvider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Person]:
    """Alice in front of two workers of uvicorn, or one daphne, with a scene on the platform."""
    kind: Kind = request.param
    log = tmp_path_factory.mktemp("voice") / "server.log"
    allowed = f"{rtc.address},127.0.0.1:{fake_provider.port}"
    more = {**provider_settings(fake_provider), "PROVIDER_ALLOWED_ADDRESSES": allowed}
    with new_database() as url, serving(kind, url, log, workers=2, **more) as server:
        script = scene_script(rtc=rtc.base_url, server=server.url, callback_key=CALLBACK_KEY)
        subprocess.run(
            [sys.executable, "manage.py", "shell", "-c", script], cwd=ROOT, env=environment(url), check=True
        )
        with person(server) as found:
            yield found
    text = log.read_text(errors="replace")
    assert CALLBACK_KEY not in text
    assert SECRET_KEY not in text


class Speaker:
    """A person in a room of their own."""

    def __init__(self, alice: Person, rtc: FakeRtc, **body: Any) -> None:
        self._client = alice.client
        self._rtc = rtc
        self._member = alice
        opened = self._client.post("/getScenes?Action=getScenes", json=body)
        assert opened.status_code == 200, opened.text
        self.room: str = opened.json()["Result"]["scenes"][0]["rtc"]["RoomId"]
        self._proxy("StartVoiceChat")

    def _proxy(self, action: str) -> None:
        answer = self._client.post(f"/proxy?Action={action}", json={"SceneID": "Custom", "RoomID": self.room})
        assert answer.json().get("Result") == "ok", answer.text

    def say(self, text: str, **more: Any) -> list[dict[str, Any]]:
        """Return the calls these words made, each as it should be."""
        calls = self._rtc.say(self.room, text, **more)
        assert [problem for call in calls for problem in call["wrong"]] == []
        return calls

    def stop(self) -> None:
        """Leave."""
        self._proxy("StopVoiceChat")

    @property
    def chat_id(self) -> int:
        """The conversation of the room."""
        found = self._member.call("GET", f"messages?contextType=voice&contextId={self.room}").json()
        return int(found["chatId"])

    def messages(self, chat_id: int | None = None) -> list[tuple[str, str, str]]:
        """Return role, content and status of what is stored, when nothing is under way any more."""
        wanted = chat_id or self.chat_id
        deadline = time.monotonic() + 8
        while True:
            items = self._member.messages(wanted)
            if all(item["status"] != "streaming" for item in items) or time.monotonic() > deadline:
                return [(item["role"], item["content"], item["status"]) for item in items]
            time.sleep(0.05)


def last_prompt(provider: FakeProvider) -> list[tuple[str, str]]:
    """Return what the model was last asked."""
    return [(m["role"], m["content"]) for m in provider.stats()["bodies"][-1]["messages"]]


def test_a_conversation_by_voice_is_stored_once_and_asked_once(
    alice: Person, rtc: FakeRtc, fake_provider: FakeProvider
) -> None:
    speaker = Speaker(alice, rtc)
    texts = [f"第{n}问 [[n=12 seed={n} rate=400]]" for n in range(1, 6)]
    for text in texts:
        (call,) = speaker.say(text)
        assert (call["status"], call["finish_reason"], call["is_done"]) == (200, "stop", True)
    answers = [expected_text(n, 12) for n in range(1, 6)]
    stored = speaker.messages()
    assert stored == [
        line
        for text, answer in zip(texts, answers, strict=True)
        for line in (("user", text, "complete"), ("assistant", answer, "complete"))
    ]
    # The platform sent its last three rounds too: every turn stands there once, its instructions first.
    said = [line for pair in zip(texts, answers, strict=True) for line in pair][:-1]
    assert [content for _, content in last_prompt(fake_provider)] == ["说话简短。", *said]
    body = fake_provider.stats()["bodies"][-1]
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (1024, 0.1, 0.3)
    speaker.stop()
    assert speaker.room not in rtc.stats()["running"]


def test_the_welcome_message_stays_where_the_platform_has_it(
    alice: Person, rtc: FakeRtc, fake_provider: FakeProvider
) -> None:
    speaker = Speaker(alice, rtc)
    speaker.say("你好 [[n=3]]")
    assert last_prompt(fake_provider)[1:] == [("assistant", WELCOME), ("user", "你好 [[n=3]]")]


def test_an_interrupted_reply_is_stored_as_heard_and_upstream_is_closed(
    alice: Person, rtc: FakeRtc, fake_provider: FakeProvider
) -> None:
    speaker = Speaker(alice, rtc)
    before = len(fake_provider.stats()["closed_by_client"])
    (call,) = speaker.say("讲个故事 [[n=3000 rate=100]]", drop_chars=30)
    assert call["is_dropped"]
    question, (role, heard, status) = speaker.messages()
    assert (question[1], role, status) == ("讲个故事 [[n=3000 rate=100]]", "assistant", "stopped")
    # What was on its way when the platform hung up may not have reached it.
    assert heard.startswith(call["text"])
    assert len(heard) < len(call["text"]) + 200
    assert len(fake_provider.stats()["closed_by_client"]) == before + 1
    speaker.say("换一个 [[n=2]]")
    prompt = last_prompt(fake_provider)
    assert [line for line in prompt if line[0] == "assistant"][-1] == ("assistant", heard)
    assert prompt[-1] == ("user", "换一个 [[n=2]]")


def test_a_reply_that_is_all_there_but_not_all_heard_is_stored_as_heard(alice: Person, rtc: FakeRtc) -> None:
    speaker = Speaker(alice, rtc)
    (call,) = speaker.say("快 [[n=40 rate=20]]", drop_chars=10)
    assert [status for _, _, status in speaker.messages()] == ["complete", "stopped"]
    assert speaker.messages()[1][1].startswith(call["text"])


def test_a_sentence_that_grows_gives_one_question_and_one_reply(alice: Person, rtc: FakeRtc) -> None:
    speaker = Speaker(alice, rtc)
    speaker.say("先说一句 [[n=2]]")
    calls = speaker.say(
        "今天天气怎么样 [[n=20 seed=9]]",
        prefill=["今天", "今天天气", "今天天气怎么样"],
        gap=0.15,
    )
    assert len(calls) == 4
    assert speaker.messages()[2:] == [
        ("user", "今天天气怎么样 [[n=20 seed=9]]", "complete"),
        ("assistant", expected_text(9, 20), "complete"),
    ]


def test_a_round_id_holds_a_turn_together_that_was_heard_anew(alice: Person, rtc: FakeRtc) -> None:
    speaker = Speaker(alice, rtc)
    speaker.say("明天呢 [[n=4]]", prefill=["名田"], gap=0.1, round="r-1")
    speaker.say("后天呢 [[n=4]]", round="r-2")
    assert [text for role, text, _ in speaker.messages() if role == "user"] == ["明天呢 [[n=4]]", "后天呢 [[n=4]]"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_repeated_call_asks_the_model_once(
    alice: Person, rtc: FakeRtc, fake_provider: FakeProvider, at_once: bool
) -> None:
    speaker = Speaker(alice, rtc)
    tag = f"{alice.server.kind}-{at_once}"
    calls = speaker.say(f"你好 [[n=40 rate=100 tag={tag}]]", again=2, at_once=at_once)
    assert {call["text"] for call in calls} == {expected_text(1, 40)}
    assert len(speaker.messages()) == 2
    counted = fake_provider.stats()["by_directive"]
    assert sum(count for words, count in counted.items() if f"tag={tag}" in words) == 1


@pytest.mark.parametrize("fault", ["500", "stall after=4", "reset after=4", "401"])
def test_a_failing_model_is_apologised_for(alice: Person, rtc: FakeRtc, fault: str) -> None:
    speaker = Speaker(alice, rtc)
    (call,) = speaker.say(f"出错 [[n=9 fault={fault}]]")
    assert call["text"].endswith("抱歉，我刚才走神了，请您再说一遍。")
    assert (call["finish_reason"], call["is_done"]) == ("stop", True)
    role, text, status = speaker.messages()[1]
    assert (role, status) == ("assistant", "failed")
    assert "抱歉" not in text


def test_thoughts_are_never_spoken(alice: Person, rtc: FakeRtc) -> None:
    speaker = Speaker(alice, rtc)
    (call,) = speaker.say("想想 [[n=6 fault=reasoning]]")
    assert call["text"] == speaker.messages()[1][1] != ""


def test_after_the_room_is_left_its_words_are_kept_and_not_seen_by_a_later_turn(
    alice: Person, rtc: FakeRtc, fake_provider: FakeProvider
) -> None:
    speaker = Speaker(alice, rtc)
    speaker.say("秘密是橡果 [[n=2]]")
    speaker.stop()
    chat_id = speaker.chat_id
    alice.say(chat_id, "我说过什么 [[n=2]]")
    assert [content for _, content in last_prompt(fake_provider)] == ["我说过什么 [[n=2]]"]
    assert ("user", "秘密是橡果 [[n=2]]", "complete") in speaker.messages(chat_id)


def test_a_chat_goes_on_by_voice_and_as_a_chat_again(
    alice: Person, rtc: FakeRtc, fake_provider: FakeProvider
) -> None:
    chat_id = alice.new_chat()
    alice.say(chat_id, "打字一 [[n=2 seed=1]]")
    speaker = Speaker(alice, rtc, chatId=chat_id)
    speaker.say("说话二 [[n=2 seed=2]]")
    assert [content for _, content in last_prompt(fake_provider)] == [
        "说话简短。",
        "打字一 [[n=2 seed=1]]",
        expected_text(1, 2),
        WELCOME,
        "说话二 [[n=2 seed=2]]",
    ]
    speaker.stop()
    alice.say(chat_id, "打字三 [[n=2 seed=3]]")
    assert [content for _, content in last_prompt(fake_provider)] == [
        "打字一 [[n=2 seed=1]]",
        expected_text(1, 2),
        "说话二 [[n=2 seed=2]]",
        expected_text(2, 2),
        "打字三 [[n=2 seed=3]]",
    ]
    assert len(speaker.messages(chat_id)) == 6


def test_many_rooms_at_once_stay_what_was_said(alice: Person, rtc: FakeRtc) -> None:
    """The small form of `python -m benchmarks.voice`: plain, interrupted, growing and repeated turns, mixed."""
    dice = random.Random(7)
    report = Report("rooms at once", Namespace(record=False))
    talks = [[plan(dice, room, number, rate=100) for number in range(4)] for room in range(8)]
    with ThreadPoolExecutor(8) as pool:
        speakers = list(pool.map(lambda _: Speaker(alice, rtc), range(8)))

        def talk(number: int) -> list[dict[str, Any]]:
            for turn in talks[number]:
                turn.calls = speakers[number].say(turn.text, **turn.order)
            speakers[number].messages()
            return alice.messages(speakers[number].chat_id)

        for turns, stored in zip(talks, pool.map(talk, range(8)), strict=True):
            judge(report, turns, stored)
        list(pool.map(Speaker.stop, speakers))
    assert report.failures == {}
    assert len({speaker.room for speaker in speakers}) == 8
    assert not {speaker.room for speaker in speakers} & set(rtc.stats()["running"])


def test_the_platform_is_refused_in_its_own_words(alice: Person, rtc: FakeRtc) -> None:
    speaker = Speaker(alice, rtc)
    url = f"{alice.server.url}/api/chat_callback?room_id={speaker.room}"
    key = {"Authorization": f"Bearer {CALLBACK_KEY}"}
    unknown = httpx.post(url, json={"messages": [{"role": "user", "content": "好"}]})
    assert (unknown.status_code, unknown.json()["Error"]["Code"]) == (401, "AuthenticationError")
    empty = httpx.post(url, json={"messages": [{"role": "user", "content": "欢迎语"}]}, headers=key)
    assert (empty.status_code, empty.json()) == (
        400,
        {"Error": {"Code": "BadRequest", "Message": "messages 不能为空"}},
    )


# --- OpenAI's own client reads what the platform reads ---

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "天气",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture
def speaker(alice: Person, rtc: FakeRtc) -> Speaker:
    return Speaker(alice, rtc)


@pytest.fixture
def client(alice: Person, speaker: Speaker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{alice.server.url}/api/chat_callback",
        api_key=CALLBACK_KEY,
        default_query={"room_id": speaker.room},
        max_retries=0,
    ) as made:
        yield made


def spoken(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS, "tool_choice": "auto"}], ids=["plain", "tools"])
def test_it_reads_a_stream(client: openai.OpenAI, speaker: Speaker, more: dict[str, Any]) -> None:
    text, reasons, usage, ids = "", [], None, set()
    stream = client.chat.completions.create(
        model="ep-sdk",
        messages=spoken("你好 [[n=40 rate=400]]"),
        stream=True,
        stream_options={"include_usage": True},
        **more,
    )
    for chunk in stream:
        ids.add(chunk.id)
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        reasons.append(choice.finish_reason)
        usage = chunk.usage or usage
        assert (chunk.object, chunk.model) == ("chat.completion.chunk", "ep-sdk")
    assert text == expected_text(1, 40) == speaker.messages()[1][1]
    assert (len(ids), reasons[-1], set(reasons[:-1])) == (1, "stop", {None})
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0


def test_it_reads_a_whole_completion(client: openai.OpenAI, speaker: Speaker) -> None:
    # Said aloud, since the SDK would leave it out, and whoever does that gets what the platform wants: a stream.
    whole = client.chat.completions.create(model="ep-sdk", messages=spoken("再来 [[n=12]]"), stream=False)
    assert whole.choices[0].message.content == expected_text(1, 12)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None


def test_it_raises_what_we_refuse(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        client.with_options(api_key="wrong").chat.completions.create(model="m", messages=spoken("好"), stream=True)
    assert wrong_key.value.status_code == 401
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(model="m", messages=[], stream=True)
    assert empty.value.response.json()["Error"]["Code"] == "BadRequest"
