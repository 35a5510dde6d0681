"""Whose endpoint answers, with whose key: real rows, a real engine, and a provider that tells who called."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from conversations.generation import actions, endpoints
from conversations.generation.actions import Send
from conversations.generation.engine import Engine
from conversations.models import EndpointGrant, Generation, MemberKey, Membership, Message, Site
from providers import registry
from providers.credentials import new_key
from providers.models import Endpoint
from providers.pool import FAILURES_TO_OPEN
from tests.conversations.generation.conftest import claims_of, eventually, in_unit, new_chat, running_engines, send
from tests.world import World, make_worker

SHARED, OF_ACORN, OF_BIRCH, OF_ALICE = (f"sk-{name}-0123456789" for name in ("shared", "acorn", "birch", "alice"))
WRONG = "sk-wrong-0123456789"


@dataclass
class Doorman:
    """A provider that notes which key came to which path; a wrong one gets 401, and the path /ill gets 500."""

    address: str = ""
    heard: list[tuple[str, str]] = field(default_factory=list)

    def take(self) -> list[tuple[str, str]]:
        """Return what was heard since the last time."""
        heard, self.heard = self.heard, []
        return heard


@pytest.fixture
def doorman(settings: Any) -> Iterator[Doorman]:
    """A provider of this test's own, and keys that encrypt."""
    settings.SECRET_KEYS = [new_key()]
    noted = Doorman()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            key = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            path = self.path.split("/")[1]
            noted.heard.append((path, key))
            event = {"choices": [{"index": 0, "delta": {"content": "好"}, "finish_reason": "stop"}]}
            status, body = 200, f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"
            if key == WRONG:
                status, body = 401, json.dumps({"error": {"message": "wrong key", "code": "invalid_api_key"}})
            elif path == "ill":
                status, body = 500, "ill"
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if status == 200 else "application/json")
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    noted.address = f"127.0.0.1:{server.server_address[1]}"
    settings.PROVIDER_ALLOWED_ADDRESSES = [noted.address]
    settings.THROTTLE = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield noted
    server.shutdown()
    thread.join()
    server.server_close()


def make(doorman: Doorman, name: str = "main", *, key: str = SHARED, **fields: Any) -> Endpoint:
    """Save an endpoint behind the doorman's path of this name and return it."""
    row = Endpoint(**{"name": name, "base_url": f"http://{doorman.address}/{name}/v1", "model": "m", **fields})
    row.set_api_key(key)
    row.save()
    return row


def grant(site: Site, endpoint: Endpoint, key: str = "") -> EndpointGrant:
    """Save a grant and return it."""
    row = EndpointGrant(site=site, endpoint=endpoint)
    row.set_own_key(key, endpoint)
    row.save()
    return row


def give_key(member: Membership, endpoint: Endpoint, key: str) -> MemberKey:
    """Save a member's own key, whatever the site allows."""
    row = MemberKey(site_id=member.site_id, membership=member, endpoint=endpoint)
    row.set_own_key(key, endpoint)
    row.save()
    return row


def allow_keys(site: Site, is_allowed: bool = True) -> None:
    """Switch the site's members' own keys."""
    Site.objects.filter(pk=site.pk).update(settings={"member_keys": is_allowed})


class House:
    """A worker, and a chat of each member."""

    def __init__(self, engine: Engine, people: World) -> None:
        self.engine, self.people = engine, people

    async def ask(self, name: str) -> tuple[str, str]:
        """Return how a reply to this member ended: its status and code."""
        member = getattr(self.people, name)
        chat, claims = await in_unit(new_chat, member), await in_unit(claims_of, member)
        started = await send(self.engine, claims, chat, "你好")
        await self.engine.ended(started.reply_id)
        reply = await in_unit(Message.across_sites.get, pk=started.reply_id)
        return reply.status, reply.error_code

    async def follow(self) -> None:
        """Return when the worker has heard of every change."""

        def is_there() -> bool:
            now = endpoints.standing()
            return now.followed_by == len(now.workers) > 0

        await eventually(lambda: in_unit(is_there))


@asynccontextmanager
async def house(people: World) -> Any:
    """Yield a running house."""
    async with running_engines() as [engine]:
        await asyncio.sleep(0.1)  # until it listens
        yield House(engine, people)


