"""A planted key is found nowhere: not in logs, errors, events, pages, answers, metrics, rows or tracebacks.

Against providers that fail in every way they know, and against one that quotes our key wherever it can.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from typing import Any

import httpx
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client, RequestFactory
from django.urls import reverse
from django.views.debug import ExceptionReporter

from chatsite.asgi import application
from chatsite.logs import JsonFormatter
from conversations.generation.engine import engine
from conversations.models import EndpointGrant, Generation, MemberKey, Site, User
from providers import registry
from providers.base import ChatProvider
from providers.clients.openai_chat import OpenAIChatProvider
from providers.credentials import Secret, new_key
from providers.models import Endpoint
from providers.types import ChatMessage, ChatRequest
from tests.conversations.generation.conftest import claims_of, in_unit, send
from tests.fakes.provider import STATUS_FAULTS, Exchange, FakeProvider
from tests.world import World, bearer, make_conversation, make_world

CANARY = "sk-canary/7f3a+9c1e5b2d8040"
MODELS = "/api/v1/admin/models"
KEYS = "/api/xcx/keys"
# Every way to fail that the fake provider knows, and every way to answer oddly.
FAULTS = sorted(STATUS_FAULTS | {name[3:] for name in vars(Exchange) if name.startswith("do_")})


class Parrot(BaseHTTPRequestHandler):
    """Quotes the key it was sent, in the way its path names."""

    ways = ("refusal", "words", "html", "text", "stream", "finish", "redirect", "cut", "busy")

    def do_POST(self) -> None:
        """Answer one call."""
        key = self.headers["Authorization"].removeprefix("Bearer ")
        way = self.path.split("/")[1]
        error = {"error": {"message": f"bad key {key}", "type": key, "code": key}}
        event = {
            "choices": [{"index": 0, "delta": {"content": "好"}, "finish_reason": None}],
            "id": key,
            "model": key,
        }
        finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": key}], "request_id": key}
        status, kind, body = {
            "refusal": (401, "application/json", json.dumps(error)),
            "words": (400, "application/json", json.dumps({"code": key, "message": key, "request_id": key})),
            "html": (200, "text/html", f"<h1>{key}</h1>"),
            "text": (500, "text/plain", f"panic: {key}"),
            "stream": (200, "text/event-stream", f"data: {json.dumps(error)}\n\n"),
            "finish": (
                200,
                "text/event-stream",
                f"data: {json.dumps(event)}\n\ndata: {json.dumps(finish)}\n\ndata: [DONE]\n\n",
            ),
            "redirect": (302, "text/plain", key),
            "cut": (200, "text/event-stream", f": {key}\n\nevent: {key}\ndata: {json.dumps(event)}\n\n"),
            "busy": (429, "application/json", json.dumps(error)),
        }[way]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        payload = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("x-request-id", key)
        self.send_header("Location", f"/{key}")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def parrot() -> Iterator[str]:
    """The address of a provider that quotes our key."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Ear(logging.Handler):
    """Keeps every line that is logged, as the product and as a debugger would write it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record, in both manners and with all its fields."""
        self.lines += [JsonFormatter().format(record), logging.Formatter().format(record), repr(vars(record))]


@pytest.fixture
def ear() -> Iterator[Ear]:
    """Everything that is logged, at every level."""
    hearing, root = Ear(), logging.getLogger()
    level = root.level
    root.addHandler(hearing)
    root.setLevel(logging.DEBUG)
    yield hearing
    root.removeHandler(hearing)
    root.setLevel(level)


