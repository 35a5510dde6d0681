"""A member's own keys: who may keep one where, what is refused, and that nobody else ever meets them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from conversations.models import EndpointGrant, MemberKey, Membership, Site
from providers.credentials import new_key
from providers.models import Endpoint
from tests.world import World, bearer

pytestmark = pytest.mark.django_db
KEYS = "/api/xcx/keys"
KEY = "sk-alice-0123456789abcd"


@pytest.fixture(autouse=True)
def setting(settings: Any) -> None:
    settings.SECRET_KEYS = [new_key()]


def make(name: str = "主力", **fields: Any) -> Endpoint:
    return Endpoint.objects.create(**{"name": name, "base_url": "https://a.example/v1", "model": "m", **fields})


def allow(site: Site, is_allowed: bool = True) -> None:
    Site.objects.filter(pk=site.pk).update(settings={"member_keys": is_allowed})


def call(member: Membership, method: str, path: object = "", body: Any = None) -> tuple[int, Any]:
    given = {} if body is None else {"data": json.dumps(body), "content_type": "application/json"}
    answer = Client().generic(method, f"{KEYS}{path}", headers=bearer(member), **given)
    return answer.status_code, json.loads(answer.content) if answer.content else None


def place(row: Endpoint, mask: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": row.pk, "name": row.name, "apiKeyMask": mask, "isStale": False, "isUsable": True, **fields}


def test_a_member_keeps_replaces_and_removes_a_key(world: World) -> None:
    allow(world.acorn)
    row = make()
    assert call(world.alice, "GET") == (200, {"isAllowed": True, "items": [place(row)]})
    assert call(world.alice, "PUT", f"/{row.pk}", {"apiKey": KEY}) == (200, place(row, "sk-…abcd"))
    assert call(world.alice, "PUT", f"/{row.pk}", {"apiKey": "sk-other-0123456789"})[1] == place(row, "sk-…6789")
    assert call(world.alice, "GET")[1]["items"] == [place(row, "sk-…6789")]
    assert MemberKey.across_sites.get().api_key().reveal() == "sk-other-0123456789"
    assert call(world.alice, "DELETE", f"/{row.pk}") == (204, None)
    assert call(world.alice, "DELETE", f"/{row.pk}")[0] == 404
    assert not MemberKey.across_sites.exists()


def test_only_what_the_site_may_use_takes_a_key(world: World) -> None:
    allow(world.acorn)
    shared, granted, closed = make("甲"), make("乙", is_shared=False), make("丙", is_shared=False)
    make("停", is_active=False)
    make("剧", dialect="scripted")
    EndpointGrant.across_sites.create(site=world.acorn, endpoint=granted)
    EndpointGrant.across_sites.create(site=world.birch, endpoint=closed)
    assert call(world.alice, "GET")[1]["items"] == [place(shared), place(granted)]
    for refused in (*Endpoint.objects.exclude(name__in=["甲", "乙"]).values_list("pk", flat=True), 10**9, "x"):
        status, problem = call(world.alice, "PUT", f"/{refused}", {"apiKey": KEY})
        assert (status, problem["code"]) == (404, "not_found"), refused
    assert not MemberKey.across_sites.exists()


def test_where_the_site_does_not_allow_it_no_key_is_taken_and_one_can_still_be_removed(world: World) -> None:
    row = make()
    assert call(world.alice, "GET") == (200, {"isAllowed": False, "items": []})
    status, problem = call(world.alice, "PUT", f"/{row.pk}", {"apiKey": KEY})
    assert (status, problem["code"]) == (403, "member_keys_off")
    allow(world.acorn)
    call(world.alice, "PUT", f"/{row.pk}", {"apiKey": KEY})
    allow(world.acorn, False)
    unused = place(row, "sk-…abcd", isUsable=False)
    assert call(world.alice, "GET") == (200, {"isAllowed": False, "items": [unused]})
    assert call(world.alice, "DELETE", f"/{row.pk}") == (204, None)


@pytest.mark.parametrize(
    "value", ["", None, 5, "sk-a b", f"{KEY}\n", f"{KEY}\r\nX-Evil: 1", "密钥", "a\0b", "k" * 4097]
)
def test_what_is_no_key_is_refused_at_its_field_and_not_repeated(world: World, value: Any) -> None:
    allow(world.acorn)
    row = make()
    status, problem = call(world.alice, "PUT", f"/{row.pk}", {"apiKey": value})
    assert (status, problem["code"], list(problem["errors"])) == (422, "invalid", ["apiKey"])
    assert "X-Evil" not in str(problem) and KEY not in str(problem)
    assert list(call(world.alice, "PUT", f"/{row.pk}", {})[1]["errors"]) == ["apiKey"]
    assert not MemberKey.across_sites.exists()


def test_a_member_meets_nobody_elses_keys(world: World) -> None:
    allow(world.acorn)
    allow(world.birch)
    row = make()
    call(world.alice, "PUT", f"/{row.pk}", {"apiKey": KEY})
    before = list(MemberKey.across_sites.values())
    for stranger in (world.bob, world.carol):
        assert call(stranger, "GET")[1]["items"] == [place(row)]
        missing, theirs = (call(stranger, "DELETE", f"/{pk}") for pk in (10**9, row.pk))
        assert [status for status, _ in (missing, theirs)] == [404, 404]
        assert call(stranger, "PUT", f"/{row.pk}", {"apiKey": "sk-stranger-0123456789"})[0] == 200
    assert list(MemberKey.across_sites.filter(membership=world.alice).values()) == before


def test_a_key_for_another_host_is_said_to_be_stale(world: World) -> None:
    allow(world.acorn)
    row = make()
    call(world.alice, "PUT", f"/{row.pk}", {"apiKey": KEY})
    row.base_url = "https://b.example/v1"
    row.save()
    assert call(world.alice, "GET")[1]["items"] == [place(row, "sk-…abcd", isStale=True)]
    assert call(world.alice, "PUT", f"/{row.pk}", {"apiKey": KEY})[1] == place(row, "sk-…abcd")


def test_the_list_costs_the_same_for_one_and_for_three(world: World) -> None:
    allow(world.acorn)
    headers = bearer(world.alice)
    costs = []
    for name in ("甲", "乙", "丙"):
        row = make(name)
        call(world.alice, "PUT", f"/{row.pk}", {"apiKey": KEY})
        with CaptureQueriesContext(connection) as queries:
            Client().get(KEYS, headers=headers)
        costs.append(len(queries))
    assert len(set(costs)) == 1
