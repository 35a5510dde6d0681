"""The platform's call as the platform sees it: chunks, statuses, interruption, prefill, and what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conversations.generation.engine import engine
from conversations.models import Conversation, Generation, Message, Site, VoiceSession
from tests.calling import Call, call
from tests.conversations.generation.conftest import eventually, in_unit
from tests.fakes.provider import expected_text
from tests.world import World, make_voice_scene, make_voice_session

APOLOGY = "抱歉，我刚才走神了，请您再说一遍。"


def open_room(world: World) -> VoiceSession:
    return make_voice_session(make_voice_scene(world.acorn), world.alice)


@asynccontextmanager
async def room_of(world: World) -> AsyncIterator[VoiceSession]:
    """Yield a room of Alice; the engine of this loop is closed at the end."""
    try:
        yield await in_unit(open_room, world)
    finally:
        await engine().close()


def messages(session: VoiceSession) -> list[Message]:
    return list(Message.across_sites.filter(conversation_id=session.conversation_id).order_by("id"))


async def stored(session: VoiceSession) -> list[tuple[str, str, str]]:
    """Return role, text and status of everything in the room's conversation."""
    return [(m.role, m.content, m.status) for m in await in_unit(messages, session)]


async def settled(session: VoiceSession) -> list[tuple[str, str, str]]:
    """Return the same when no reply is under way any more."""

    async def look() -> Any:
        rows = await stored(session)
        return rows if rows and all(status != "streaming" for _, _, status in rows) else None

    return await eventually(look)


def turns(*texts: str) -> list[dict[str, str]]:
    """Return messages, the person first."""
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


async def test_a_turn_is_answered_in_our_own_chunks_and_stored_as_a_spoken_one(people: World) -> None:
    async with room_of(people) as room:
        body = {
            "messages": turns("你好 [[n=30 rate=300 reasoning=5]]"),
            "model": "ep-1",
            "stream": True,
            "stream_options": {"include_usage": True},
            "device_id": "x",
            "custom": '{"a": 1}',
        }
        done = await call(room, body).end()
        rows = await in_unit(messages, room)
        attempt = await in_unit(Generation.across_sites.get, message_id=rows[1].pk)
    assert (done.status, done.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert done.body.endswith(b"\n\ndata: [DONE]\n\n")
    first, *middle, last = done.chunks
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in done.chunks}) == 1
    assert (first["object"], first["model"]) == ("chat.completion.chunk", "ep-1")
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert all(c["choices"][0]["finish_reason"] is None for c in middle)
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert last["usage"]["completion_tokens"] == 30
    assert sorted(last["usage"]) == ["completion_tokens", "prompt_tokens", "total_tokens"]
    assert [(m.role, m.status, m.channel) for m in rows] == [
        ("user", "complete", "voice"),
        ("assistant", "complete", "voice"),
    ]
    # Thoughts are stored apart and never spoken.
    assert done.text == rows[1].content == expected_text(1, 30)
    assert rows[1].reasoning != ""
    assert attempt.status == "complete"


async def test_the_first_chunk_does_not_wait_for_the_model(people: World) -> None:
    async with room_of(people) as room:
        calling = call(room, "你好 [[n=3 ttft=700]]")
        await eventually(lambda: _has(calling))
        assert (len(calling.chunks), calling.text) == (1, "")
        await calling.end()
    assert calling.text == expected_text(1, 3)


async def _has(calling: Call) -> bool:
    return bool(calling.chunks)


async def test_without_stream_the_answer_is_one_completion(people: World) -> None:
    async with room_of(people) as room:
        done = await call(room, {"messages": turns("你好 [[n=9]]"), "stream": False}).end()
    assert (done.status, done.json["object"]) == (200, "chat.completion")
    assert done.json["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected_text(1, 9)},
            "finish_reason": "stop",
        }
    ]


