from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client

from conversations.models import Conversation, IdempotencyKey, Membership, Message, StreamTicket
from conversations.tenancy.resolve import redeem_ticket
from tests.world import (
    World,
    bearer,
    fold_text,
    make_conversation,
    make_exchange,
    make_message,
    make_running_reply,
    make_worker,
)

CHAT = "/api/xcx/chat"


class Caller:
    """A member with a client: `alice.get("history")`."""

    def __init__(self, membership: Membership) -> None:
        self.headers = bearer(membership)
        self.client = Client()

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"{CHAT}/{path}", query, headers=self.headers)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return self.client.generic(
            method,
            f"{CHAT}/{path}",
            body if isinstance(body, (bytes, str)) else json.dumps(body),
            content_type=headers.pop("content_type", "application/json"),
            headers={**self.headers, **headers},
        )


@pytest.fixture
def alice(world: World) -> Caller:
    return Caller(world.alice)


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


# --- The history ------------------------------------------------------------------------------------


def test_the_history_shows_a_conversation_as_the_contract_words_it(world: World, alice: Caller) -> None:
    chat = make_conversation(world.alice, title="天气", context_type="task", context_id="7")
    make_message(chat, "你好", created_at=datetime(2026, 11, 20, 0, 14, 5, 120_000, UTC))
    Conversation.across_sites.update(created_at=datetime(2026, 11, 20, 0, 14, 3, 7_999, UTC))
    assert alice.get("history").json() == {
        "items": [
            {
                "chatId": chat.pk,
                "title": "天气",
                "contextType": "task",
                "contextId": "7",
                "lastMessage": "你好",
                "lastMessageAt": "2026-11-20T08:14:05.120+08:00",
                "messageCount": 1,
                "generating": False,
                "pinned": False,
                "archived": False,
                "createdAt": "2026-11-20T08:14:03.007+08:00",
            }
        ],
        "total": 1,
        "page": 1,
        "pageSize": 20,
        "nextCursor": None,
    }


@pytest.mark.parametrize("name", ["pageSize", "page_size"])
def test_both_spellings_of_the_page_size_are_understood(world: World, alice: Caller, name: str) -> None:
    for _ in range(3):
        make_conversation(world.alice)
    first = alice.get("history", **{name: 2}).json()
    assert (len(first["items"]), first["pageSize"], first["total"]) == (2, 2, 3)
    second = alice.get("history", **{name: 2, "cursor": first["nextCursor"]}).json()
    assert (len(second["items"]), second["nextCursor"]) == (1, None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"page": 0}, "page"),
        ({"page": -1}, "page"),
        ({"page": "x"}, "page"),
        ({"page": "1.5"}, "page"),
        ({"page": "٣"}, "page"),
        ({"page": 10**9 + 1}, "page"),
        ({"page": "9" * 5000}, "page"),
        ({"pageSize": 0}, "pageSize"),
        ({"pageSize": 101}, "pageSize"),
        ({"page_size": 101}, "pageSize"),
        ({"q": "a\0"}, "q"),
        ({"q": "a" * 201}, "q"),
        ({"contextType": "a" * 65}, "contextType"),
        ({"archived": "perhaps"}, "archived"),
    ],
)
def test_a_bad_query_names_its_field(alice: Caller, query: dict[str, Any], field: str) -> None:
    response = alice.get("history", **query)
    assert code_of(response) == (422, "invalid")
    assert list(response.json()["errors"]) == [field]


def test_blank_and_unknown_query_parameters_are_ignored(world: World, alice: Caller) -> None:
    make_conversation(world.alice)
    assert alice.get("history", page="", q="", contextType="", cursor="", colour="red").json()["total"] == 1


def test_a_bad_cursor_is_its_own_code(alice: Caller) -> None:
    assert code_of(alice.get("history", cursor="x")) == (400, "bad_cursor")


def test_a_page_beyond_the_end_is_empty(world: World, alice: Caller) -> None:
    make_conversation(world.alice)
    answer = alice.get("history", page=10**9).json()
    assert (answer["items"], answer["total"], answer["page"]) == ([], 1, 10**9)


def test_a_list_costs_the_same_number_of_queries_for_one_row_and_three(
    world: World, alice: Caller, django_assert_num_queries: Any
) -> None:
    for count in (1, 3):
        for _ in range(count):
            chat = make_conversation(world.alice)
            for _ in range(count):
                make_exchange(chat, answer="一句")
        # Savepoint, site and member come first; the outer site and the end of the savepoint last.
        with django_assert_num_queries(8):
            alice.get("history")
        with django_assert_num_queries(9):
            alice.get(f"{chat.pk}/messages")
        with django_assert_num_queries(7):
            alice.get("search", q="一")


