"""Every route is knocked on as a stranger, with real ids of the victim: no leak, no change.

Through the whole stack, the streams included: the application that the server runs.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from channels.routing import URLRouter
from django.core.serializers import serialize
from django.urls import get_resolver

from chatsite.asgi import application
from conversations.api.routing import http_router
from conversations.api.stream import Endpoint
from conversations.db import tenant
from conversations.generation.engine import engine
from conversations.models import Conversation, IdempotencyKey, MemberKey, Membership, Message, StreamTicket
from conversations.tenancy.resolve import issue_ticket
from conversations.tenancy.tokens import read_access
from providers.models import Endpoint as ModelEndpoint
from tests.world import World, bearer, make_conversation, make_exchange, make_tokens, make_world

pytestmark = pytest.mark.django_db(transaction=True)

CHAT = "/api/xcx/chat"
KEYS = "/api/xcx/keys"
SECRET = "爱丽丝的秘密"
NO_ROW = 999_999_999


@dataclass(frozen=True)
class Knock:
    """One call; `{chat}` and `{message}` in path, body and headers become ids."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    refusal: tuple[int, str] = (404, "not_found")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def address(self) -> str:
        """The whole path; short ones are the chat's."""
        return self.path if self.path.startswith("/api/") else f"{CHAT}{self.path}"


FORBIDDEN = (403, "not_your_chat")
WITH_IDS = [
    Knock("GET", "/{chat}"),
    Knock("PATCH", "/{chat}", {"title": "抢走", "pinned": True}),
    Knock("DELETE", "/{chat}"),
    Knock("GET", "/{chat}/messages"),
    Knock("GET", "/{chat}/messages?around={message}"),
    Knock("PUT", "/messages/{message}/feedback", {"rating": "down"}),
    Knock("POST", "/stream/ticket", {"messageId": "{message}"}),
    Knock("POST", "/{chat}/messages", {"content": "插话"}, refusal=FORBIDDEN),
    Knock("POST", "/stream", {"chatId": "{chat}", "content": "插话"}, refusal=FORBIDDEN),
    Knock("POST", "/stream", {"chatId": "{chat}", "content": "插话"}, {"Last-Event-ID": "{message}-0"}),
    Knock("GET", "/stream", headers={"Last-Event-ID": "{message}-0"}),
    Knock("GET", "/messages/{message}/stream"),
    Knock("POST", "/messages/{message}/stop"),
    Knock("POST", "/messages/{message}/regenerate"),
    # The endpoint has the id of the chat; who may have keys is in tests/conversations/api/test_keys.py.
    Knock("PUT", f"{KEYS}/{{chat}}", {"apiKey": "sk-stranger-0123456789"}, refusal=(403, "member_keys_off")),
    Knock("DELETE", f"{KEYS}/{{chat}}"),
]
WITHOUT_IDS = [
    Knock("GET", "/history"),
    Knock("GET", "/search?q=秘密"),
    Knock("GET", "/messages?contextType=task&contextId=7"),
    Knock("POST", "/conversations", {"contextType": "task", "contextId": "7"}),
    Knock("GET", "/stream/selftest"),
    Knock("GET", KEYS),
]
OPEN = {
    "/livez",
    "/readyz",
    "/metrics",
    "/api/schema",
    "/api/docs",
    "/api/docs/errors",
    "/api/auth/token",
    "/api/auth/token/refresh",
    "/api/auth/logout",
}
FOR_ALL_MEMBERS = {"/api/auth/me"}
FOR_VOICE = {"/getScenes", "/proxy"}  # knocked on in test_voice_routes.py
# Knocked on in tests/conversations/api/test_models.py and test_knowledge.py.
FOR_STAFF = ("/api/v1/admin/", "/api/knowledge/")


@dataclass(frozen=True)
class Scene:
    """Alice has said something in a task; strangers know her ids."""

    world: World
    chat: Conversation
    reply: Message


@pytest.fixture
def scene(transactional_db: None) -> Scene:
    world = make_world()
    chat = make_conversation(world.alice, title=SECRET, context_type="task", context_id="7")
    _, reply = make_exchange(chat, question=SECRET, answer=SECRET)
    endpoint = ModelEndpoint.objects.create(pk=chat.pk, name="主力", dialect="scripted", is_active=False)
    key = MemberKey(site=world.acorn, membership=world.alice, endpoint=endpoint)
    key.set_own_key(f"sk-{SECRET}", endpoint)
    key.save()
    return Scene(world, chat, reply)


