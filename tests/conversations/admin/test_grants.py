"""Sites and their own keys in the admin: on the endpoint's page, the site's, and the member's."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from conversations.models import EndpointGrant, Generation, MemberKey, User
from providers.credentials import new_key
from providers.models import Endpoint, RegistryRevision
from tests.conversations.admin.people import client_of, make_manager
from tests.world import World, make_conversation, make_exchange

pytestmark = pytest.mark.django_db
LIST = "/admin/providers/endpoint/"
KEY = "sk-acorn-0123456789abcd"


@pytest.fixture(autouse=True)
def setting(settings: Any) -> None:
    settings.SECRET_KEYS = [new_key()]
    settings.PROVIDER_ALLOWED_ADDRESSES = ["127.0.0.1:9999"]


@pytest.fixture
def boss() -> Client:
    """A superuser's browser."""
    return client_of(User.objects.create(username="老板", is_staff=True, is_superuser=True))


def staff(*rights: str) -> Client:
    """Return the browser of staff with these permissions on endpoints."""
    user = User.objects.create(username="站员", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=[f"{right}_endpoint" for right in rights]))
    return client_of(user)


def form(*sites: dict[str, Any], initial: int = 0, **fields: Any) -> dict[str, Any]:
    """Return the endpoint's form, with a line for each site, as a browser would send it."""
    lines = {f"grants-{n}-{name}": value for n, line in enumerate(sites) for name, value in line.items()}
    return {
        "name": "主力",
        "dialect": "openai",
        "base_url": "http://127.0.0.1:9999/v1",
        "model": "m-1",
        "is_active": "on",
        "priority": "10",
        "weight": "1",
        "params": "{}",
        "grants-TOTAL_FORMS": str(len(sites)),
        "grants-INITIAL_FORMS": str(initial),
        **lines,
        **fields,
    }


def test_an_endpoint_is_made_with_its_sites_and_their_keys_never_come_back(boss: Client, world: World) -> None:
    sites = [{"site": world.acorn.pk, "api_key": KEY}, {"site": world.birch.pk}]
    assert boss.post(f"{LIST}add/", form(*sites)).status_code == 302
    endpoint = Endpoint.objects.get()
    assert endpoint.is_shared is False
    rows = {row.site: row for row in EndpointGrant.across_sites.all()}
    assert rows[world.acorn].api_key().reveal() == KEY
    assert (rows[world.birch].api_key_mask, rows[world.acorn].is_stale_for(endpoint)) == ("", False)
    for page in ("change", "history", "delete"):
        text = boss.get(f"{LIST}{endpoint.pk}/{page}/").content.decode()
        assert KEY not in text and rows[world.acorn].api_key_encrypted not in text
    text = boss.get(f"{LIST}{endpoint.pk}/change/").content.decode()
    assert "sk-…abcd" in text and "使用接入点的密钥" in text


def test_an_empty_field_keeps_the_key_a_switch_removes_it_and_a_line_can_go(boss: Client, world: World) -> None:
    boss.post(f"{LIST}add/", form({"site": world.acorn.pk, "api_key": KEY}))
    row, endpoint = EndpointGrant.across_sites.get(), Endpoint.objects.get()
    page = f"{LIST}{endpoint.pk}/change/"
    line = {"id": row.pk, "endpoint": endpoint.pk, "site": world.acorn.pk}

    def save(**fields: Any) -> EndpointGrant | None:
        at = RegistryRevision.objects.get().revision
        assert boss.post(page, form({**line, **fields}, initial=1)).status_code == 302
        assert RegistryRevision.objects.get().revision > at
        return EndpointGrant.across_sites.first()

    assert (kept := save()) and kept.api_key().reveal() == KEY
    assert (kept := save(api_key="sk-other-0123456789")) and kept.api_key_mask == "sk-…6789"
    assert (kept := save(site=world.birch.pk)) and kept.site == world.acorn
    assert (kept := save(clear_api_key="on")) and not kept.api_key()
    assert save(DELETE="on") is None


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"api_key": "a b"}, "api_key"),
        ({"api_key": "密钥-0123456789"}, "api_key"),
        ({"api_key": KEY, "clear_api_key": "on"}, "clear_api_key"),
        ({"site": "", "api_key": KEY}, "site"),
        ({"site": "999999"}, "site"),
    ],
)
def test_what_cannot_be_is_said_at_its_field_and_nothing_is_saved(
    boss: Client, world: World, line: dict[str, Any], field: str
) -> None:
    answer = boss.post(f"{LIST}add/", form({"site": world.acorn.pk, **line}))
    [errors] = answer.context["inline_admin_formsets"][0].formset.errors
    assert list(errors) == [field]
    assert KEY not in answer.content.decode()
    assert not Endpoint.objects.exists() and not EndpointGrant.across_sites.exists()