def everything_stored() -> str:
    """Return every row of every table, as text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows: list[Any] = []
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT row_to_json(t)::text FROM "{table}" t')
            rows += [row for (row,) in cursor.fetchall()]
    return "\n".join(rows)


async def sent_to(path: str, headers: dict[str, str]) -> str:
    """Return what the product sends for a GET, head and body."""
    sent: list[Any] = []
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in received:
            return message
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": lines}
    await application(scope, receive, send)
    return str(sent[0]) + b"".join(message.get("body", b"") for message in sent).decode()


async def ask_them_all(world: World, questions: dict[str, list[str]]) -> list[str]:
    """Return what readers saw of the replies to these questions, asked of the endpoint of their name alone."""
    claims = await in_unit(claims_of, world.alice)
    headers = await in_unit(bearer, world.alice)
    serving = engine()

    async def ask(question: str) -> tuple[str, str]:
        chat = await in_unit(make_conversation, world.alice)
        started = await send(serving, claims, chat, question)
        events = await sent_to(f"/api/xcx/chat/messages/{started.reply_id}/stream", headers)
        assert "event: done" in events or "event: error" in events, question
        buffer, ending = await serving.ended(started.reply_id)
        return events, repr((buffer.content.read(0), buffer.reasoning.read(0), ending))

    seen: list[str] = []
    try:
        await serving.started()
        for name, asked in questions.items():
            await in_unit(Endpoint.objects.filter(is_active=True).update, is_active=False)
            await in_unit(Endpoint.objects.filter(name=name).update, is_active=True)
            await in_unit(registry.refresh)
            for told in await asyncio.gather(*map(ask, asked)):
                seen += told
    finally:
        await serving.close()
    return seen


def assert_silent(where: str, texts: list[str]) -> None:
    """Fail without printing the rest, when the key or most of it stands in one of the texts."""
    spellings = (
        CANARY,
        CANARY[:-4],
        CANARY[4:],
        CANARY.replace("/", "\\/"),
        re.sub(r"[^a-z0-9-]", "_", CANARY),
        CANARY.replace("/", "%2F").replace("+", "%2B"),
        b64encode(CANARY.encode()).decode(),
    )
    for text in texts:
        for piece in spellings:
            position = text.find(piece)
            assert position < 0, f"{where}: …{text[max(0, position - 150) : position]}HERE"


@pytest.mark.parametrize("whose", ["endpoint", "site", "member"])
def test_a_planted_key_is_found_nowhere(
    transactional_db: None, fake_provider: FakeProvider, parrot: str, ear: Ear, settings: Any, whose: str
) -> None:
    settings.SECRET_KEYS = [new_key()]
    settings.PROVIDER_ALLOWED_ADDRESSES = [fake_provider.address, parrot, "127.0.0.1:9"]
    settings.PROVIDER_IDLE_SECONDS = settings.PROVIDER_FIRST_SECONDS = 0.5
    settings.REPLY_MAX_CHARS = 2_000
    settings.THROTTLE = False
    settings.DEBUG = True
    registry.forget()
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create(username="老板", is_staff=True, is_superuser=True))
    answers: list[str] = []
    world = make_world()
    Site.objects.update(settings={"member_keys": True})
    alice = bearer(world.alice)

    def call(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        answer = client.generic(
            method,
            path,
            data="" if body is None else json.dumps(body),
            content_type="application/json",
            headers=headers,
        )
        answers.append(answer.content.decode() + str(answer.headers))
        return answer

    # Registered through the API, for every way to quote it, one that is not there, and one that fails in all ways.
    bases = {way: f"http://{parrot}/{way}/v1" for way in Parrot.ways}
    bases |= {"faults": fake_provider.base_url, "nobody": "http://127.0.0.1:9/v1"}
    given: list[dict[str, Any]] = [{"name": name, "baseUrl": base_url} for name, base_url in bases.items()]
    for way in Parrot.ways:
        config = {"ready": "openai", "values": {"base_url": f"http://{parrot}/{way}/v1"}}
        given.append({"name": f"any {way}", "dialect": "declarative", "config": config})
        given.append({"name": f"app {way}", "dialect": "dashscope_app", "baseUrl": f"http://{parrot}/{way}"})
    for fields in given:
        planted = {"apiKey": CANARY} if whose == "endpoint" else {}
        answer = call("POST", MODELS, {"model": "m", **planted, "isActive": whose == "member", **fields})
        assert answer.status_code == 201, answers[-1]
        made = answer.json()["id"]
        if whose == "site":
            answer = call("PUT", f"{MODELS}/{made}/sites/acorn", {"apiKey": CANARY})
        elif whose == "member":
            answer = call("PUT", f"{KEYS}/{made}", {"apiKey": CANARY}, alice)
        assert answer.status_code < 300, answers[-1]
    # What is refused does not come back, either.
    for refused in (
        {"apiKey": f"{CANARY}\n"},
        {"apiKey": CANARY, "weight": -1},
        {"apiKey": CANARY, "x": 1},
    ):
        assert (
            call("POST", MODELS, {"name": "坏", "baseUrl": "https://x.example/v1", **refused}).status_code == 422
        )
    assert call("PATCH", f"{MODELS}/999999", {"apiKey": CANARY}).status_code == 404
    for bad in (f"{CANARY}\n", f"{CANARY} ", f"密{CANARY}"):
        assert call("PUT", f"{MODELS}/{made}/sites/birch", {"apiKey": bad}).status_code == 422
        assert call("PUT", f"{KEYS}/{made}", {"apiKey": bad}, alice).status_code == 422
    assert call("PUT", f"{MODELS}/{made}/sites/nobody", {"apiKey": CANARY}).status_code == 404
    assert call("PUT", f"{KEYS}/999999", {"apiKey": CANARY}, alice).status_code == 404
    sites = {"grants-TOTAL_FORMS": "1", "grants-INITIAL_FORMS": "0", "grants-0-api_key": CANARY}
    answers.append(client.post("/admin/providers/endpoint/add/", sites).content.decode())
    client.post("/admin/providers/endpoint/add/", {"name": "", "api_key": CANARY, "base_url": CANARY})
    answers.append(client.post("/admin/providers/endpoint/add/", {"api_key": CANARY}).content.decode())

    # Every test, every reply.
    as_whom = {"site": "acorn"} if whose == "site" else {}
    tested = [call("POST", f"{MODELS}/{row.pk}/test", as_whom).json() for row in Endpoint.objects.all()]
    assert sum(not test["ok"] for test in tested) >= len(Parrot.ways) - 1
    chosen = [str(pk) for pk in Endpoint.objects.values_list("pk", flat=True)]
    for some in (chosen[start : start + 5] for start in range(0, len(chosen), 5)):
        said = client.post(
            "/admin/providers/endpoint/", {"action": "try_out", "_selected_action": some}, follow=True
        )
        answers.append(said.content.decode())
    questions = {fields["name"]: ["你好"] for fields in given}
    # What a fault does is the same whoever's key it was: for the others every fifth will do.
    faults = FAULTS if whose == "endpoint" else FAULTS[::5]
    questions["faults"] = [f"[[fault={fault}{' rate=50' * (fault == 'slow')}]]" for fault in faults]
    seen = asyncio.run(ask_them_all(world, questions))
    codes = set(Generation.across_sites.values_list("error_code", flat=True))
    assert len(seen) == 2 * sum(map(len, questions.values())) and len(codes) > (
        10 if whose == "endpoint" else 6
    ), codes
    assert set(Generation.across_sites.values_list("credential", flat=True)) == {whose}

    for name in ("refusal", "any words", "app html", "nobody"):
        printed = StringIO()
        try:
            call_command("probe_model", name, stdout=printed, stderr=printed)
        except CommandError as error:
            answers.append(f"{error!r} {error.__cause__!r} {error.__context__!r}")
        answers.append(printed.getvalue())

    # All that anybody can look at.
    row = Endpoint.objects.get(name="refusal")
    pages = ["/admin/", "/metrics", "/api/schema", f"{MODELS}/revision", MODELS, f"{MODELS}/{row.pk}"]
    pages += [f"{MODELS}/{row.pk}/sites"]
    pages += [
        reverse(f"admin:conversations_{name}_changelist") for name in ("generation", "worker", "conversation")
    ]
    pages += [reverse("admin:providers_endpoint_changelist")]
    pages += [
        reverse(f"admin:providers_endpoint_{page}", args=[row.pk]) for page in ("change", "history", "delete")
    ]
    pages += [
        reverse("admin:conversations_generation_change", args=[pk])
        for pk in Generation.across_sites.values_list("pk", flat=True)[:12]
    ]
    pages += [
        reverse("admin:conversations_site_change", args=[world.acorn.pk]),
        reverse("admin:conversations_membership_change", args=[world.alice.pk]),
    ]
    call("GET", KEYS, headers=alice)
    for page in pages:
        answer = client.get(page)
        assert answer.status_code == 200, page
        answers.append(answer.content.decode())

    # An unreadable key, which is no reason to show the ciphertext.
    settings.SECRET_KEYS = [new_key()]
    for path in (f"{MODELS}/{row.pk}/test", f"{MODELS}/{row.pk}/activate"):
        call("POST", path)
    registry.refresh()
    holder = {
        "endpoint": Endpoint.objects.filter(pk=row.pk),
        "site": EndpointGrant.across_sites.filter(endpoint=row),
        "member": MemberKey.across_sites.filter(endpoint=row),
    }[whose].get()
    assert holder.api_key_encrypted and holder.api_key_encrypted not in "".join([*answers, *ear.lines])
    assert f"…{CANARY[-4:]}" in "".join(answers), "the mask alone is shown"

    assert "provider_failed" in "".join(ear.lines)
    assert_silent("log", ear.lines)
    assert_silent("events", seen)
    assert_silent("answers", answers)
    assert_silent("rows", [everything_stored()])
    registry.forget()


def traceback_of(provider: ChatProvider) -> Any:
    """Return how a defect in the middle of a call ended, with all its frames."""

    async def go() -> None:
        async for _ in provider.stream(ChatRequest((ChatMessage("user", "你好"),))):
            raise AssertionError

    try:
        asyncio.run(go())
    except ZeroDivisionError:
        return sys.exc_info()
    raise AssertionError


def test_a_traceback_page_with_debug_does_not_show_the_key(settings: Any) -> None:
    settings.DEBUG = True

    def break_down(request: httpx.Request) -> httpx.Response:
        key = request.headers["Authorization"].removeprefix("Bearer ")
        assert key == CANARY  # it is in this frame, and in those that called it
        return httpx.Response(200 // 0)

    client = httpx.AsyncClient(transport=httpx.MockTransport(break_down))
    provider = OpenAIChatProvider(
        base_url="https://api.example.com", model="m", api_key=Secret(CANARY), client=lambda: client
    )
    form = {"name": "主力", "api_key": CANARY, "priority": "10"}
    request = RequestFactory().post(
        "/admin/providers/endpoint/add/", form, headers={"Authorization": f"Bearer {CANARY}"}
    )
    request.COOKIES["sessionid"] = CANARY
    reporter = ExceptionReporter(request, *traceback_of(provider))
    html, text = reporter.get_traceback_html(), reporter.get_traceback_text()
    assert "ZeroDivisionError" in html and "break_down" in html and "主力" in html
    assert_silent("traceback", [html, text])