def fill(value: Any, chat: int, message: int) -> Any:
    """Return the value with its placeholders replaced; a text that was only one becomes a number."""
    if isinstance(value, dict):
        return {key: fill(item, chat, message) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    text = value.replace("{chat}", str(chat)).replace("{message}", str(message))
    return int(text) if value in {"{chat}", "{message}"} else text


def knock_all(knocks: list[Knock], credentials: dict[str, str], chat: int, message: int) -> list[httpx.Response]:
    """Return the answers of the whole application, one after another."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            answers = [
                await client.request(
                    knock.method,
                    fill(knock.address, chat, message),
                    content=None if knock.body is None else json.dumps(fill(knock.body, chat, message)),
                    headers={
                        "Content-Type": "application/json",
                        "X-Request-Id": "knock-knock",
                        **credentials,
                        **{name: str(fill(value, chat, message)) for name, value in knock.headers.items()},
                    },
                )
                for knock in knocks
            ]
        await engine().close()
        return answers

    return asyncio.run(run())


def everything() -> str:
    """All rows that a stranger might change, as text."""
    rows: list[Any] = []
    for model in (Conversation, Message, StreamTicket, IdempotencyKey, MemberKey):
        rows += model.across_sites.order_by("pk")
    return serialize("json", rows)


def told(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    return answer.status_code, dict(answer.headers), answer.content


@pytest.mark.parametrize("stranger", ["bob", "carol"])
def test_another_member_learns_nothing_and_changes_nothing(scene: Scene, stranger: str) -> None:
    before = everything()
    credentials = bearer(getattr(scene.world, stranger))
    victims = knock_all(WITH_IDS, credentials, scene.chat.pk, scene.reply.pk)
    nobodys = knock_all(WITH_IDS, credentials, NO_ROW, NO_ROW)
    for knock, victim, nobody in zip(WITH_IDS, victims, nobodys, strict=True):
        assert (victim.status_code, victim.json()["code"]) == knock.refusal, str(knock)
        # The same as for a row that does not exist, byte for byte.
        assert told(victim) == told(nobody), str(knock)
    assert everything() == before


@pytest.mark.parametrize("stranger", ["bob", "carol"])
def test_lists_of_another_member_hold_nothing_of_the_victims(scene: Scene, stranger: str) -> None:
    answers = knock_all(WITHOUT_IDS, bearer(getattr(scene.world, stranger)), 0, 0)
    for knock, answer in zip(WITHOUT_IDS, answers, strict=True):
        assert answer.status_code in {200, 201}, str(knock)
        assert SECRET not in answer.text, str(knock)
        assert f'"chatId":{scene.chat.pk},' not in answer.text, str(knock)
    scene.chat.refresh_from_db()
    assert scene.chat.title == SECRET


def test_without_a_token_nobody_passes(scene: Scene) -> None:
    before = everything()
    knocks = WITH_IDS + WITHOUT_IDS
    for credentials in ({}, {"Authorization": "Basic YTpi"}):
        for knock, answer in zip(
            knocks, knock_all(knocks, credentials, scene.chat.pk, scene.reply.pk), strict=True
        ):
            assert (answer.status_code, answer.json()["code"]) == (401, "not_signed_in"), str(knock)
            assert answer.headers["www-authenticate"] == "Bearer"
    for knock, answer in zip(
        knocks, knock_all(knocks, {"Authorization": "Bearer x"}, scene.chat.pk, scene.reply.pk), strict=True
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, "token_invalid"), str(knock)
    assert everything() == before


@pytest.mark.parametrize("status", ["pending", "suspended", "rejected"])
def test_who_is_not_approved_passes_nowhere_even_with_their_own_rows(scene: Scene, status: str) -> None:
    credentials = bearer(scene.world.alice)
    Membership.across_sites.filter(pk=scene.world.alice.pk).update(status=status)
    before = everything()
    knocks = WITH_IDS + WITHOUT_IDS
    for knock, answer in zip(knocks, knock_all(knocks, credentials, scene.chat.pk, scene.reply.pk), strict=True):
        assert (answer.status_code, answer.json()["code"]) == (403, "not_approved"), str(knock)
    assert everything() == before


def test_an_ended_sign_in_passes_nowhere(scene: Scene) -> None:
    credentials = bearer(scene.world.alice)
    scene.world.alice.logins.update(ended_at=scene.chat.created_at)
    knocks = WITH_IDS + WITHOUT_IDS
    for knock, answer in zip(knocks, knock_all(knocks, credentials, scene.chat.pk, scene.reply.pk), strict=True):
        assert (answer.status_code, answer.json()["code"]) == (401, "token_invalid"), str(knock)


def test_a_ticket_reads_the_reply_it_was_issued_for_and_nothing_else(scene: Scene) -> None:
    _, other = make_exchange(scene.chat)
    claims = read_access(make_tokens(scene.world.alice).access)

    def ticket(message_id: int | None) -> str:
        with tenant(scene.world.acorn.pk):
            return issue_ticket(scene.world.alice, claims.login_id, message_id)

    def read(message: Message, text: str, method: str = "GET", call: str = "stream") -> tuple[int, str]:
        knock = Knock(method, f"/messages/{{message}}/{call}?ticket={text}")
        answer = knock_all([knock], {}, scene.chat.pk, message.pk)[0]
        return answer.status_code, answer.text

    once = ticket(scene.reply.pk)
    status, text = read(scene.reply, once)
    assert (status, SECRET in text) == (200, True)
    assert read(scene.reply, once)[0] == 401
    assert read(other, ticket(scene.reply.pk))[0] == 404
    assert read(other, ticket(None))[0] == 200
    assert read(scene.reply, ticket(scene.reply.pk), "POST", "stop")[0] == 401
    assert read(scene.reply, ticket(None), "POST", "regenerate")[0] == 401
    history = knock_all([Knock("GET", f"/history?ticket={ticket(None)}")], {}, 0, 0)[0]
    assert history.status_code == 401


def test_what_cannot_be_stored_is_refused_and_stores_nothing(scene: Scene) -> None:
    before = everything()
    bodies: dict[str, Any] = {
        "NUL": {"content": "a\0b"},
        "lone surrogate": {"content": "a\ud800"},
        "NUL in a page": {"content": "好", "sourcePage": "a\0"},
        "NUL in a context": {"content": "好", "pageContext": {"a": ["\0"]}},
        "surrogate in a key of a context": {"content": "好", "pageContext": {"\udc00": 1}},
        "a text as context": {"content": "好", "pageContext": "x"},
        "a number": {"content": 5},
    }
    knocks = [Knock("POST", "/{chat}/messages", body) for body in bodies.values()]
    knocks += [Knock("POST", "/stream", {"chatId": "{chat}", **body}) for body in bodies.values()]
    answers = knock_all(knocks, bearer(scene.world.alice), scene.chat.pk, scene.reply.pk)
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(422, "invalid")}
    assert everything() == before


def test_text_that_only_looks_like_nul_is_text(scene: Scene) -> None:
    body = {"content": "什么是 \\u0000？", "pageContext": {"code": "\\u0000"}}
    answer = knock_all([Knock("POST", "/{chat}/messages", body)], bearer(scene.world.alice), scene.chat.pk, 0)[0]
    assert answer.status_code == 200
    assert answer.json()["userMessage"]["content"] == "什么是 \\u0000？"


def _shape(path: str) -> str:
    """Return a route or a knock with its ids blanked."""
    path = re.sub(r"<\w+:\w+>|\(\?P<\w+>\[\^/\]\+\)|\{\w+\}", "*", path.partition("?")[0] if "{" in path else path)
    return "/" + path.strip("^$/").removesuffix("/?").rstrip("/")


def test_every_route_of_the_api_is_knocked_on() -> None:
    knocked = {(_shape(knock.address.partition("?")[0]), knock.method) for knock in WITH_IDS + WITHOUT_IDS}
    django_routes = {
        _shape(str(pattern.pattern)): pattern.callback
        for resolver in get_resolver().url_patterns
        if getattr(resolver, "urlconf_name", None) is not None
        for pattern in getattr(resolver, "url_patterns", [])
        if getattr(pattern.callback, "__module__", "").startswith(("conversations.api", "drf_spectacular", "rest"))
    }
    for path, view in django_routes.items():
        if path in OPEN | FOR_ALL_MEMBERS or path.startswith(FOR_STAFF):
            continue
        for method in set(view.actions) - {"head"}:
            assert (path, method.upper()) in knocked, f"{method} {path}"

    router = http_router(application)
    assert isinstance(router, URLRouter)
    for route in router.routes:
        if isinstance(route.callback, Endpoint):
            path = _shape(str(route.pattern))
            if path in FOR_VOICE:
                continue
            for method in route.callback._handlers:
                assert (path, method) in knocked, f"{method} {path}"
