"""Endpoints in the admin: for staff with the permission; keys go in only; addresses are checked."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client

from providers.credentials import new_key
from providers.models import Endpoint
from tests.fakes.provider import FakeProvider

pytestmark = pytest.mark.django_db
KEY = "sk-live-0123456789abcdef"
LIST = "/admin/providers/endpoint/"


@pytest.fixture(autouse=True)
def keys(settings: Any) -> None:
    """Keys of this test's own, and one private address the operator allowed."""
    settings.SECRET_KEYS = [new_key()]
    settings.PROVIDER_ALLOWED_ADDRESSES = ["127.0.0.1:9999"]


def signed_in(**rights: bool) -> Client:
    """Return a browser of a person with these rights."""
    user = get_user_model().objects.create(username="老板", is_active=True, **rights)
    client = Client()
    client.force_login(user)
    return client


def permitted(permissions: tuple[str, ...], **rights: Any) -> Client:
    """Return a browser of a person with these permissions on endpoints."""
    user = get_user_model().objects.create(**{"username": "站员", "is_active": True, **rights})
    user.user_permissions.set(
        Permission.objects.filter(
            content_type__app_label="providers", codename__in=[f"{name}_endpoint" for name in permissions]
        )
    )
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def boss() -> Client:
    """A superuser's browser."""
    return signed_in(is_staff=True, is_superuser=True)


def form(**fields: Any) -> dict[str, Any]:
    """Return a filled-in form."""
    filled = {
        "name": "主力",
        "dialect": "openai",
        "base_url": "http://127.0.0.1:9999/v1",
        "model": "m-1",
        "is_active": "on",
        "priority": "10",
        "weight": "1",
        "params": "{}",
        "api_key": KEY,
        # The sites of the endpoint stand on the same page: tests/conversations/admin/test_grants.py.
        "is_shared": "on",
        "grants-TOTAL_FORMS": "0",
        "grants-INITIAL_FORMS": "0",
        **fields,
    }
    return {name: value for name, value in filled.items() if value is not None}


def errors_of(response: Any) -> dict[str, list[str]]:
    """Return the form errors of a page that came back."""
    assert response.status_code == 200
    return dict(response.context["adminform"].form.errors)


def test_a_superuser_adds_an_endpoint_and_the_key_never_comes_back(boss: Client) -> None:
    response = boss.post(f"{LIST}add/", form())
    assert response.status_code == 302, errors_of(response)
    row = Endpoint.objects.get()
    assert row.api_key().reveal() == KEY
    assert KEY not in row.api_key_encrypted
    for page in (LIST, f"{LIST}{row.pk}/change/", f"{LIST}{row.pk}/history/"):
        html = boss.get(page).content.decode()
        assert KEY not in html
        assert row.api_key_encrypted not in html
    assert "sk-…cdef" in boss.get(LIST).content.decode()


def test_a_refused_form_does_not_render_the_key(boss: Client) -> None:
    response = boss.post(f"{LIST}add/", form(name=""))
    assert "name" in errors_of(response)
    assert KEY not in response.content.decode()


def test_an_empty_key_field_keeps_the_key_and_the_switch_removes_it(boss: Client) -> None:
    boss.post(f"{LIST}add/", form())
    row = Endpoint.objects.get()
    assert boss.post(f"{LIST}{row.pk}/change/", form(api_key="", model="m-2")).status_code == 302
    row.refresh_from_db()
    assert (row.model, row.api_key().reveal()) == ("m-2", KEY)
    assert boss.post(f"{LIST}{row.pk}/change/", form(api_key="", clear_api_key="on")).status_code == 302
    row.refresh_from_db()
    assert (row.api_key_encrypted, row.api_key_mask) == ("", "")