async def test_an_interrupted_reply_keeps_what_was_delivered_and_upstream_ends(people: World) -> None:
    async with room_of(people) as room:
        calling = call(room, "讲个故事 [[n=2000 rate=100]]")
        await calling.until(20)
        calling.hang_up()
        heard = calling.text
        rows = await settled(room)
        attempt = await in_unit(Generation.across_sites.get, status="stopped")
        again = await call(room, turns("讲个故事 [[n=2000 rate=100]]", heard, "换一个 [[n=2]]")).end()
        chat = await in_unit(Conversation.across_sites.get, pk=room.conversation_id)
        last = await in_unit(Generation.across_sites.order_by("-id").first)
    assert rows == [("user", "讲个故事 [[n=2000 rate=100]]", "complete"), ("assistant", heard, "stopped")]
    assert len(heard) >= 20
    assert attempt.upstream_closed_at is not None
    assert again.text == expected_text(1, 2)
    assert chat.message_count == 4
    # Question, what was heard, and the next question: the platform's own copy was not put beside ours.
    assert last.prompt_messages == 3


async def test_the_same_turn_growing_gives_one_question_and_one_reply(people: World) -> None:
    async with room_of(people) as room:
        for text in ("今天", "今天天气", "今天天气怎么样"):
            calling = call(room, f"{text}")
            await eventually(lambda calling=calling: _has(calling))
            await asyncio.sleep(0.05)
            calling.hang_up()
            await calling.end()
        whole = await call(room, "今天天气怎么样？").end()
        rows = await settled(room)
        chat = await in_unit(Conversation.across_sites.get, pk=room.conversation_id)
        attempts = await in_unit(lambda: list(Generation.across_sites.order_by("attempt")))
        reply = (await in_unit(messages, room))[1]
    assert [(role, status) for role, _, status in rows] == [("user", "complete"), ("assistant", "complete")]
    assert rows[0][1] == "今天天气怎么样？"
    assert rows[1][1] == whole.text
    assert (chat.message_count, chat.title, reply.version) == (2, "今天天气怎么样？", 1)
    assert [a.attempt for a in attempts] == list(range(1, len(attempts) + 1))
    assert {a.message_id for a in attempts} == {reply.pk}
    assert attempts[-1].status == "complete"


async def test_a_growing_turn_whose_earlier_calls_are_still_open_gives_one_reply(people: World) -> None:
    async with room_of(people) as room:
        calls = []
        for text in ("我想问", "我想问问", "我想问问明天"):
            calls.append(call(room, text))
            await eventually(lambda: _has(calls[-1]))
            await asyncio.sleep(0.1)
        for calling in calls:
            await calling.end()
        rows = await settled(room)
    assert [role for role, _, _ in rows] == ["user", "assistant"]
    assert rows[0][1] == "我想问问明天"
    assert rows[1][1:] == (calls[-1].text, "complete")
    assert {calling.finish_reason for calling in calls} == {"stop"}


async def test_a_repeated_call_gets_the_same_reply_and_asks_the_model_once(people: World) -> None:
    async with room_of(people) as room:
        ask = turns("你好 [[n=60 rate=200]]")
        first = call(room, ask)
        await first.until(10)
        second = call(room, ask)
        await asyncio.gather(first.end(), second.end())
        third = await call(room, ask).end()
        rows = await settled(room)
        attempts = await in_unit(Generation.across_sites.count)
    assert first.text == second.text == third.text == rows[1][1] == expected_text(1, 60)
    assert (len(rows), attempts) == (2, 1)
    assert len({first.chunks[0]["id"], second.chunks[0]["id"], third.chunks[0]["id"]}) == 3


async def test_a_call_that_is_dropped_unheard_and_repeated_at_once_asks_the_model_once(people: World) -> None:
    async with room_of(people) as room:
        ask = turns("你好 [[n=20 ttft=500]]")
        first = call(room, ask)
        await eventually(lambda: _has(first))
        first.hang_up()
        second = await call(room, ask).end()
        rows = await settled(room)
        attempts = await in_unit(Generation.across_sites.count)
    assert (second.text, rows[1][1:]) == (expected_text(1, 20), (expected_text(1, 20), "complete"))
    assert (len(rows), attempts) == (2, 1)


