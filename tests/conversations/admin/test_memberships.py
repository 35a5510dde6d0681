"""Deciding about members in the admin."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from conversations.models import Membership, User
from tests.conversations.admin.people import Staff, client_of, make_staff
from tests.world import World, make_member

LIST = "/admin/conversations/membership/"
BUTTON = "conversations_membership_"


@pytest.fixture
def staff(world: World) -> Staff:
    return make_staff(world)


@pytest.fixture
def manager(staff: Staff) -> Client:
    return client_of(staff.acorn_manager.user)


def act(client: Client, action: str, *members: Membership) -> list[str]:
    """Return the messages that the action left."""
    answer = client.post(LIST, {"action": action, "_selected_action": [m.pk for m in members]}, follow=True)
    return [str(message) for message in answer.context["messages"]]


def change(client: Client, member: Membership, **data: str) -> int:
    """Return the status of a change sent for this member."""
    url = reverse("admin:conversations_membership_change", args=[member.pk])
    return client.post(url, {"nickname": member.nickname, "role": member.role, **data}).status_code


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        ("pending", "approve", "approved"),
        ("rejected", "approve", "approved"),
        ("suspended", "approve", "approved"),
        ("pending", "reject", "rejected"),
        ("approved", "suspend", "suspended"),
        ("approved", "approve", "approved"),
        ("approved", "reject", "approved"),
        ("suspended", "reject", "suspended"),
        ("pending", "suspend", "pending"),
        ("rejected", "suspend", "rejected"),
    ],
)
def test_a_decision_changes_only_members_in_the_right_state(
    staff: Staff, manager: Client, before: str, action: str, after: str
) -> None:
    member = make_member(staff.world.acorn, "heidi", status=before)
    act(manager, action, member)
    member.refresh_from_db()
    assert member.status == after
    decided = before != after
    assert member.decided_by == (staff.acorn_manager.user if decided else None)
    assert (member.decided_at is not None) == decided
    assert LogEntry.objects.filter(object_id=str(member.pk)).count() == int(decided)


def test_the_manager_is_told_how_many_changed_and_how_many_did_not(staff: Staff, manager: Client) -> None:
    said = act(manager, "approve", staff.world.dave, staff.world.bob)
    assert said == ["1 名成员：已批准。", "1 名成员保持不变：其状态不适用此操作，或就是您本人。"]


def test_an_approved_member_may_chat_at_once(staff: Staff, manager: Client) -> None:
    act(manager, "approve", staff.world.dave)
    assert Membership.across_sites.select_related("site", "user").get(pk=staff.world.dave.pk).is_approved


def test_nobody_decides_about_themselves(staff: Staff, manager: Client) -> None:
    act(manager, "suspend", staff.acorn_manager)
    assert (
        change(
            manager,
            staff.acorn_manager,
            conversations_membership_suspend_now="1",
            role="member",
            nickname="新名字",
        )
        == 302
    )
    staff.acorn_manager.refresh_from_db()
    assert (staff.acorn_manager.status, staff.acorn_manager.role) == ("approved", "manager")
    assert staff.acorn_manager.nickname == "新名字"


def test_the_buttons_on_a_members_page_decide(staff: Staff, manager: Client) -> None:
    url = reverse("admin:conversations_membership_change", args=[staff.world.dave.pk])
    page = manager.get(url).content.decode()
    shown = [name for name in ("approve_now", "reject_now", "suspend_now") if f'name="{BUTTON}{name}"' in page]
    assert shown == ["approve_now", "reject_now"]
    assert change(manager, staff.world.dave, conversations_membership_approve_now="1") == 302
    staff.world.dave.refresh_from_db()
    assert (staff.world.dave.status, staff.world.dave.decided_by) == ("approved", staff.acorn_manager.user)


def test_a_button_that_is_not_shown_does_nothing(staff: Staff, manager: Client) -> None:
    assert change(manager, staff.world.bob, conversations_membership_reject_now="1") == 302
    staff.world.bob.refresh_from_db()
    assert staff.world.bob.status == "approved"


def test_a_manager_changes_role_and_nickname_and_nothing_else(staff: Staff, manager: Client) -> None:
    assert (
        change(
            manager,
            staff.world.bob,
            role="analyst",
            nickname="小鲍",
            status="suspended",
            site=str(staff.world.birch.pk),
            user=str(staff.world.carol.user_id),
            decided_by=str(staff.root.pk),
        )
        == 302
    )
    bob = Membership.across_sites.get(pk=staff.world.bob.pk)
    assert (bob.role, bob.nickname, bob.status) == ("analyst", "小鲍", "approved")
    assert (bob.site_id, bob.user_id, bob.decided_by) == (staff.world.acorn.pk, staff.world.bob.user_id, None)


def test_a_manager_neither_adds_nor_deletes_members(staff: Staff, manager: Client) -> None:
    assert manager.get(LIST + "add/").status_code == 403
    data = {"site": staff.world.acorn.pk, "user": staff.world.carol.user_id, "role": "manager", "nickname": ""}
    assert manager.post(LIST + "add/", data).status_code == 403
    assert manager.post(LIST + f"{staff.world.bob.pk}/delete/", {"post": "yes"}).status_code == 403
    assert "delete_selected" not in manager.get(LIST).content.decode()
    assert Membership.across_sites.filter(site=staff.world.acorn).count() == 4


def test_whom_a_superuser_adds_is_approved_by_them(staff: Staff) -> None:
    person = User.objects.create(username="ivan")
    data = {"site": staff.world.acorn.pk, "user": person.pk, "role": "member", "nickname": "伊万"}
    assert client_of(staff.root).post(LIST + "add/", data).status_code == 302
    ivan = Membership.across_sites.get(user=person)
    assert (ivan.status, ivan.decided_by, ivan.decided_at is not None) == ("approved", staff.root, True)


def test_a_member_page_shows_no_email_and_no_other_site(staff: Staff, manager: Client) -> None:
    User.objects.filter(pk=staff.world.bob.user_id).update(email="bob@private.example")
    make = Membership.across_sites.create
    make(site=staff.world.birch, user=staff.world.bob.user, nickname="另一处的绰号", status="approved")
    for url in (LIST, LIST + "?q=bob", f"{LIST}{staff.world.bob.pk}/change/"):
        page = manager.get(url).content.decode()
        assert "bob@private.example" not in page
        assert "另一处的绰号" not in page and "白桦" not in page


def test_the_sidebar_counts_those_who_wait_in_ones_own_site(staff: Staff, manager: Client) -> None:
    make_member(staff.world.birch, "judy", status="pending")
    items = manager.get("/admin/").context["sidebar_navigation"][0]["items"]
    assert [item["badge"] for item in items if "badge" in item] == ["1"]
    assert [figure.count for figure in manager.get("/admin/").context["figures"]] == [1, 1, 1, 0]


def test_the_list_costs_the_same_number_of_queries_for_any_number_of_rows(staff: Staff, manager: Client) -> None:
    with CaptureQueriesContext(connection) as few:
        manager.get(LIST)
    for number in range(3):
        make_member(staff.world.acorn, f"extra{number}")
    with CaptureQueriesContext(connection) as many:
        manager.get(LIST)
    assert len(many) == len(few)