def test_a_key_does_not_follow_its_endpoint_to_another_host(boss: Client, settings: Any) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES += ["127.0.0.1:8888"]
    boss.post(f"{LIST}add/", form())
    row = Endpoint.objects.get()
    moved = form(api_key="", base_url="http://127.0.0.1:8888/v1")
    assert "api_key" in errors_of(boss.post(f"{LIST}{row.pk}/change/", moved))
    row.refresh_from_db()
    assert row.base_url == "http://127.0.0.1:9999/v1"
    assert boss.post(f"{LIST}{row.pk}/change/", {**moved, "api_key": "sk-another-key-1"}).status_code == 302


@pytest.mark.parametrize("key", ["sk-a\nX-Evil: b", "sk with spaces", "密钥密钥密钥", "sk-\x00abc"])
def test_what_could_not_stand_in_a_header_is_no_key(boss: Client, key: str) -> None:
    response = boss.post(f"{LIST}add/", form(api_key=key))
    assert "api_key" in errors_of(response)
    assert not Endpoint.objects.exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9998/v1",
        "http://169.254.169.254/latest",
        "http://10.0.0.5/v1",
        "http://[::1]:9999/v1",
        "http://[::ffff:169.254.169.254]/v1",
        "http://2130706433:9998/",
        "https://user:pass@api.example.com/v1",
        "https://api.example.com/v1?x=1",
        "https://api.example.com/v1#x",
        "ftp://api.example.com",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "api.example.com/v1",
        "http://",
        "http://127.0.0.1:99999/",
        "",
    ],
)
def test_a_url_that_may_not_be_used_is_refused_at_its_field(boss: Client, url: str) -> None:
    assert "base_url" in errors_of(boss.post(f"{LIST}add/", form(base_url=url)))
    assert not Endpoint.objects.exists()


def test_the_refusal_tells_how_the_operator_can_allow_the_address(boss: Client) -> None:
    [message] = errors_of(boss.post(f"{LIST}add/", form(base_url="http://127.0.0.1:9998/v1")))["base_url"]
    assert "127.0.0.1:9998" in message and "PROVIDER_ALLOWED_ADDRESSES" in message


@pytest.mark.parametrize("params", ["[]", '"x"', "{not json", '{"messages": []}', '{"stream": false}'])
def test_parameters_are_an_object_without_our_own_fields(boss: Client, params: str) -> None:
    assert "params" in errors_of(boss.post(f"{LIST}add/", form(params=params)))


def test_the_actions_switch_and_bump_the_revision(boss: Client) -> None:
    from providers.models import RegistryRevision, bump_revision

    boss.post(f"{LIST}add/", form())
    row = Endpoint.objects.get()
    before = bump_revision()
    chosen = {"_selected_action": [str(row.pk)]}
    assert boss.post(LIST, {"action": "deactivate", **chosen}).status_code == 302
    row.refresh_from_db()
    assert row.is_active is False
    assert boss.post(LIST, {"action": "activate", **chosen}).status_code == 302
    row.refresh_from_db()
    assert row.is_active is True
    assert RegistryRevision.objects.get().revision == before + 2


def test_trying_an_endpoint_makes_a_real_call_and_says_how_it_went(
    boss: Client, fake: FakeProvider, settings: Any
) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = [fake.address]
    boss.post(f"{LIST}add/", form(base_url=fake.base_url))
    row = Endpoint.objects.get()
    fake.reset()
    response = boss.post(LIST, {"action": "try_out", "_selected_action": [str(row.pk)]}, follow=True)
    message = [str(m) for m in response.context["messages"]][-1]
    assert message.startswith("主力") and "[DONE]" in message
    assert KEY not in response.content.decode()
    assert fake.stats()["requests"] == 1