async def test_a_new_turn_ends_the_one_that_is_still_being_answered(people: World) -> None:
    async with room_of(people) as room:
        first = call(room, "讲个长故事 [[n=3000 rate=100]]")
        await first.until(10)
        second = await call(room, turns("讲个长故事 [[n=3000 rate=100]]", first.text, "停 [[n=2]]")).end()
        await first.end()
        rows = await settled(room)
    assert [(role, status) for role, _, status in rows] == [
        ("user", "complete"),
        ("assistant", "stopped"),
        ("user", "complete"),
        ("assistant", "complete"),
    ]
    assert rows[1][1] == first.text
    assert (first.finish_reason, second.finish_reason) == ("stop", "stop")


async def test_a_failure_is_apologised_for_once_and_not_stored_as_the_models_words(people: World) -> None:
    async with room_of(people) as room:
        done = await call(room, "出错 [[n=4 fail=unavailable]]").end()
        rows = await settled(room)
        again = await call(room, turns("出错 [[n=4 fail=unavailable]]", done.text, "再来 [[n=2]]")).end()
        last = await in_unit(Generation.across_sites.order_by("-id").first)
    assert done.text == expected_text(1, 4) + APOLOGY
    assert done.finish_reason == "stop"
    assert rows[1][1:] == (expected_text(1, 4), "failed")
    assert again.text == expected_text(1, 2)
    assert last.prompt_messages == 3


async def test_the_site_words_the_apology(people: World) -> None:
    def word(text: str) -> None:
        Site.objects.filter(pk=people.acorn.pk).update(settings={"voice_apology": text})

    async with room_of(people) as room:
        await in_unit(word, "稍等一下。")
        assert (await call(room, "一 [[n=0 fail=unavailable]]").end()).text == "稍等一下。"
        await in_unit(word, "")
        silent = await call(room, "二 [[n=0 fail=unavailable]]").end()
    assert (silent.text, silent.finish_reason) == ("", "stop")


BAD = {
    "no JSON": (b"{", "BadRequest"),
    "no object": (b"[]", "BadRequest"),
    "no messages": ({}, "BadRequest"),
    "empty": ({"messages": []}, "BadRequest"),
    "a text as messages": ({"messages": "你好"}, "BadRequest"),
    "only the welcome": (turns(" 欢迎语 "), "BadRequest"),
    "the assistant last": (turns("你好", "你好！"), "BadRequest"),
    "the welcome after a reply": (turns("你好", "你好！", "欢迎语"), "BadRequest"),
    "nothing said": (turns("  "), "BadRequest"),
    "too long": (turns("长" * 32_769), "BadRequest"),
}


async def test_what_cannot_be_answered_is_refused_in_the_platforms_shape_and_stores_nothing(people: World) -> None:
    async with room_of(people) as room:
        for name, (body, code) in BAD.items():
            refused = await call(room, body).end()
            assert (refused.status, refused.json["Error"]["Code"]) == (400, code), name
            assert sorted(refused.json) == ["Error"] and sorted(refused.json["Error"]) == ["Code", "Message"]
        assert await stored(room) == []


async def test_what_the_edge_refuses_is_told_in_the_platforms_shape_too(people: World, settings: Any) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000_000}}
    async with room_of(people) as room:
        seen = [{"role": "user", "content": [picture, {"type": "text", "text": "这是什么 [[n=2]]"}]}]
        assert (await call(room, seen).end()).text == expected_text(1, 2)
        refused = await call(room, b" " * 5_000_000).end()
    assert (refused.status, refused.json["Error"]["Code"]) == (413, "BadRequest")


async def test_a_worker_that_drains_begins_no_turn(people: World) -> None:
    async with room_of(people) as room:
        await call(room, "你好 [[n=1]]").end()
        engine().drain()
        refused = await call(room, "还在吗 [[n=1]]").end()
        assert len(await stored(room)) == 2
    assert (refused.status, refused.json["Error"]["Code"]) == (503, "InternalError")