# --- Conversations ----------------------------------------------------------------------------------


def test_a_conversation_is_begun_changed_and_deleted(world: World, alice: Caller) -> None:
    made = alice.send("POST", "conversations", {"contextType": "task", "contextId": "7", "title": " 周报 "})
    assert (made.status_code, made.json()["title"]) == (201, "周报")
    chat_id = made.json()["chatId"]
    assert alice.get(str(chat_id)).json() == made.json()

    changed = alice.send("PATCH", str(chat_id), {"title": "月报", "pinned": True, "archived": True})
    assert changed.json() == {**made.json(), "title": "月报", "pinned": True, "archived": True}
    assert alice.get("history").json()["items"] == []
    assert alice.get("history", archived="true").json()["total"] == 1

    assert alice.send("DELETE", str(chat_id)).status_code == 204
    assert code_of(alice.get(str(chat_id))) == (404, "not_found")
    assert alice.get("history", archived="true").json()["total"] == 0
    assert Conversation.across_sites.get(pk=chat_id).deleted_at is not None


def test_a_conversation_may_be_begun_without_a_body(alice: Caller) -> None:
    made = alice.send("POST", "conversations", b"")
    assert made.status_code == 201
    assert (made.json()["contextType"], made.json()["contextId"], made.json()["title"]) == ("general", "0", "")


def test_a_task_answers_with_the_conversation_that_it_has(alice: Caller) -> None:
    body = {"contextType": "task", "contextId": "7"}
    first, second = alice.send("POST", "conversations", body), alice.send("POST", "conversations", body)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


def test_the_same_key_and_body_begin_one_conversation(world: World, alice: Caller) -> None:
    body, key = {"contextType": "customer", "contextId": "7"}, {"Idempotency-Key": "k-1234567"}
    answers = [alice.send("POST", "conversations", body, **key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert Conversation.across_sites.count() == 1
    # Another member's key of the same text is another key.
    bobs = Caller(world.bob).send("POST", "conversations", body, **key)
    assert bobs.json()["chatId"] != answers[0].json()["chatId"]


def test_a_key_with_another_body_is_refused_and_changes_nothing(alice: Caller) -> None:
    key = {"Idempotency-Key": "k-1234567"}
    alice.send("POST", "conversations", {"title": "一"}, **key)
    assert code_of(alice.send("POST", "conversations", {"title": "二"}, **key)) == (422, "idempotency_mismatch")
    assert Conversation.across_sites.get().title == "一"


@pytest.mark.parametrize("key", ["short", "x" * 129, "with space", "口令口令口令口令"])
def test_a_bad_key_is_refused(alice: Caller, key: str) -> None:
    response = alice.send("POST", "conversations", {}, **{"Idempotency-Key": key})
    assert code_of(response) == (400, "bad_idempotency_key")
    assert not Conversation.across_sites.exists()


def test_a_request_that_fails_does_not_use_its_key_up(alice: Caller) -> None:
    key = {"Idempotency-Key": "k-1234567"}
    alice.send("POST", "conversations", {"title": 5}, **key)
    assert not IdempotencyKey.across_sites.exists()
    assert alice.send("POST", "conversations", {"title": "五"}, **key).status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"title": 5}, "title"),
        ({"title": None}, "title"),
        ({"title": "字" * 201}, "title"),
        ({"title": "a\0b"}, "title"),
        ('{"title": "\\ud800"}', "title"),
        ({"pinned": "true"}, "pinned"),
        ({"pinned": 1}, "pinned"),
        ({"archived": None}, "archived"),
        ([], "body"),
        ("5", "body"),
        ("null", "body"),
    ],
)
def test_a_change_of_the_wrong_type_names_its_field(world: World, alice: Caller, body: Any, field: str) -> None:
    chat = make_conversation(world.alice, title="天气")
    response = alice.send("PATCH", str(chat.pk), body)
    assert code_of(response) == (422, "invalid")
    assert list(response.json()["errors"]) == [field]
    chat.refresh_from_db()
    assert (chat.title, chat.is_pinned, chat.is_archived) == ("天气", False, False)


