"""Users, workers and the ledger: what superusers see, and what they cannot do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from conversations.models import User, Worker
from tests.conversations.admin.people import Staff, client_of, make_staff
from tests.world import World, make_worker


@pytest.fixture
def staff(world: World) -> Staff:
    return make_staff(world)


@pytest.fixture
def root(staff: Staff) -> Client:
    return client_of(staff.root)


def test_groups_are_not_offered_because_rights_follow_the_role() -> None:
    assert not admin.site.is_registered(Group)


def test_a_superuser_makes_an_account_that_can_sign_in(root: Client) -> None:
    data = {"username": "kim", "password1": "橡果-correct-horse", "password2": "橡果-correct-horse"}
    assert root.post(reverse("admin:conversations_user_add"), data).status_code == 302
    kim = User.objects.get(username="kim")
    assert kim.check_password("橡果-correct-horse")
    assert (kim.is_staff, kim.is_superuser) == (False, False)


def test_a_superuser_changes_a_password(staff: Staff, root: Client) -> None:
    url = reverse("admin:auth_user_password_change", args=[staff.world.bob.user_id])
    page = root.get(url)
    assert page.status_code == 200
    data = {"password1": "白桦-battery-staple", "password2": "白桦-battery-staple", "usable_password": "true"}
    assert root.post(url, data).status_code == 302
    assert User.objects.get(pk=staff.world.bob.user_id).check_password("白桦-battery-staple")


def test_no_page_of_a_user_holds_the_password_hash(staff: Staff, root: Client) -> None:
    user = staff.world.bob.user
    for url in ("/admin/conversations/user/", f"/admin/conversations/user/{user.pk}/change/"):
        assert user.password not in root.get(url).content.decode()


def test_accounts_and_sites_are_switched_off_rather_than_deleted(staff: Staff, root: Client) -> None:
    for name, pk in (("user", staff.world.bob.user_id), ("site", staff.world.acorn.pk), ("membership", 1)):
        url = reverse(f"admin:conversations_{name}_delete", args=[pk])
        assert root.post(url, {"post": "yes"}).status_code == 403


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "运行中"),
        ({"is_draining": True}, "正在收尾"),
        ({"is_dead": True}, "已失效"),
        ({"seen_at": timezone.now() - timedelta(hours=1)}, "失联"),
    ],
)
def test_a_worker_is_shown_as_it_is(root: Client, fields: dict[str, object], word: str) -> None:
    Worker.objects.all().delete()
    worker = make_worker(host="chat-01", pid=42)
    Worker.objects.filter(pk=worker.pk).update(live_replies=7, registry_revision=3, **fields)
    page = root.get("/admin/conversations/worker/").content.decode()
    assert word in page and "chat-01" in page and f"pid 42 · #{worker.pk}" in page
    assert root.post(f"/admin/conversations/worker/{worker.pk}/change/", {"is_dead": "on"}).status_code == 403


def test_the_ledger_leads_to_the_reply_in_its_transcript(staff: Staff, root: Client) -> None:
    page = root.get(reverse("admin:conversations_generation_change", args=[staff.attempt.pk])).content.decode()
    link = f"/admin/conversations/conversation/{staff.chat.pk}/change/?message={staff.reply.pk}#m-{staff.reply.pk}"
    assert link in page


def test_signing_in_at_the_admin_leads_to_its_first_page(staff: Staff) -> None:
    user = staff.acorn_manager.user
    user.set_password("橡果-correct-horse")
    user.save()
    client = Client()
    answer = client.post("/admin/login/", {"username": user.username, "password": "橡果-correct-horse"})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


def test_guessing_passwords_at_the_admin_ends_after_some_tries(staff: Staff, settings: Settings) -> None:
    settings.THROTTLE, settings.THROTTLE_SIGN_INS_PER_MINUTE = True, 3
    user = staff.acorn_manager.user
    user.set_password("橡果-correct-horse")
    user.save()
    client = Client()
    for _ in range(3):
        client.post("/admin/login/", {"username": user.username, "password": "猜一个"})
    answer = client.post("/admin/login/", {"username": user.username, "password": "橡果-correct-horse"})
    assert answer.status_code == 200
    assert "尝试次数过多" in answer.content.decode()


def test_the_admin_speaks_the_language_that_was_chosen(root: Client) -> None:
    assert "名成员待审批" in root.get("/admin/").content.decode()
    root.post("/i18n/setlang/", {"language": "en", "next": "/admin/"})
    assert "members waiting for approval" in root.get("/admin/").content.decode()
