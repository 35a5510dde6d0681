"""Endpoints in the admin, with who uses them: the workers' revision, the banner, removal, revisions."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from conversations.models import User, Worker
from providers.models import Endpoint, RegistryRevision
from tests.conversations.admin.people import client_of
from tests.world import make_worker

pytestmark = pytest.mark.django_db
LIST = "/admin/providers/endpoint/"
BANNER = "尚未接入模型"


@pytest.fixture
def boss() -> Client:
    """A superuser's browser."""
    return client_of(User.objects.create(username="老板", is_staff=True, is_superuser=True))


def make(name: str = "主力", **fields: Any) -> Endpoint:
    return Endpoint.objects.create(name=name, base_url="https://api.example.com", model="m", **fields)


def revision() -> int:
    return RegistryRevision.objects.get().revision


def said(answer: Any) -> str:
    return " ".join(str(message) for message in answer.context["messages"])


def test_the_list_says_how_many_workers_follow(boss: Client) -> None:
    make()
    for number in range(3):
        worker = make_worker(host=f"chat-{number}")
        Worker.objects.filter(pk=worker.pk).update(registry_revision=revision() - (number == 0))
    assert f"2/3 个工作进程已使用版本 {revision()}" in boss.get(LIST).content.decode()


def test_a_banner_says_that_the_stand_in_answers(boss: Client, settings: Any) -> None:
    settings.LLM_BASE_URL = ""
    for page in ("/admin/", LIST):
        assert BANNER in boss.get(page).content.decode()
    settings.STAND_IN = False
    assert BANNER not in boss.get(LIST).content.decode()
    settings.STAND_IN = True
    make(is_active=True)
    for page in ("/admin/", LIST):
        assert BANNER not in boss.get(page).content.decode()


@pytest.mark.parametrize("way", ["page", "action"])
def test_an_endpoint_in_use_is_not_deleted(boss: Client, way: str) -> None:
    row = make()
    worker = make_worker()
    Worker.objects.filter(pk=worker.pk).update(live_endpoints={str(row.pk): 2})
    url = f"{LIST}{row.pk}/delete/" if way == "page" else LIST
    form = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
    answer = boss.post(url, form)
    assert "2 条进行中的回复" in answer.content.decode()
    assert Endpoint.objects.filter(pk=row.pk, is_active=True).exists()
    Worker.objects.filter(pk=worker.pk).update(live_endpoints={})
    assert boss.post(url, form).status_code == 302
    assert not Endpoint.objects.exists()


def test_an_endpoint_in_use_can_be_told_to_drain(boss: Client) -> None:
    used, idle = make("用着"), make("闲着")
    worker = make_worker()
    Worker.objects.filter(pk=worker.pk).update(live_endpoints={str(used.pk): 2})
    chosen = {"action": "drain", "_selected_action": [str(used.pk), str(idle.pk)]}
    assert "用着 不再接受新的回复" in said(boss.post(LIST, chosen, follow=True))
    assert list(Endpoint.objects.values_list("name", "is_active", "is_draining")) == [("用着", False, True)]


def test_an_earlier_revision_is_brought_back(boss: Client) -> None:
    row = make()
    then = revision()
    Endpoint.objects.filter(pk=row.pk).update(weight=9)
    assert f'<option value="{then}">' in boss.get(LIST).content.decode()
    assert str(then) in said(boss.post(f"{LIST}restore/", {"revision": str(then)}, follow=True))
    row.refresh_from_db()
    assert row.weight == 1
    for gone in ("", "x", "999999", "9" * 40):
        assert "不再保留" in said(boss.post(f"{LIST}restore/", {"revision": gone}, follow=True))
    assert boss.get(f"{LIST}restore/").status_code == 405


def test_who_may_not_change_everything_brings_nothing_back(boss: Client) -> None:
    from django.contrib.auth.models import Permission

    row = make()
    then = revision()
    Endpoint.objects.filter(pk=row.pk).update(weight=9)
    editor = User.objects.create(username="编辑", is_staff=True)
    editor.user_permissions.set(Permission.objects.filter(codename__in=["view_endpoint", "change_endpoint"]))
    client = client_of(editor)
    assert "restore-revision" not in client.get(LIST).content.decode()
    assert client.post(f"{LIST}restore/", {"revision": str(then)}).status_code == 403
    row.refresh_from_db()
    assert row.weight == 9


def test_a_superuser_gives_the_permissions_on_endpoints_and_no_others(boss: Client) -> None:
    page = boss.get(f"/admin/conversations/user/{User.objects.get().pk}/change/")
    offered = page.context["adminform"].form.fields["user_permissions"].queryset
    assert sorted(offered.values_list("codename", flat=True)) == [
        "add_endpoint",
        "change_endpoint",
        "delete_endpoint",
        "view_endpoint",
    ]