def ledger() -> list[tuple[str, str, str]]:
    """Return whose key each attempt was made with, oldest first."""
    rows = Generation.across_sites.order_by("pk")
    return list(rows.values_list("endpoint_name", "credential", "status"))


async def test_each_site_calls_with_its_own_key_and_no_other_site_with_it(people: World, doorman: Doorman) -> None:
    row = await in_unit(make, doorman)
    await in_unit(grant, people.acorn, row, OF_ACORN)
    async with house(people) as at:
        await at.ask("alice")
        await at.ask("carol")
        await in_unit(grant, people.birch, row, OF_BIRCH)
        await at.follow()
        await at.ask("carol")
        await at.ask("bob")
    assert doorman.take() == [("main", key) for key in (OF_ACORN, SHARED, OF_BIRCH, OF_ACORN)]
    assert await in_unit(ledger) == [("main", whose, "complete") for whose in ("site", "endpoint", "site", "site")]


async def test_an_endpoint_that_is_not_granted_is_not_used(people: World, doorman: Doorman) -> None:
    row = await in_unit(make, doorman, is_shared=False)
    await in_unit(grant, people.acorn, row)
    async with house(people) as at:
        assert await at.ask("alice") == ("complete", "")
        assert await at.ask("carol") == ("failed", "no_model")
        assert doorman.take() == [("main", SHARED)]
        # Granted while it runs, and taken back.
        leave = await in_unit(grant, people.birch, row, OF_BIRCH)
        await at.follow()
        assert await at.ask("carol") == ("complete", "")
        await in_unit(leave.delete)
        await at.follow()
        assert await at.ask("carol") == ("failed", "no_model")
        # And opened for all.
        await in_unit(Endpoint.objects.filter(pk=row.pk).update, is_shared=True)
        await at.follow()
        assert await at.ask("carol") == ("complete", "")
    assert doorman.take() == [("main", OF_BIRCH), ("main", SHARED)]


async def test_one_sites_wrong_key_takes_the_endpoint_from_nobody_else(people: World, doorman: Doorman) -> None:
    row = await in_unit(make, doorman)
    await in_unit(grant, people.acorn, row, WRONG)
    async with house(people) as at:
        for _ in range(FAILURES_TO_OPEN + 3):
            assert await at.ask("alice") == ("failed", "provider_rejected")
        doorman.take()
        assert await at.ask("carol") == ("complete", "")
        # The right key does not wait until the wrong one has rested.
        await in_unit(EndpointGrant.objects.for_site(people.acorn).delete)
        await in_unit(grant, people.acorn, row, OF_ACORN)
        await at.follow()
        assert await at.ask("alice") == ("complete", "")
    assert doorman.take() == [("main", SHARED), ("main", OF_ACORN)]


async def test_an_outage_that_one_site_met_spares_the_others_the_wait(people: World, doorman: Doorman) -> None:
    ill = await in_unit(make, doorman, "ill", priority=1)
    await in_unit(make, doorman, "well", priority=2)
    await in_unit(grant, people.acorn, ill, OF_ACORN)
    async with house(people) as at:
        for _ in range(FAILURES_TO_OPEN):
            assert await at.ask("alice") == ("complete", "")
        doorman.take()
        assert await at.ask("carol") == ("complete", "")
    assert doorman.take() == [("well", SHARED)]


async def test_a_members_own_key_comes_first_while_the_site_allows_it(people: World, doorman: Doorman) -> None:
    row = await in_unit(make, doorman)
    await in_unit(grant, people.acorn, row, OF_ACORN)
    await in_unit(give_key, people.alice, row, OF_ALICE)
    async with house(people) as at:
        await at.ask("alice")
        await in_unit(allow_keys, people.acorn)
        await at.ask("alice")
        await at.ask("bob")
        await at.ask("carol")
        await in_unit(allow_keys, people.acorn, False)
        await at.ask("alice")
    assert doorman.take() == [("main", key) for key in (OF_ACORN, OF_ALICE, OF_ACORN, SHARED, OF_ACORN)]
    whose = ["site", "member", "site", "endpoint", "site"]
    assert await in_unit(ledger) == [("main", one, "complete") for one in whose]


