"""What a client of the stream sees, under uvicorn and under daphne, over real sockets."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable

import httpx
import pytest

from tests.fakes.provider import CONTROL_TOKENS, NUL_TEXT, FakeProvider, expected_text
from tests.servers.conftest import Person
from tests.servers.reading import read
from tests.serving import Server

pytestmark = pytest.mark.servers


def test_the_tokens_are_the_stored_reply(alice: Person) -> None:
    chat = alice.new_chat()
    reading = alice.say(chat, "你好 [[n=40 rate=200]]")
    assert reading.body.startswith(b": ok\n\n")
    assert reading.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reading.headers["cache-control"] == "no-cache, no-transform"
    assert reading.headers["x-accel-buffering"] == "no"
    assert "connection" not in reading.headers
    question, reply = alice.messages(chat)
    assert (reading.headers["x-chat-id"], reading.headers["x-user-message-id"]) == (str(chat), str(question["id"]))
    assert reading.text == reply["content"] == expected_text(1, 40)
    event, data = reading.terminal or ("", {})
    assert event == "done"
    assert (data["messageId"], data["status"], data["finishReason"]) == (reply["id"], "complete", "stop")
    assert data["createdAt"] == reply["createdAt"]
    offset = 0
    for event_id, event, data in reading.events:
        offset += len(data["token"]) if event == "message" else 0
        assert event_id == f"{reply['id']}-{offset}"


def test_a_stream_may_be_cut_anywhere_and_resumed(alice: Person) -> None:
    chat, dice = alice.new_chat(), random.Random(7)
    for _ in range(12):
        reading = alice.say(chat, "[[n=60 rate=600]]", stop_after_bytes=dice.randint(30, 3000))
        message_id = reading.message_id
        pieces = [reading.text]
        last_id = reading.last_id if reading.events else f"{message_id}-0"
        while reading.terminal is None:
            time.sleep(dice.random() / 20)
            cut = dice.choice([None, dice.randint(30, 2000)])
            reading = alice.resume(last_id, stop_after_bytes=cut)
            assert reading.status == 200
            pieces.append(reading.text)
            last_id = reading.last_id if reading.events else last_id
        assert "".join(pieces) == expected_text(1, 60) == alice.messages(chat)[-1]["content"]


def test_resume_after_the_end_sends_the_rest_to_both_verbs(alice: Person) -> None:
    chat = alice.new_chat()
    whole = alice.say(chat, "[[n=30]]")
    middle = whole.text[:9]
    for reading in (
        alice.resume(f"{whole.message_id}-9"),
        read(alice.client, "GET", f"/api/xcx/chat/stream?lastEventId={whole.message_id}-9"),
        read(
            alice.client,
            "GET",
            f"/api/xcx/chat/messages/{whole.message_id}/stream",
            headers={"Last-Event-ID": f"{whole.message_id}-9"},
        ),
        alice.say(chat, "再来一次", headers={"Last-Event-ID": f"{whole.message_id}-9"}),
    ):
        assert middle + reading.text == whole.text
        assert reading.terminal == whole.terminal
    assert len(alice.messages(chat)) == 2


def test_the_client_may_leave_and_the_reply_goes_on(alice: Person) -> None:
    chat = alice.new_chat()
    reading = alice.say(chat, "[[n=40 rate=80]]", stop_after_bytes=60)
    shown = alice.call("GET", "history").json()["items"][0]
    assert (shown["chatId"], shown["generating"]) == (chat, True)
    running = alice.messages(chat)[-1]
    assert running["status"] == "streaming"
    assert expected_text(1, 40).startswith(running["content"])
    rest = read(alice.client, "GET", f"/api/xcx/chat/messages/{reading.message_id}/stream")
    assert rest.text == expected_text(1, 40)
    assert alice.messages(chat)[-1]["status"] == "complete"


FAULTS = [
    # directive, terminal event, status, code or finish reason, text
    ("n=20 fault=split_utf8", "done", "complete", "stop", expected_text(1, 20)),
    ("n=20 fault=crlf", "done", "complete", "stop", expected_text(1, 20)),
    ("n=6 fault=length", "done", "truncated", "length", None),
    ("n=6 fault=content_filter", "done", "truncated", "content_filter", None),
    ("fault=control", "done", "complete", "stop", "".join(CONTROL_TOKENS)),
    ("fault=nul", "done", "complete", "stop", NUL_TEXT),
    ("fault=empty", "done", "complete", "stop", ""),
    ("n=9 fault=stall after=5", "error", "failed", "provider_timeout", expected_text(1, 5)),
    ("n=9 fault=keepalive after=5", "error", "failed", "provider_timeout", expected_text(1, 5)),
    ("n=9 fault=reset after=5", "error", "failed", "provider_unavailable", None),
    ("n=9 fault=halfclose after=5", "error", "failed", "provider_unavailable", expected_text(1, 5)),
    ("fault=429 retry_after=60", "error", "failed", "provider_rate_limited", ""),
    ("fault=500", "error", "failed", "provider_unavailable", ""),
    ("fault=401", "error", "failed", "provider_rejected", ""),
    ("n=9 fault=error after=5", "error", "failed", "provider_unavailable", expected_text(1, 5)),
    ("n=6 fault=garbage", "done", "complete", "stop", None),
    ("fault=noise", "error", "failed", "provider_unavailable", None),
    ("fault=html", "error", "failed", "provider_unavailable", ""),
    ("fault=redirect", "error", "failed", "provider_unavailable", ""),
    ("fault=endless", "error", "failed", "reply_too_long", None),
    ("fault=bigline size=5000000", "error", "failed", "reply_too_long", None),
]


@pytest.mark.parametrize(
    ("directive", "event", "status", "why", "text"), FAULTS, ids=lambda value: str(value)[:28]
)
def test_every_fault_ends_once_and_keeps_what_was_said(
    alice: Person, directive: str, event: str, status: str, why: str, text: str | None
) -> None:
    chat = alice.new_chat()
    reading = alice.say(chat, f"出错 [[{directive}]]")
    assert reading.terminal is not None
    seen_event, data = reading.terminal
    reply = alice.messages(chat)[-1]
    assert reading.text == reply["content"]
    if text is not None:
        assert reply["content"] == text
    assert (seen_event, data["status"], reply["status"]) == (event, status, status)
    if event == "error":
        assert data["code"] == why
        assert data["savedChars"] == len(reply["content"])
        assert "sk-canary" not in json.dumps(data)
    else:
        assert data["finishReason"] == why
    assert alice.client.get("/livez").status_code == 200


def test_a_reply_too_long_is_cut_at_the_cap(alice: Person) -> None:
    chat = alice.new_chat()
    reading = alice.say(chat, "[[fault=endless]]")
    assert len(reading.text) == 20_000


def test_reasoning_is_sent_to_those_who_ask(alice: Person) -> None:
    chat = alice.new_chat()
    with_thoughts = alice.say(chat, "[[n=5 fault=reasoning]]", include=["reasoning", "title"])
    without = read(alice.client, "GET", f"/api/xcx/chat/messages/{with_thoughts.message_id}/stream")
    assert with_thoughts.reasoning == alice.messages(chat)[-1]["reasoning"] != ""
    assert without.reasoning == ""
    assert without.text == with_thoughts.text != ""
    assert with_thoughts.events[0][1:] == ("title", {"title": alice.call("GET", f"{chat}").json()["title"]})
    content, thoughts = len(with_thoughts.text), len(with_thoughts.reasoning)
    assert with_thoughts.last_id == f"{with_thoughts.message_id}-{content}.{thoughts}"
    rest = alice.resume(f"{with_thoughts.message_id}-0.{thoughts - 2}", params={"include": "reasoning"})
    assert rest.reasoning == with_thoughts.reasoning[-2:]
    assert rest.text == with_thoughts.text


def test_ascii_mode_needs_no_utf8_decoder(alice: Person) -> None:
    chat = alice.new_chat()
    whole = alice.say(chat, "[[n=30]]")
    ascii_only = read(alice.client, "GET", f"/api/xcx/chat/messages/{whole.message_id}/stream?ascii=1")
    assert ascii_only.body.isascii()
    assert ascii_only.text == whole.text
    assert not whole.text.isascii()


def test_a_silent_stream_has_heartbeats(alice: Person) -> None:
    body = {"chatId": alice.new_chat(), "content": "[[n=2 ttft=1400]]"}
    began, arrivals = time.monotonic(), {}
    with alice.client.stream("POST", "/api/xcx/chat/stream", json=body) as answer:
        for chunk in answer.iter_raw():
            for frame in chunk.split(b"\n\n"):
                arrivals.setdefault(frame[:4], time.monotonic() - began)
    assert arrivals[b": ok"] < 0.9 < arrivals[b": pi"] < 1.3 < arrivals[b"id: "], (
        "one heartbeat after the last thing said, not when a token comes"
    )


def test_selftest_sends_ten_events_one_by_one(alice: Person) -> None:
    began, arrivals = time.monotonic(), []
    with alice.client.stream("GET", "/api/xcx/chat/stream/selftest") as answer:
        for chunk in answer.iter_raw():
            if b"event: message" in chunk:
                arrivals.append(time.monotonic() - began)
    assert len(arrivals) == 10
    assert arrivals[-1] - arrivals[0] > 0.8


def test_stop_keeps_the_text_and_closes_upstream(alice: Person, fake_provider: FakeProvider) -> None:
    chat = alice.new_chat()
    reading = alice.say(chat, "[[n=1000 rate=50]]", stop_after_bytes=400)
    receipt = alice.call("POST", f"messages/{reading.message_id}/stop")
    assert receipt.status_code == 200, receipt.text
    reply = alice.messages(chat)[-1]
    assert receipt.json() == {
        "messageId": reading.message_id,
        "status": "stopped",
        "savedChars": len(reply["content"]),
        "upstreamClosedMs": receipt.json()["upstreamClosedMs"],
    }
    assert 0 <= receipt.json()["upstreamClosedMs"] < 500
    assert (reply["status"], alice.resume(f"{reading.message_id}-0").text) == ("stopped", reply["content"])
    again = alice.call("POST", f"messages/{reading.message_id}/stop")
    assert (again.status_code, again.json()["code"]) == (409, "already_finished")
    assert (again.json()["status"], again.json()["replyStatus"]) == (409, "stopped")


def test_a_wrong_method_is_told_the_right_ones(alice: Person) -> None:
    answer = alice.call("DELETE", "stream")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


def test_twenty_posts_with_one_key_ask_the_model_once(alice: Person, fake_provider: FakeProvider) -> None:
    chat, key, tag = alice.new_chat(), uuid.uuid4().hex, uuid.uuid4().hex[:8]
    readings = []

    def post() -> None:
        with httpx.Client(base_url=alice.server.url, headers=alice.client.headers, timeout=15) as client:
            question = f"[[n=30 rate=60 tag={tag}]]"
            readings.append(Person(alice.server, client).say(chat, question, headers={"Idempotency-Key": key}))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reading.text for reading in readings} == {expected_text(1, 30)}
    assert len({reading.message_id for reading in readings}) == 1
    assert len(alice.messages(chat)) == 2
    asked = [body for body in fake_provider.stats()["bodies"] if tag in json.dumps(body)]
    assert len(asked) == 1
    other = alice.say(chat, "别的", headers={"Idempotency-Key": key})
    assert (other.status, json.loads(other.body)["code"]) == (422, "idempotency_mismatch")


def test_a_second_send_while_one_runs_is_refused_with_its_id(alice: Person) -> None:
    chat = alice.new_chat()
    first = alice.say(chat, "[[n=100 rate=50]]", stop_after_bytes=200)
    second = alice.say(chat, "等不及了")
    document = json.loads(second.body)
    assert (second.status, document["code"], document["messageId"]) == (409, "generating", first.message_id)
    alice.call("POST", f"messages/{first.message_id}/stop")
    assert len(alice.messages(chat)) == 2


def test_regenerate_keeps_the_earlier_version(alice: Person) -> None:
    chat = alice.new_chat()
    first = alice.say(chat, "[[n=5]]")
    second = read(alice.client, "POST", f"/api/xcx/chat/messages/{first.message_id}/regenerate", json={})
    question, one, two = alice.messages(chat)
    assert (one["id"], two["id"]) == (first.message_id, second.message_id)
    assert (one["version"], two["version"], two["replyTo"]) == (1, 2, question["id"])
    assert second.text == two["content"]


def test_a_whole_reply_is_the_same_exchange(alice: Person) -> None:
    chat = alice.new_chat()
    answer = alice.call("POST", f"{chat}/messages", json={"content": "[[n=7]]"})
    assert answer.status_code == 200
    assert [answer.json()["userMessage"], answer.json()["aiReply"]] == alice.messages(chat)
    failed = alice.call("POST", f"{chat}/messages", json={"content": "[[fault=500]]"})
    assert (failed.status_code, failed.json()["code"]) == (502, "provider_unavailable")
    assert failed.headers["content-type"] == "application/problem+json"


def test_the_model_gets_the_conversation_without_failures(alice: Person, fake_provider: FakeProvider) -> None:
    chat, tag = alice.new_chat(), uuid.uuid4().hex[:8]
    alice.say(chat, "第一 [[n=3]]")
    alice.say(chat, "第二 [[fault=500]]")
    alice.say(chat, "第三 [[fault=empty]]")
    alice.say(chat, f"第四 [[n=1 tag={tag}]]")
    [body] = [body for body in fake_provider.stats()["bodies"] if tag in json.dumps(body)]
    messages = body["messages"]
    questions = [message["content"].split(" ")[0] for message in messages if message["role"] == "user"]
    assert questions == ["第一", "第二", "第三", "第四"]
    assert [m["content"] for m in messages if m["role"] == "assistant"] == [expected_text(1, 3)]


BAD_SENDS = [
    ({}, 422, "invalid"),
    ({"chatId": 1}, 422, "invalid"),
    ({"chatId": "CHAT", "content": ""}, 422, "empty_content"),
    ({"chatId": "CHAT", "content": " \n\t "}, 422, "empty_content"),
    ({"chatId": "CHAT", "content": "长" * 32_769}, 422, "content_too_long"),
    ({"chatId": "CHAT", "content": "a\x00b"}, 422, "invalid"),
    ({"chatId": "CHAT", "content": "a\ud800b"}, 422, "invalid"),
    ({"chatId": "CHAT", "content": 5}, 422, "invalid"),
    ({"chatId": "1", "content": "字符串编号"}, 422, "invalid"),
    ({"chatId": True, "content": "真"}, 422, "invalid"),
    ({"chatId": "CHAT", "content": "好", "include": "title"}, 422, "invalid"),
    ({"chatId": "CHAT", "content": "好", "pageContext": []}, 422, "invalid"),
    ({"chatId": 99_999_999, "content": "没有"}, 403, "not_your_chat"),
    ({"chatId": -1, "content": "负"}, 403, "not_your_chat"),
    ({"chatId": 10**30, "content": "大"}, 403, "not_your_chat"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_SENDS, ids=lambda value: str(value)[:30])
def test_a_bad_send_is_refused_and_changes_nothing(alice: Person, body: dict, status: int, code: str) -> None:  # type: ignore[type-arg]
    chat = alice.new_chat()
    body = {key: chat if value == "CHAT" else value for key, value in body.items()}
    raw = json.dumps(body).encode()
    is_about_content = code != "not_your_chat" and body.get("chatId") == chat and "include" not in body
    for path in ("stream", f"{chat}/messages") if is_about_content else ("stream",):
        answer = alice.call("POST", path, content=raw, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == answer.json()["requestId"]
    assert alice.messages(chat) == []


BAD_BODIES = [
    (b"{", "application/json", 400, "malformed_json"),
    (b"\xff\xfe", "application/json", 400, "malformed_json"),
    (b"[" * 100_000, "application/json", 400, "malformed_json"),
    (b"[]", "application/json", 422, "invalid"),
    (b'{"chatId": NaN, "content": "x"}', "application/json", 400, "malformed_json"),
    (b"content=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    (b'"' + b"x" * (1024 * 1024) + b'"', "application/json", 413, "body_too_large"),
]


@pytest.mark.parametrize(("raw", "kind", "status", "code"), BAD_BODIES, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("path", ["stream", "conversations"])
def test_a_bad_body_is_refused(alice: Person, path: str, raw: bytes, kind: str, status: int, code: str) -> None:
    answer = alice.call("POST", path, content=raw, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_chunked_body_without_length_is_read(alice: Person) -> None:
    chat = alice.new_chat()
    raw = json.dumps({"chatId": chat, "content": "[[n=2]]"}).encode()
    reading = read(
        alice.client,
        "POST",
        "/api/xcx/chat/stream",
        content=iter([raw[:7], raw[7:]]),
        headers={"Content-Type": "application/json"},
    )
    assert reading.text == expected_text(1, 2)
    made = alice.call(
        "POST",
        "conversations",
        content=iter([b'{"title":', b'"\xe5\x88\x86\xe5\x9d\x97"}']),
        headers={"Content-Type": "application/json"},
    )
    assert (made.status_code, made.json()["title"]) == (201, "分块")


def test_bad_event_ids_are_refused(alice: Person, meet: Callable[..., Person]) -> None:
    chat = alice.new_chat()
    whole = alice.say(chat, "[[n=3]]")
    ahead = len(whole.text) + 1
    for bad in ("x", "1", "1-", "1-2-3", f"{whole.message_id}-{ahead}", "-5-1", "１-2", f"{whole.message_id}-1.9"):
        answer = alice.client.get("/api/xcx/chat/stream", params={"lastEventId": bad})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_event_id"), bad
    bob, carol = meet("bob"), meet("carol", "demo2")
    answers = [
        one.client.get(
            "/api/xcx/chat/stream",
            headers={"Last-Event-ID": event_id, "X-Request-Id": "the-same-1"},
        )
        for one in (bob, carol)
        for event_id in (f"{whole.message_id}-0", "999999999-0")
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize(
    "wrong_id", ["0", "-1", "+1", "1.0", "0x1", "abc", "\u0661", "\uff11", "%00", "1%0a", "9" * 19, "9" * 400]
)
def test_ids_that_no_row_can_have_are_refused_like_missing_ones(alice: Person, wrong_id: str) -> None:
    same = {"X-Request-Id": "the-same-1"}
    for call, path, body in (
        ("POST", "{}/messages", {"content": "有人吗"}),
        ("GET", "messages/{}/stream", None),
        ("POST", "messages/{}/stop", {}),
        ("POST", "messages/{}/regenerate", {}),
    ):
        missing = alice.call(call, path.format(99_999_999), json=body, headers=same)
        wrong = alice.call(call, path.format(wrong_id), json=body, headers=same)
        assert wrong.status_code == (403 if call == "POST" and path.startswith("{}") else 404)
        assert (wrong.status_code, wrong.content) == (missing.status_code, missing.content)
        assert {**wrong.headers, "date": ""} == {**missing.headers, "date": ""}


def test_strangers_are_refused_before_the_stream(alice: Person, meet: Callable[..., Person]) -> None:
    chat = alice.new_chat()
    body = {"chatId": chat, "content": "借过"}
    forbidden = [
        meet(name, site).client.post("/api/xcx/chat/stream", json=body, headers={"X-Request-Id": "the-same-1"})
        for name, site in (("bob", "demo"), ("carol", "demo2"))
    ]
    assert [answer.json()["code"] for answer in forbidden] == ["not_your_chat", "not_your_chat"]
    assert forbidden[0].content == forbidden[1].content
    dave = meet("dave").client.post("/api/xcx/chat/stream", json=body)
    assert (dave.status_code, dave.json()["code"]) == (403, "not_approved")
    for token, code in (("", "not_signed_in"), ("a.b.c", "token_invalid"), (NONE_TOKEN, "token_invalid")):
        headers = {"Authorization": f"Bearer {token}"} if token else {"Authorization": ""}
        answer = alice.client.post("/api/xcx/chat/stream", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert alice.messages(chat) == []


# {"alg":"none","typ":"JWT"}.{"typ":"access","mid":1,"sid":1,"exp":4102444800}.
NONE_TOKEN = (
    "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJ0eXAiOiJhY2Nlc3MiLCJtaWQiOjEsInNpZCI6MSwiZXhwIjo0MTAyNDQ0ODAwfQ."
)


def test_a_ticket_opens_one_stream(alice: Person, server: Server) -> None:
    chat = alice.new_chat()
    whole = alice.say(chat, "[[n=4]]")
    ticket = alice.call("POST", "stream/ticket", json={"messageId": whole.message_id}).json()["ticket"]
    url = f"{server.url}/api/xcx/chat/messages/{whole.message_id}/stream"
    with httpx.Client(timeout=10) as anonymous:
        assert read(anonymous, "GET", url, params={"ticket": ticket}).text == whole.text
        used = anonymous.get(url, params={"ticket": ticket})
    assert (used.status_code, used.json()["code"]) == (401, "ticket_invalid")


def test_a_refused_send_is_no_defect_of_ours(alice: Person, server: Server) -> None:
    for answer in [alice.call("POST", "stream", json={"chatId": 99_999_999, "content": "没有"}) for _ in range(3)]:
        assert answer.status_code == 403
    assert "engine_task_failed" not in server.log.read_text(errors="replace")


def test_a_websocket_is_refused_and_no_failure(alice: Person) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert alice.client.get("/api/xcx/chat/stream", headers=upgrade).status_code == 403


def test_no_key_and_no_content_reaches_the_log(alice: Person, server: Server) -> None:
    chat = alice.new_chat()
    alice.say(chat, "绝密内容标记 [[fault=error after=2]]")
    alice.say(chat, "绝密内容标记 [[fault=401]]")
    log = server.log.read_text(errors="replace")
    assert "reply_ended" in log
    assert "绝密内容标记" not in log
    assert "sk-canary" not in log


def test_who_may_not_chat_is_told_that_first(alice: Person, meet: Callable[..., Person]) -> None:
    dave = meet("dave")
    for content in ("", "长" * 40_000, 5):
        answer = dave.call("POST", "stream", json={"chatId": 1, "content": content})
        assert (answer.status_code, answer.json()["code"]) == (403, "not_approved")