def test_unknown_fields_are_ignored(world: World, alice: Caller) -> None:
    chat = make_conversation(world.alice, title="天气")
    response = alice.send("PATCH", str(chat.pk), {"chatId": 1, "siteId": 9, "deletedAt": None, "is_pinned": True})
    assert response.status_code == 200
    chat.refresh_from_db()
    assert (chat.site_id, chat.is_pinned) == (world.acorn.pk, False)


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"title": NaN}', b"[" * 100_000, b"\xef\xbb\xbf{}"])
def test_a_body_that_is_no_json_is_refused(world: World, alice: Caller, body: bytes) -> None:
    chat = make_conversation(world.alice)
    assert code_of(alice.send("PATCH", str(chat.pk), body)) == (400, "malformed_json")


def test_a_body_beyond_the_limit_is_refused(alice: Caller) -> None:
    response = alice.send("POST", "conversations", {"title": "x" * (1024 * 1024)})
    assert code_of(response) == (413, "body_too_large")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_another_content_type_is_refused(alice: Caller, content_type: str) -> None:
    response = alice.send("POST", "conversations", b"{}", content_type=content_type)
    assert code_of(response) == (415, "unsupported_media_type")


# --- Messages ---------------------------------------------------------------------------------------


def test_messages_come_oldest_first_as_the_contract_words_them(world: World, alice: Caller) -> None:
    chat = make_conversation(world.alice)
    asked, reply = make_exchange(chat, question="如何？", answer="晴。")
    Message.across_sites.update(created_at=datetime(2026, 11, 20, 0, 14, 5, 120_000, UTC))
    Message.across_sites.filter(pk=reply.pk).update(
        usage={"inputTokens": 31, "output_tokens": 4},
        reference_card={"snake_case": {"camelCase": 1}},
        reasoning="想",
        feedback="up",
        feedback_reason="好",
    )
    at = "2026-11-20T08:14:05.120+08:00"
    assert alice.get(f"{chat.pk}/messages").json() == {
        "chatId": chat.pk,
        "items": [
            {
                "id": asked.pk,
                "role": "user",
                "content": "如何？",
                "status": "complete",
                "createdAt": at,
                "referenceCard": None,
            },
            {
                "id": reply.pk,
                "role": "assistant",
                "content": "晴。",
                "status": "complete",
                "createdAt": at,
                "referenceCard": {"snake_case": {"camelCase": 1}},
                "reasoning": "想",
                "finishReason": "stop",
                "usage": {"inputTokens": 31, "output_tokens": 4},
                "feedback": {"rating": "up", "reason": "好"},
                "replyTo": asked.pk,
                "version": 1,
            },
        ],
        "total": 2,
        "page": 1,
        "pageSize": 50,
    }


def test_messages_are_asked_for_before_after_and_around_one(world: World, alice: Caller) -> None:
    chat = make_conversation(world.alice)
    ids = [make_message(chat, str(index)).pk for index in range(5)]

    def read(**query: Any) -> list[int]:
        return [item["id"] for item in alice.get(f"{chat.pk}/messages", **query).json()["items"]]

    assert read(before=ids[3], limit=2) == ids[1:3]
    assert read(after=ids[1], limit=2) == ids[2:4]
    assert read(around=ids[2], limit=3) == ids[1:4]
    assert code_of(alice.get(f"{chat.pk}/messages", around=10**30)) == (404, "not_found")
    for query in ({"before": 1, "after": 1}, {"before": "x"}, {"after": 1, "limit": 101}, {"around": 0}):
        assert code_of(alice.get(f"{chat.pk}/messages", **query)) == (422, "invalid")


def test_a_running_reply_shows_what_is_committed(world: World, alice: Caller) -> None:
    chat = make_conversation(world.alice)
    _, reply = make_running_reply(chat, make_worker())
    fold_text(reply, 0, "从前")
    shown = alice.get(f"{chat.pk}/messages").json()["items"][-1]
    assert (shown["content"], shown["status"]) == ("从前", "streaming")
    assert alice.get(str(chat.pk)).json()["generating"] is True


def test_a_context_finds_its_conversation_again(alice: Caller) -> None:
    first = alice.get("messages", contextType="task", contextId="7").json()
    second = alice.get("messages", contextType="task", contextId="7").json()
    assert first == second == {"chatId": first["chatId"], "items": [], "total": 0, "page": 1, "pageSize": 50}


