"""The registry as JSON: who may, what is refused at which field, what a test says, and nothing of a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection, transaction
from django.test import Client
from django.urls import get_resolver

from conversations.api.models import MODEL_EXAMPLE, StaffViewSet
from conversations.models import EndpointGrant, User, Worker
from providers import registry
from providers.credentials import new_key
from providers.models import Endpoint, EndpointRevision, RegistryRevision
from tests.fakes.provider import FakeProvider, expected_text
from tests.world import World, bearer, make_member, make_worker

pytestmark = pytest.mark.django_db
MODELS = "/api/v1/admin/models"
KEY = "sk-canary-0123456789abcdef"
GIVEN = {"name": "主力", "baseUrl": "http://127.0.0.1:9999/v1", "model": "m-1", "apiKey": KEY}


@pytest.fixture(autouse=True)
def keys(settings: Any) -> Iterator[None]:
    """Keys of this test's own, one private address the operator allowed, and no snapshot from elsewhere."""
    settings.SECRET_KEYS = [new_key()]
    settings.PROVIDER_ALLOWED_ADDRESSES = ["127.0.0.1:9999", "127.0.0.1:8888"]
    registry.forget()
    yield
    registry.forget()


def staff(*rights: str, **fields: Any) -> User:
    """Return a staff member with these permissions on endpoints."""
    user = User.objects.create(username="站员", **{"is_staff": True, **fields})
    wanted = Permission.objects.filter(content_type__app_label="providers", codename__in=rights)
    assert len(wanted) == len(rights)
    user.user_permissions.set(wanted)
    return user