async def test_strangers_are_all_told_the_same(people: World) -> None:
    def others() -> list[VoiceSession]:
        scene = make_voice_scene(people.birch, secrets={"callback_key": "the-key-of-birch-0000000001"})
        over = make_voice_session(make_voice_scene(people.acorn, "over"), people.bob, status="stopped")
        waits = make_voice_session(make_voice_scene(people.acorn, "waits"), people.dave)
        return [make_voice_session(scene, people.carol), over, waits]

    async with room_of(people) as room:
        foreign, over, waits = await in_unit(others)
        answers = [
            await call(room, "你好", key=None).end(),
            await call(room, "你好", key="wrong").end(),
            await call(room, "你好", key="").end(),
            await call(room, "你好", key="the-key-of-birch-0000000001").end(),
            await call(foreign, "你好").end(),
            await call(f"{people.acorn.pk}-nobody", "你好").end(),
            await call("999999-x", "你好").end(),
            await call("", "你好").end(),
            await call("%00", "你好").end(),
            await call(over, "你好").end(),
            await call(waits, "你好").end(),
            await call(room, "你好", query="").end(),
            await call(room, "你好", query=f"room_id={room.room_id}&room_id={room.room_id}").end(),
            await call(room, b"{", key="wrong").end(),
        ]
        assert await stored(room) == []
    assert {(answer.status, answer.body) for answer in answers} == {(401, answers[0].body)}
    assert answers[0].json["Error"]["Code"] == "AuthenticationError"


async def test_the_key_before_the_present_one_is_still_good(people: World) -> None:
    def turn_key() -> VoiceSession:
        scene = make_voice_scene(
            people.acorn,
            "turned",
            secrets={"callback_key": "the-new-key-00000000001", "previous_callback_key": "the-old-key-0000001"},
        )
        return make_voice_session(scene, people.bob)

    async with room_of(people):
        room = await in_unit(turn_key)
        for key in ("the-new-key-00000000001", "the-old-key-0000001"):
            assert (await call(room, "你好 [[n=1]]", key=key).end()).status == 200


async def test_other_methods_and_unknown_paths_below_are_refused(people: World) -> None:
    async with room_of(people) as room:
        assert (await call(room, "你好", method="GET").end()).status == 405
        assert (await call(room, "你好 [[n=1]]", path="/api/chat_callback/chat/completions").end()).status == 200
        assert (await call(room, "你好", path="/api/chat_callback/models").end()).status == 404


async def test_chat_voice_and_chat_share_one_history_and_one_context(people: World) -> None:
    from conversations.generation.actions import Send, start_reply
    from tests.conversations.generation.conftest import claims_of, new_chat

    chat = await in_unit(new_chat, people.alice)
    claims = await in_unit(claims_of, people.alice)
    async with room_of(people):
        scene = await in_unit(make_voice_scene, people.acorn, "mine")
        room = await in_unit(lambda: make_voice_session(scene, people.alice, conversation=chat))

        async def write(text: str) -> Any:
            started = await engine().accept(start_reply, claims, Send(chat.pk, text))
            await engine().ended(started.reply_id)
            return started

        await write("打字一 [[n=2]]")
        await call(room, turns("说话二 [[n=2]]")).end()
        last = await write("打字三 [[n=2]]")
        rows = await in_unit(messages, room)
    assert [m.channel for m in rows] == ["chat", "chat", "voice", "voice", "chat", "chat"]
    assert [m.content for m in last.prompt if m.role == "user"] == [
        "打字一 [[n=2]]",
        "说话二 [[n=2]]",
        "打字三 [[n=2]]",
    ]


@pytest.mark.parametrize("seed", [1, 2])
async def test_two_calls_at_the_same_moment_leave_one_turn(people: World, seed: int) -> None:
    async with room_of(people) as room:
        ask = turns(f"同时 [[n=20 seed={seed}]]")
        calls = [call(room, ask) for _ in range(6)]
        await asyncio.gather(*(one.end() for one in calls))
        rows = await settled(room)
        attempts = await in_unit(Generation.across_sites.count)
    assert {one.text for one in calls} == {expected_text(seed, 20)}
    assert (len(rows), attempts) == (2, 1)
