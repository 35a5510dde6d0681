"""Which sites may use an endpoint, for staff by API: kept, read, taken away, tested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conversations.models import EndpointGrant, User
from providers import registry
from providers.credentials import new_key
from providers.models import Endpoint
from tests.conversations.api.test_models import Api, refusal
from tests.fakes.provider import FakeProvider
from tests.world import World

pytestmark = pytest.mark.django_db
KEY = "sk-acorn-0123456789abcd"


@pytest.fixture(autouse=True)
def setting(settings: Any) -> Iterator[None]:
    settings.SECRET_KEYS = [new_key()]
    settings.PROVIDER_ALLOWED_ADDRESSES = ["127.0.0.1:9999"]
    registry.forget()
    yield
    registry.forget()


@pytest.fixture
def boss() -> Api:
    """A superuser."""
    return Api(User.objects.create(username="老板", is_staff=True, is_superuser=True))


def make(**fields: Any) -> Endpoint:
    given = {"name": "主力", "base_url": "https://a.example/v1", "model": "m", **fields}
    return Endpoint.objects.create(**given)


def test_a_site_is_granted_an_endpoint_gets_a_key_and_loses_both(boss: Api, world: World) -> None:
    row = make(is_shared=False)
    path = f"/{row.pk}/sites"
    assert boss("GET", path) == (200, {"items": [], "total": 0})
    assert boss("GET", f"{path}/acorn")[0] == 404
    status, made = boss("PUT", f"{path}/acorn")
    assert (status, made["site"], made["apiKeyMask"], made["isStale"]) == (200, "acorn", "", False)
    status, kept = boss("PUT", f"{path}/acorn", {"apiKey": KEY})
    assert (status, kept["apiKeyMask"], kept["createdAt"]) == (200, "sk-…abcd", made["createdAt"])
    assert boss("GET", f"{path}/acorn") == (200, kept)
    assert boss("GET", path) == (200, {"items": [kept], "total": 1})
    # What was read can be sent back, and what is not given stays.
    assert boss("PUT", f"{path}/acorn", kept)[1]["apiKeyMask"] == "sk-…abcd"
    assert EndpointGrant.across_sites.get().api_key().reveal() == KEY
    assert boss("PUT", f"{path}/acorn", {"apiKey": None})[1]["apiKeyMask"] == ""
    assert boss("DELETE", f"{path}/acorn") == (204, None)
    assert boss("DELETE", f"{path}/acorn")[0] == 404
    for missing in (f"/{row.pk}/sites/nobody", "/999999/sites/acorn", "/x/sites/acorn", f"/{row.pk}/sites/站"):
        assert [boss(method, missing)[0] for method in ("GET", "PUT", "DELETE")] == [404] * 3
    assert not EndpointGrant.across_sites.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("apiKey", "a b"),
        ("apiKey", f"{KEY}\n"),
        ("apiKey", "密钥"),
        ("apiKey", 5),
        ("apiKey", "k" * 4097),
        ("x", 1),
    ],
)
def test_what_cannot_be_is_refused_at_its_field_and_nothing_is_saved(
    boss: Api, world: World, field: str, value: Any
) -> None:
    row = make()
    answer = boss("PUT", f"/{row.pk}/sites/acorn", {field: value})
    assert list(refusal(answer)) == [field]
    assert KEY not in str(answer)
    assert not EndpointGrant.across_sites.exists()


def test_sharing_is_a_field_of_the_endpoint(boss: Api) -> None:
    row = make(base_url="http://127.0.0.1:9999/v1")
    assert boss("GET", f"/{row.pk}")[1]["isShared"] is True
    assert boss("PATCH", f"/{row.pk}", {"isShared": False})[1]["isShared"] is False
    assert list(refusal(boss("PATCH", f"/{row.pk}", {"isShared": "no"}))) == ["isShared"]
    assert not Endpoint.objects.get().is_shared


def test_a_key_that_was_entered_for_another_host_is_said_to_be_stale(boss: Api, world: World) -> None:
    row = make()
    boss("PUT", f"/{row.pk}/sites/acorn", {"apiKey": KEY})
    Endpoint.objects.filter(pk=row.pk).update(base_url="https://b.example/v1")
    assert boss("GET", f"/{row.pk}/sites/acorn")[1]["isStale"] is True
    status, test = boss("POST", f"/{row.pk}/test", {"site": "acorn"})
    assert (status, test["ok"], test["error"]["code"]) == (200, False, "key_for_another_host")
    assert "重新填写" in test["error"]["message"]
    assert boss("PUT", f"/{row.pk}/sites/acorn", {"apiKey": KEY})[1]["isStale"] is False


def test_a_test_can_be_made_as_a_site_calls(
    boss: Api, world: World, fake_provider: FakeProvider, settings: Any
) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = [fake_provider.address]
    row = make(base_url=fake_provider.base_url, is_shared=False)
    path = f"/{row.pk}/test"
    assert list(refusal(boss("POST", path, {"site": "acorn"}))) == ["site"]
    assert list(refusal(boss("POST", path, {"site": "nobody"}))) == ["site"]
    boss("PUT", f"/{row.pk}/sites/acorn", {"apiKey": KEY})
    assert boss("POST", path, {"site": "acorn"})[1]["ok"] is True
    row.refresh_from_db()
    assert row.test_ok is None, "it says nothing about the endpoint's own key"
    assert boss("POST", path, {"site": None})[1]["ok"] is True
    row.refresh_from_db()
    assert row.test_ok is True