class Api:
    """Calls the API as one person, by session, and reads what comes back."""

    def __init__(self, user: User | None = None, **headers: str) -> None:
        self.client = Client()
        self.headers = headers
        if user is not None:
            self.client.force_login(user)

    def __call__(self, method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
        given = {} if body is None else {"data": json.dumps(body), "content_type": "application/json"}
        answer = self.client.generic(method, f"{MODELS}{path}", headers=self.headers, **given)
        return answer.status_code, json.loads(answer.content) if answer.content else None


@pytest.fixture
def boss() -> Api:
    """A superuser."""
    return Api(User.objects.create(username="老板", is_staff=True, is_superuser=True))


def make(boss: Api, **fields: Any) -> dict[str, Any]:
    status, made = boss("POST", "", {**GIVEN, **fields})
    assert status == 201, made
    return dict(made)


def refusal(answer: tuple[int, Any]) -> dict[str, Any]:
    """Return the errors by field of a refusal."""
    status, document = answer
    assert (status, document["code"]) == (422, "invalid"), document
    return dict(document["errors"])


def test_an_endpoint_is_made_read_changed_and_deleted(boss: Api) -> None:
    made = make(boss, concurrencyMax=5, inputMicrosPerMillion=2_500_000, params={"temperature": 0.7})
    path = f"/{made['id']}"
    assert {**MODEL_EXAMPLE, "warning": ""}.keys() == made.keys()
    assert (made["apiKeyMask"], made["isActive"], made["concurrencyMax"]) == ("sk-…cdef", True, 5)
    read = {name: value for name, value in made.items() if name != "warning"}
    assert boss("GET", path) == (200, read)
    assert boss("GET") == (200, {"items": [read], "total": 1})
    status, changed = boss("PATCH", path, {"weight": 3, "concurrencyMax": None})
    assert status == 200
    assert {name for name in read if read[name] != changed[name]} == {"weight", "concurrencyMax", "updatedAt"}
    assert Endpoint.objects.get().api_key().reveal() == KEY
    assert boss("DELETE", path) == (204, None)
    assert boss("GET", path)[0] == 404
    assert not Endpoint.objects.exists()


def test_what_was_read_can_be_sent_back(boss: Api) -> None:
    made = make(boss)
    status, again = boss("PATCH", f"/{made['id']}", made)
    assert (status, {**again, "updatedAt": ""}) == (200, {**made, "updatedAt": ""})


def change_and_disconnect(boss: Api, path: str, body: Any) -> tuple[int, Any]:
    """Return the answer to a PATCH of another thread."""
    try:
        return boss("PATCH", path, body)
    finally:
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_of_two_changes_at_once_both_hold(boss: Api) -> None:
    made = make(boss)
    with ThreadPoolExecutor(1) as other:
        with transaction.atomic():
            endpoint = Endpoint.objects.select_for_update(no_key=True).get()
            endpoint.weight = 7
            endpoint.save()
            changing = other.submit(change_and_disconnect, boss, f"/{made['id']}", {"priority": 3})
            with pytest.raises(TimeoutError):
                changing.result(0.5)
        status, changed = changing.result(10)
    assert (status, changed["weight"], changed["priority"]) == (200, 7, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 5),
        ("continues", "大概"),
        ("params", {"continues": "prefix"}),
        ("params", {"continues": {"message": {"role": "user"}}}),
        ("baseUrl", ""),
        ("baseUrl", "https://user:pass@api.example.com/v1"),
        ("baseUrl", "https://api.example.com/v1?x=1"),
        ("baseUrl", "https://api.example.com/v1#x"),
        ("baseUrl", "ftp://api.example.com"),
        ("baseUrl", "http://169.254.169.254/latest"),
        ("model", ""),
        ("apiKey", "sk-a\nX-Evil: b"),
        ("apiKey", "sk-abcdefghijkl\n"),
        ("apiKey", "密钥"),
        ("isActive", "yes"),
        ("priority", -1),
        ("priority", 1001),
        ("weight", -1),
        ("weight", 0),
        ("weight", "3"),
        ("concurrencyMax", 0),
        ("concurrencyMax", -5),
        ("requestsPerMinute", 1.5),
        ("inputMicrosPerMillion", -1),
        ("outputMicrosPerMillion", 10**30),
        ("params", []),
        ("params", None),
        ("params", {"messages": []}),
        ("params", {"a": "\0"}),
        ("params", {"a": "\ud800"}),
        ("idleSeconds", 0),
        ("idleSeconds", -3.5),
        ("totalSeconds", True),
        ("dialect", "telepathy"),
        ("secret", "x"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field_and_nothing_is_saved(boss: Api, field: str, value: Any) -> None:
    made = make(boss)
    before = list(Endpoint.objects.values())
    assert list(refusal(boss("POST", "", {**GIVEN, "name": "另一个", field: value}))) == [field]
    errors = refusal(boss("PATCH", f"/{made['id']}", {field: value}))
    # A base URL that is refused, or empty, is no other host to enter the key for.
    assert set(errors) - {"apiKey"} == {field} - {"apiKey"}
    assert list(Endpoint.objects.values()) == before
    assert KEY not in str(errors) and "X-Evil" not in str(errors)


@pytest.mark.parametrize(
    "params", [{"temperature": 1}, {"script": [{"say": "x"}]}, {"script": "x"}, {"step_seconds": "1"}]
)
def test_the_scripted_dialect_knows_its_parameters(boss: Api, params: Any) -> None:
    assert list(refusal(boss("POST", "", {"name": "剧", "dialect": "scripted", "params": params}))) == ["params"]
    script = {"script": [{"text": "台词"}, {"sleep": 0.1}, {"finish": "stop"}], "step_seconds": 0.1}
    assert boss("POST", "", {"name": "剧", "dialect": "scripted", "params": script})[0] == 201


def test_a_declarative_endpoint_chooses_its_section_and_mode(boss: Api) -> None:
    given = {"name": "按配置", "dialect": "declarative", "model": "m"}
    config = {
        "ready": "anthropic_x_api_key",
        "values": {"anthropic_version": "2024-01-01"},
        "mapi": "whole",
        "mode": "whole",
    }
    status, made = boss("POST", "", {**given, "config": config})
    assert (status, made["config"]) == (201, config)
    for wrong, path in (
        ({"mapi": "embeddings"}, "mapi"),
        ({"mode": "poll"}, "mode"),
        ({"values": {"x": 1}}, "values.x"),
    ):
        errors = refusal(boss("PATCH", f"/{made['id']}", {"config": {**config, **wrong}}))
        assert list(errors) == ["config"]
        assert errors["config"][0].startswith(f"{path}: ")
    assert Endpoint.objects.get().config == config


def test_a_key_does_not_follow_to_another_host_and_can_be_removed(boss: Api) -> None:
    made = make(boss)
    moved = {"baseUrl": "http://127.0.0.1:8888/v1"}
    assert list(refusal(boss("PATCH", f"/{made['id']}", moved))) == ["apiKey"]
    assert boss("PATCH", f"/{made['id']}", {"apiKey": None})[1]["apiKeyMask"] == ""
    assert boss("PATCH", f"/{made['id']}", moved)[0] == 200


def test_a_name_is_given_once(boss: Api) -> None:
    make(boss)
    assert list(refusal(boss("POST", "", GIVEN))) == ["name"]


def test_activating_what_never_passed_a_test_is_warned_of(
    boss: Api, fake_provider: FakeProvider, settings: Any
) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = [fake_provider.address]
    made = make(boss, baseUrl=fake_provider.base_url, isActive=False)
    path = f"/{made['id']}"
    assert "warning" not in made
    status, active = boss("POST", f"{path}/activate")
    assert (status, active["isActive"], "主力" in active["warning"]) == (200, True, True)
    assert boss("POST", f"{path}/deactivate")[1]["isActive"] is False
    status, test = boss("POST", f"{path}/test")
    assert (status, test["ok"], test["sample"]) == (200, True, expected_text(1, 8))
    assert 0 <= test["firstTokenMs"] <= test["latencyMs"]
    assert "warning" not in boss("POST", f"{path}/activate")[1]
    assert boss("GET", path)[1]["testOk"] is True
    # Another model is another endpoint to who wants to know whether it is well.
    changed = boss("PATCH", path, {"model": "m-2"})[1]
    assert (changed["testOk"], changed["testedAt"], "warning" in changed) == (None, None, True)


@pytest.mark.parametrize(
    ("fields", "code", "word"),
    [
        ({"baseUrl": "http://127.0.0.1:9/v1"}, "connect_failed", "端口"),
        ({"dialect": "scripted", "params": {"script": [{"error": "unauthorized"}]}}, "unauthorized", "密钥"),
        ({"dialect": "scripted", "params": {"script": [{"finish": "stop"}]}}, "empty_reply", "没有说"),
    ],
)
def test_a_failed_test_says_what_to_do(boss: Api, settings: Any, fields: Any, code: str, word: str) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES += ["127.0.0.1:9"]
    made = make(boss, **fields)
    status, test = boss("POST", f"/{made['id']}/test")
    assert (status, test["ok"], test["error"]["code"]) == (200, False, code)
    assert word in test["error"]["message"]
    assert boss("GET", f"/{made['id']}")[1]["testOk"] is False
    in_english = Api(User.objects.get(username="老板"), **{"Accept-Language": "en"})
    assert in_english("POST", f"/{made['id']}/test")[1]["error"]["message"].isascii()


def test_an_unreadable_key_is_told_by_the_test(boss: Api, settings: Any) -> None:
    made = make(boss)
    settings.SECRET_KEYS = [new_key()]
    assert boss("POST", f"/{made['id']}/test")[1]["error"]["code"] == "secret_unreadable"


def test_the_revision_tells_how_far_each_worker_is(boss: Api) -> None:
    make(boss)
    worker = make_worker(host="chat-01")
    Worker.objects.filter(pk=worker.pk).update(registry_revision=1, live_replies=7)
    now = RegistryRevision.objects.get().revision
    status, document = boss("GET", "/revision")
    assert (status, document["revision"], document["kept"][0]) == (200, now, now)
    [seen] = document["workers"]
    assert (seen["id"], seen["host"], seen["revision"], seen["liveReplies"]) == (worker.pk, "chat-01", 1, 7)


def test_an_earlier_revision_is_brought_back(boss: Api) -> None:
    made = make(boss)
    then = boss("GET", "/revision")[1]["revision"]
    boss("PATCH", f"/{made['id']}", {"weight": 9})
    status, document = boss("POST", "/revision/restore", {"revision": then})
    assert (status, document["revision"]) == (200, then + 2)
    assert boss("GET", f"/{made['id']}")[1]["weight"] == 1
    assert boss("POST", "/revision/restore", {"revision": 10**9})[0] == 404
    assert list(refusal(boss("POST", "/revision/restore", {"revision": "1"}))) == ["revision"]


def test_an_endpoint_in_use_is_not_deleted_but_drained_on_demand(boss: Api) -> None:
    made = make(boss)
    path = f"/{made['id']}"
    worker = make_worker()
    Worker.objects.filter(pk=worker.pk).update(live_endpoints={str(made["id"]): 3})
    status, problem = boss("DELETE", path)
    assert (status, problem["code"], problem["liveReplies"]) == (409, "endpoint_in_use", 3)
    assert boss("GET", path)[1]["isActive"] is True
    status, draining = boss("DELETE", f"{path}?drain=1")
    assert (status, draining["isDraining"], draining["isActive"]) == (202, True, False)
    assert boss("POST", f"{path}/activate")[1]["isDraining"] is False
    Worker.objects.filter(pk=worker.pk).update(live_endpoints={})
    assert boss("DELETE", path)[0] == 204


CALLS = [
    ("GET", "", "view_endpoint"),
    ("POST", "", "add_endpoint"),
    ("GET", "/{id}", "view_endpoint"),
    ("PATCH", "/{id}", "change_endpoint"),
    ("DELETE", "/{id}", "delete_endpoint"),
    ("POST", "/{id}/activate", "change_endpoint"),
    ("POST", "/{id}/deactivate", "change_endpoint"),
    ("POST", "/{id}/test", "change_endpoint"),
    ("GET", "/{id}/sites", "view_endpoint"),
    ("GET", "/{id}/sites/{slug}", "view_endpoint"),
    ("PUT", "/{id}/sites/{slug}", "change_endpoint"),
    ("DELETE", "/{id}/sites/{slug}", "change_endpoint"),
    ("GET", "/revision", "view_endpoint"),
    ("POST", "/revision/restore", "add_endpoint,change_endpoint,delete_endpoint"),
]


def test_every_route_of_the_registry_is_in_the_list() -> None:
    routes = {
        (
            str(pattern.pattern)
            .replace("<str:model_id>", "{id}")
            .replace("<str:slug>", "{slug}")
            .removeprefix(MODELS[1:]),
            method.upper(),
        )
        for resolver in get_resolver().url_patterns
        for pattern in getattr(resolver, "url_patterns", [])
        if str(pattern.pattern).startswith(MODELS[1:]) and not str(pattern.pattern).endswith("/")
        for method in set(pattern.callback.actions) - {"head"}
    }
    assert routes == {(path, method) for method, path, _ in CALLS}
    assert all(view.rights for view in StaffViewSet.__subclasses__())


@pytest.mark.parametrize("who", ["nobody", "member", "manager", "staff", "not staff", "closed", "other rights"])
def test_others_get_nowhere(boss: Api, world: World, who: str) -> None:
    made = make(boss)
    EndpointGrant.across_sites.create(site=world.acorn, endpoint_id=made["id"])

    def everything() -> list[Any]:
        rows = Endpoint.objects, EndpointRevision.objects, EndpointGrant.across_sites
        return [list(some.values()) for some in rows]

    before = everything()
    every = ("view_endpoint", "add_endpoint", "change_endpoint", "delete_endpoint")
    for method, path, needed in CALLS:
        User.objects.filter(username="站员").delete()
        if who == "nobody":
            api = Api()
        elif who == "member":
            api = Api(Authorization=bearer(world.alice)["Authorization"])
        elif who == "manager":
            if not User.objects.filter(username="erin").exists():
                make_member(world.acorn, "erin", role="manager")
            user = User.objects.get(username="erin")
            api = Api(user)
        elif who == "not staff":
            api = Api(staff(*every, is_staff=False))
        elif who == "closed":
            api = Api(staff(*every, is_active=False))
        elif who == "other rights":
            api = Api(staff(*(right for right in every if right not in needed)))
        else:
            api = Api(staff())
        refused = {"nobody": (401, "not_signed_in"), "closed": (401, "not_signed_in")}.get(
            who, (403, "not_allowed")
        )
        status, problem = api(
            method,
            path.replace("{id}", str(made["id"])).replace("{slug}", "acorn"),
            {"weight": 5} if method != "GET" else None,
        )
        assert (status, problem["code"]) == refused, f"{method} {path}"
        assert KEY not in json.dumps(problem)
    assert everything() == before


def test_staff_with_the_permission_get_in_by_session_and_by_token(boss: Api, world: World) -> None:
    make(boss)
    assert Api(staff("view_endpoint"))("GET")[0] == 200
    user = world.alice.user
    User.objects.filter(pk=user.pk).update(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_endpoint"))
    by_token = Api(Authorization=bearer(world.alice)["Authorization"])
    assert by_token("GET")[0] == 200
    assert by_token("POST", "", {**GIVEN, "name": "乙"})[0] == 403
    assert Api(Authorization="Bearer x")("GET")[0] == 401


def test_a_session_needs_the_csrf_token_and_a_bearer_does_not(boss: Api, world: World) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="老板"))
    answer = strict.post(MODELS, json.dumps(GIVEN), content_type="application/json")
    assert (answer.status_code, answer.json()["code"], Endpoint.objects.count()) == (403, "not_allowed", 0)
    User.objects.filter(pk=world.alice.user_id).update(is_staff=True, is_superuser=True)
    bare = Client(enforce_csrf_checks=True)
    headers = bearer(world.alice)
    assert (
        bare.post(MODELS, json.dumps(GIVEN), content_type="application/json", headers=headers).status_code == 201
    )


def test_the_history_of_the_admin_tells_who_did_what_without_the_key(boss: Api) -> None:
    made = make(boss)
    boss("PATCH", f"/{made['id']}", {"apiKey": KEY + "x", "weight": 2})
    page = boss.client.get(f"/admin/providers/endpoint/{made['id']}/history/").content.decode()
    assert ("老板" in page and "apiKey" in page) or "api_key" in page
    assert KEY not in page


def test_a_list_costs_the_same_for_one_and_three(boss: Api, django_assert_num_queries: Any) -> None:
    make(boss)
    with django_assert_num_queries(3):
        boss("GET")
    make(boss, name="乙")
    make(boss, name="丙")
    with django_assert_num_queries(3):
        boss("GET")