@pytest.mark.parametrize(
    ("rights", "permissions"), [({"is_staff": True}, ()), ({}, ("view", "add", "change", "delete"))]
)
def test_others_do_not_see_endpoints_at_all(
    boss: Client, rights: dict[str, bool], permissions: tuple[str, ...]
) -> None:
    boss.post(f"{LIST}add/", form())
    row = Endpoint.objects.get()
    client = permitted(permissions, **rights)
    for page in (LIST, f"{LIST}add/", f"{LIST}{row.pk}/change/", f"{LIST}{row.pk}/delete/"):
        assert client.get(page).status_code in (302, 403)
        assert client.post(page, form(model="hacked")).status_code in (302, 403)
    row.refresh_from_db()
    assert row.model == "m-1"
    assert "主力" not in client.get("/admin/", follow=True).content.decode()


def test_an_application_needs_its_id_and_no_url(boss: Client) -> None:
    application = {"dialect": "dashscope_app", "base_url": ""}
    assert list(errors_of(boss.post(f"{LIST}add/", form(**application, model="")))) == ["model"]
    assert list(errors_of(boss.post(f"{LIST}add/", form(**application, params='{"session_id": "s"}')))) == [
        "params"
    ]
    response = boss.post(f"{LIST}add/", form(**application, params='{"workspace": "ws_1"}'))
    assert response.status_code == 302, errors_of(response)
    assert Endpoint.objects.get().dialect == "dashscope_app"


def test_the_key_of_an_application_does_not_move_to_another_host(boss: Client) -> None:
    row = Endpoint(name="百炼", dialect="dashscope_app", model="app-1")
    row.set_api_key(KEY)
    row.save()
    moved = form(name="百炼", dialect="dashscope_app", model="app-1", api_key=None)
    assert list(errors_of(boss.post(f"{LIST}{row.pk}/change/", moved))) == ["api_key"]
    assert boss.post(f"{LIST}{row.pk}/change/", moved | {"base_url": ""}).status_code == 302
    assert Endpoint.objects.get().api_key().reveal() == KEY


def test_staff_do_what_their_permissions_allow_and_no_more(boss: Client) -> None:
    boss.post(f"{LIST}add/", form())
    row = Endpoint.objects.get()
    reader = permitted(("view",), is_staff=True)
    assert "主力" in reader.get(LIST).content.decode()
    for page in (f"{LIST}add/", f"{LIST}{row.pk}/change/", f"{LIST}{row.pk}/delete/"):
        assert reader.post(page, form(model="hacked")).status_code == 403
    for action in ("activate", "deactivate", "try_out", "delete_selected"):
        reader.post(LIST, {"action": action, "_selected_action": [str(row.pk)], "post": "yes"})
    row.refresh_from_db()
    assert (row.model, row.is_active, row.tested_at) == ("m-1", True, None)
    writer = permitted(("view", "change"), username="编辑", is_staff=True)
    assert writer.post(f"{LIST}{row.pk}/change/", form(api_key="", model="m-2")).status_code == 302
    assert Endpoint.objects.get().model == "m-2"


@pytest.mark.parametrize("field", ["concurrency_max", "requests_per_minute", "weight"])
def test_no_limit_and_no_weight_is_below_one(boss: Client, field: str) -> None:
    for value in ("0", "-1"):
        assert field in errors_of(boss.post(f"{LIST}add/", form(**{field: value})))
    assert not Endpoint.objects.exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9"])
def test_a_clock_is_a_time_within_a_day(boss: Client, seconds: str) -> None:
    assert "idle_seconds" in errors_of(boss.post(f"{LIST}add/", form(idle_seconds=seconds)))


def test_a_change_of_what_is_called_forgets_the_test(boss: Client) -> None:
    boss.post(f"{LIST}add/", form())
    row = Endpoint.objects.get()
    for fields, was_forgotten in (({"weight": "5"}, False), ({"model": "m-9"}, True)):
        row.note_test(is_ok=True)
        boss.post(f"{LIST}{row.pk}/change/", form(api_key="", **fields))
        row.refresh_from_db()
        assert (row.test_ok is None) == was_forgotten
    response = boss.post(LIST, {"action": "activate", "_selected_action": [str(row.pk)]}, follow=True)
    assert "主力" in str(next(iter(response.context["messages"])))