def test_a_site_stands_in_the_list_once(boss: Client, world: World) -> None:
    answer = boss.post(f"{LIST}add/", form({"site": world.acorn.pk}, {"site": world.acorn.pk}))
    assert answer.status_code == 200
    assert not EndpointGrant.across_sites.exists()


def test_who_may_only_look_sees_masks_and_changes_nothing(boss: Client, world: World) -> None:
    boss.post(f"{LIST}add/", form({"site": world.acorn.pk, "api_key": KEY}))
    row, endpoint = EndpointGrant.across_sites.get(), Endpoint.objects.get()
    viewer, page = staff("view"), f"{LIST}{endpoint.pk}/change/"
    text = viewer.get(page).content.decode()
    assert "sk-…abcd" in text and 'type="password"' not in text
    line = {"id": row.pk, "endpoint": endpoint.pk, "site": world.acorn.pk, "DELETE": "on"}
    assert viewer.post(page, form(line, initial=1)).status_code == 403
    assert EndpointGrant.across_sites.get() == row


def test_staff_who_may_change_endpoints_grant_them(boss: Client, world: World) -> None:
    boss.post(f"{LIST}add/", form())
    editor, page = staff("view", "change"), f"{LIST}{Endpoint.objects.get().pk}/change/"
    assert editor.post(page, form({"site": world.acorn.pk, "api_key": KEY})).status_code == 302
    assert EndpointGrant.across_sites.get().api_key().reveal() == KEY


def test_a_sites_manager_reads_what_the_site_may_use_and_whose_key_it_is(boss: Client, world: World) -> None:
    shared = Endpoint.objects.create(name="公用", base_url="https://a.example", model="m")
    for name, site in (("橡果专用", world.acorn), ("白桦专用", world.birch)):
        row = Endpoint.objects.create(name=name, base_url="https://a.example", model="m", is_shared=False)
        EndpointGrant.across_sites.create(site=site, endpoint=row)
    own = EndpointGrant(site=world.acorn, endpoint=shared)
    own.set_own_key(KEY, shared)
    own.save()
    manager = client_of(make_manager(world.acorn, "erin").user)
    page = reverse("admin:conversations_site_change", args=[world.acorn.pk])
    text = manager.get(page).content.decode()
    assert "公用: sk-…abcd" in text and "橡果专用: 使用接入点的密钥" in text
    assert "白桦专用" not in text
    Endpoint.objects.filter(pk=shared.pk).update(base_url="https://b.example")
    assert "为另一主机填写" in manager.get(page).content.decode()


def test_a_members_page_shows_the_masks_of_their_keys(boss: Client, world: World) -> None:
    row = Endpoint.objects.create(name="公用", base_url="https://a.example", model="m")
    key = MemberKey(site=world.acorn, membership=world.alice, endpoint=row)
    key.set_own_key(KEY, row)
    key.save()
    manager = client_of(make_manager(world.acorn, "erin").user)
    text = manager.get(reverse("admin:conversations_membership_change", args=[world.alice.pk])).content.decode()
    assert "公用: sk-…abcd" in text
    assert KEY not in text and key.api_key_encrypted not in text


def test_the_ledger_says_whose_key_was_used(boss: Client, world: World) -> None:
    _, reply = make_exchange(make_conversation(world.alice))
    for attempt, (credential, words) in enumerate(
        [("endpoint", "接入点的密钥"), ("site", "站点自己的密钥"), ("member", "成员自己的密钥")], start=1
    ):
        row = Generation.across_sites.create(
            site=world.acorn,
            message=reply,
            attempt=attempt,
            worker_id=1,
            queued_at=timezone.now(),
            credential=credential,
        )
        assert words in boss.get(reverse("admin:conversations_generation_change", args=[row.pk])).content.decode()