async def test_a_members_key_opens_nothing_that_the_site_may_not_use(people: World, doorman: Doorman) -> None:
    row = await in_unit(make, doorman, is_shared=False)
    await in_unit(grant, people.birch, row)
    await in_unit(give_key, people.alice, row, OF_ALICE)
    await in_unit(allow_keys, people.acorn)
    async with house(people) as at:
        assert await at.ask("alice") == ("failed", "no_model")
    assert doorman.take() == []


async def test_a_members_wrong_key_is_followed_by_another_endpoint_and_hurts_nobody(
    people: World, doorman: Doorman
) -> None:
    row = await in_unit(make, doorman, priority=1)
    await in_unit(make, doorman, "reserve", priority=2)
    await in_unit(give_key, people.alice, row, WRONG)
    await in_unit(allow_keys, people.acorn)
    async with house(people) as at:
        for _ in range(FAILURES_TO_OPEN):
            assert await at.ask("alice") == ("complete", "")
        assert doorman.take() == [("main", WRONG), ("reserve", SHARED)] * FAILURES_TO_OPEN
        await at.ask("bob")
        await at.ask("alice")
    assert doorman.take() == [("main", SHARED), ("reserve", SHARED)], "her key rests, and hers alone"
    assert (await in_unit(ledger))[:2] == [("main", "member", "failed"), ("reserve", "endpoint", "complete")]


@pytest.mark.parametrize("whose", ["site", "member"])
async def test_a_key_is_not_sent_to_the_host_that_the_endpoint_moved_to(
    people: World, doorman: Doorman, whose: str
) -> None:
    row = await in_unit(make, doorman, "moved", base_url="https://elsewhere.example/v1")
    if whose == "site":
        await in_unit(grant, people.acorn, row, OF_ACORN)
    else:
        await in_unit(give_key, people.alice, row, OF_ALICE)
        await in_unit(allow_keys, people.acorn)
    row.base_url = f"http://{doorman.address}/moved/v1"
    await in_unit(row.save)
    async with house(people) as at:
        assert await at.ask("alice") == ("failed", "no_model"), "nor is another key taken in its place"
        assert await at.ask("carol") == ("complete", "")
    assert doorman.take() == [("moved", SHARED)]


async def test_a_key_that_cannot_be_read_leaves_the_endpoint_out_for_its_owner(
    people: World, doorman: Doorman, settings: Any
) -> None:
    row = await in_unit(make, doorman)
    kept = settings.SECRET_KEYS
    settings.SECRET_KEYS = [new_key()]
    await in_unit(grant, people.acorn, row, OF_ACORN)
    await in_unit(give_key, people.carol, row, OF_ALICE)
    await in_unit(allow_keys, people.birch)
    settings.SECRET_KEYS = kept
    async with house(people) as at:
        assert await at.ask("alice") == ("failed", "no_model")
        assert await at.ask("carol") == ("failed", "no_model")
    assert doorman.take() == []


@pytest.mark.parametrize(("is_allowed", "more"), [(False, 0), (True, 1)])
def test_sending_costs_a_query_more_only_where_members_may_have_keys(
    people: World, is_allowed: bool, more: int
) -> None:
    row = Endpoint.objects.create(name="甲", dialect="scripted")
    give_key(people.alice, row, OF_ALICE)
    claims, worker = claims_of(people.alice), make_worker()

    def cost() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            actions.start_reply(
                claims, Send(new_chat(people.alice).pk, "你好"), worker_id=worker.pk, lease_seconds=5
            )
        return len(queries)

    without = cost()
    allow_keys(people.acorn, is_allowed)
    assert cost() == without + more


def test_what_a_reply_holds_of_a_members_keys_shows_neither_key_nor_ciphertext(people: World) -> None:
    row = Endpoint.objects.create(name="甲", dialect="scripted")
    kept = give_key(people.alice, row, OF_ALICE)
    allow_keys(people.acorn)
    started = actions.start_reply(
        claims_of(people.alice),
        Send(new_chat(people.alice).pk, "你好"),
        worker_id=make_worker().pk,
        lease_seconds=5,
    )
    assert started.keys is not None
    assert OF_ALICE not in repr(started) and kept.api_key_encrypted not in repr(started)
    assert registry.loaded() is None