def test_feedback_is_stored_and_taken_back(world: World, alice: Caller) -> None:
    asked, reply = make_exchange(make_conversation(world.alice))
    given = alice.send("PUT", f"messages/{reply.pk}/feedback", {"rating": "down", "reason": " 太长 "})
    assert given.json() == {"messageId": reply.pk, "rating": "down", "reason": "太长"}
    taken = alice.send("PUT", f"messages/{reply.pk}/feedback", {"rating": None})
    assert taken.json() == {"messageId": reply.pk, "rating": None, "reason": ""}
    assert code_of(alice.send("PUT", f"messages/{asked.pk}/feedback", {"rating": "up"})) == (422, "not_a_reply")
    for body in ({}, {"rating": "left"}, {"rating": 1}, {"rating": "up", "reason": 5}):
        assert code_of(alice.send("PUT", f"messages/{reply.pk}/feedback", body)) == (422, "invalid")


def test_a_search_marks_what_it_found(world: World, alice: Caller) -> None:
    chat = make_conversation(world.alice, title="天气")
    _, reply = make_exchange(chat, answer="晴，二十度。")
    (found,) = alice.get("search", q="二十").json()["items"]
    assert (found["messageId"], found["chatId"], found["title"]) == (reply.pk, chat.pk, "天气")
    assert (found["excerpt"], found["highlights"]) == ("晴，二十度。", [[2, 4]])
    for query in ({}, {"q": ""}, {"q": "  "}, {"q": "a" * 201}):
        assert code_of(alice.get("search", **query)) == (422, "invalid")


def test_a_ticket_stands_for_its_member(world: World, alice: Caller) -> None:
    _, reply = make_exchange(make_conversation(world.alice))
    answer = alice.send("POST", "stream/ticket", {"messageId": reply.pk}).json()
    assert answer["expiresIn"] == 60
    claims = redeem_ticket(answer["ticket"])
    assert (claims.membership_id, claims.message_id) == (world.alice.pk, reply.pk)
    assert alice.send("POST", "stream/ticket", b"").status_code == 200


def test_a_ticket_for_another_members_reply_is_not_issued(world: World, alice: Caller) -> None:
    _, reply = make_exchange(make_conversation(world.bob))
    for message_id in (reply.pk, 2**63, 0, -1):
        assert code_of(alice.send("POST", "stream/ticket", {"messageId": message_id})) == (404, "not_found")
    for wrong in ("1", True, 1.5, []):
        assert code_of(alice.send("POST", "stream/ticket", {"messageId": wrong})) == (422, "invalid")
    assert not StreamTicket.across_sites.exists()


# --- Around all of it -------------------------------------------------------------------------------


@pytest.mark.parametrize("chat_id", ["0", "-1", str(2**63), "9" * 200, "x", "1.5", "%00", "٣"])
def test_ids_that_no_row_can_have_are_not_found(alice: Caller, chat_id: str) -> None:
    assert code_of(alice.get(chat_id)) == (404, "not_found")
    assert code_of(alice.get(f"{chat_id}/messages")) == (404, "not_found")
    assert code_of(alice.send("PUT", f"messages/{chat_id}/feedback", {"rating": "up"})) == (404, "not_found")


def test_a_slash_at_the_end_is_forgiven_without_a_redirect(alice: Caller) -> None:
    assert alice.get("history/").status_code == 200
    assert alice.send("POST", "conversations/", {"title": "一"}).status_code == 201


@pytest.mark.parametrize("accept", ["text/event-stream", "text/html", "garbage", "", "*/*;q=0"])
def test_json_is_spoken_whatever_a_client_accepts(alice: Caller, accept: str) -> None:
    response = alice.client.get(f"{CHAT}/history", {"format": "xml"}, headers={**alice.headers, "Accept": accept})
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")
    assert alice.send("POST", "conversations", {"title": "一"}, Accept=accept).status_code == 201


def test_a_method_that_is_not_there_says_which_are(world: World, alice: Caller) -> None:
    response = alice.send("PUT", str(make_conversation(world.alice).pk), {})
    assert code_of(response) == (405, "method_not_allowed")
    assert "PATCH" in response["Allow"]
    assert code_of(alice.send("OPTIONS", "history")) == (405, "method_not_allowed")


def test_an_unknown_path_is_a_problem_document(client: Client) -> None:
    response = client.get("/api/nowhere", headers={"Accept-Language": "en", "X-Request-Id": "req-12345678"})
    assert response["Content-Type"] == "application/problem+json"
    assert response.json() == {
        "type": "/api/docs/errors#not_found",
        "title": "Not found",
        "status": 404,
        "detail": "Not found.",
        "code": "not_found",
        "requestId": "req-12345678",
    }
