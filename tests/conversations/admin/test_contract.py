"""Every address of the admin, knocked on by the staff of another site with the victim's ids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.test import Client
from django.urls import URLPattern, reverse

from conversations.admin.base import ScopedAdmin
from tests.conversations.admin.people import SECRET, Staff, client_of, make_member, make_staff
from tests.world import World

MISSING = 987_654_321
LISTS = ("site", "membership", "conversation", "generation", "voicescene", "voicesession", "internalcaller")


@pytest.fixture
def staff(world: World) -> Staff:
    staff = make_staff(world)
    # Rights follow the role: every permission row there is must not open one door.
    staff.birch_manager.user.user_permissions.set(Permission.objects.exclude(content_type__model="endpoint"))
    return staff


@pytest.fixture
def stranger(staff: Staff) -> Client:
    return client_of(staff.birch_manager.user)


def victims(staff: Staff) -> dict[type[models.Model], int]:
    """Return, for each registered model, the id of a row that Birch's staff must not reach."""
    ids = {
        "conversations.site": staff.world.acorn.pk,
        "conversations.membership": staff.world.alice.pk,
        "conversations.conversation": staff.chat.pk,
        "conversations.generation": staff.attempt.pk,
        "conversations.user": staff.world.alice.user_id,
        "conversations.sitetool": staff.tool.pk,
        "conversations.worker": staff.attempt.worker_id,
        "conversations.voicescene": staff.scene.pk,
        "conversations.voicesession": staff.room.pk,
        "conversations.internalcaller": staff.caller.pk,
        "providers.endpoint": staff.endpoint.pk,
        "conversations.document": staff.document.pk,
        "conversations.pagesource": staff.page.pk,
    }
    registered = {model._meta.label_lower: model for model in admin.site._registry}
    assert set(registered) == set(ids), "a new admin needs a victim here"
    return {model: ids[label] for label, model in registered.items()}


def addresses_of(model: type[models.Model], row_id: int) -> Iterator[str]:
    """Return every address of one model's admin, filled with this id."""
    for pattern in admin.site._registry[model].get_urls():
        assert isinstance(pattern, URLPattern)
        if pattern.name is None:  # the old addresses, which redirect to the new
            yield f"/admin/{model._meta.app_label}/{model._meta.model_name}/{row_id}/"
            continue
        arguments = dict.fromkeys(pattern.pattern.converters, row_id)
        if not arguments and pattern.pattern.regex.groups:
            arguments = dict.fromkeys(pattern.pattern.regex.groupindex, row_id) or {}
            if not arguments:
                yield reverse(f"admin:{pattern.name}", args=[row_id])
                continue
        yield reverse(f"admin:{pattern.name}", kwargs=arguments)


def everything() -> dict[str, list[object]]:
    """Return all rows of our tables, but for the log of the admin and the sign-in times."""
    return {
        model._meta.label: list(model._base_manager.order_by("pk").values_list())
        for model in apps.get_app_config("conversations").get_models()
    }


def test_every_admin_of_a_tenant_table_is_scoped() -> None:
    ours = [m for m in admin.site._registry.values() if m.model._meta.app_label == "conversations"]
    assert len(ours) == 12
    assert all(isinstance(model_admin, ScopedAdmin) for model_admin in ours)


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_stranger_learns_and_changes_nothing_at_any_address(staff: Staff, stranger: Client, method: str) -> None:
    before = everything()
    knocks = 0
    for model, row_id in victims(staff).items():
        for theirs, missing in zip(addresses_of(model, row_id), addresses_of(model, MISSING), strict=True):
            data = {"name": "x", "nickname": "x", "role": "manager", "approve_now": "1", "post": "yes"}
            answer = getattr(stranger, method)(theirs, data if method == "post" else {})
            none = getattr(stranger, method)(missing, data if method == "post" else {})
            assert SECRET not in answer.content.decode(), theirs
            assert answer.status_code == none.status_code, theirs
            assert answer.get("Location", "").replace(str(row_id), "#") == none.get("Location", "").replace(
                str(MISSING), "#"
            ), theirs
            knocks += 1
    assert knocks >= 6 * len(victims(staff))
    assert everything() == before


@pytest.mark.parametrize("page", ["change", "history"])
@pytest.mark.parametrize(
    "name",
    [
        "conversation",
        "membership",
        "site",
        "generation",
        "document",
        "pagesource",
        "voicescene",
        "voicesession",
        "internalcaller",
    ],
)
def test_another_sites_row_is_answered_like_a_missing_one(
    staff: Staff, stranger: Client, name: str, page: str
) -> None:
    theirs = {
        "conversation": staff.chat.pk,
        "membership": staff.world.alice.pk,
        "site": staff.world.acorn.pk,
        "generation": staff.attempt.pk,
        "voicescene": staff.scene.pk,
        "voicesession": staff.room.pk,
        "internalcaller": staff.caller.pk,
        "document": staff.document.pk,
        "pagesource": staff.page.pk,
    }[name]
    said = []
    for pk in (theirs, MISSING):
        answer = stranger.get(reverse(f"admin:conversations_{name}_{page}", args=[pk]), follow=True)
        messages = [str(message).replace(str(pk), "#") for message in answer.context["messages"]]
        said.append((answer.redirect_chain, messages))
    assert said[0] == said[1]
    assert said[0][0] == [("/admin/", 302)]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?q=" + SECRET,
        "?q=alice",
        "?_popup=1",
        "?_to_field=id&_popup=1",
        "?site={site}",
        "?site__id__exact={site}",
        "?membership__user__first_name__contains=" + SECRET,
        "?o=1.-2.3",
        "?all=",
        "?e=1",
        "?_facets=True",
    ],
)
def test_lists_searches_filters_and_popups_show_own_rows_alone(staff: Staff, stranger: Client, query: str) -> None:
    for name in LISTS:
        url = reverse(f"admin:conversations_{name}_changelist") + query.format(site=staff.world.acorn.pk)
        answer = stranger.get(url, follow=True)
        # What was typed into the search box is shown again; nothing else may hold the secret.
        text = answer.content.decode().replace(f'value="{SECRET}"', "").replace(f"q={SECRET}", "")
        assert SECRET not in text, url
        assert "alice" not in text.replace('value="alice"', "").replace("q=alice", "").replace("q%3Dalice", ""), (
            url
        )
        changelist = answer.context.get("cl") if answer.context else None  # a forbidden lookup has no page
        if changelist is not None:
            assert staff.world.acorn.pk not in {
                row.pk if name == "site" else row.site_id for row in changelist.result_list
            }


def test_the_same_lists_do_show_the_secret_to_acorns_manager(staff: Staff) -> None:
    client = client_of(staff.acorn_manager.user)
    for name in LISTS:
        page = client.get(reverse(f"admin:conversations_{name}_changelist"))
        assert SECRET in page.content.decode(), name


def test_autocomplete_finds_own_rows_alone(staff: Staff, stranger: Client) -> None:
    for model in admin.site._registry:
        for field in model._meta.get_fields():
            if not isinstance(field, models.ForeignKey):
                continue
            answer = stranger.get(
                reverse("admin:autocomplete"),
                {
                    "app_label": model._meta.app_label,
                    "model_name": model._meta.model_name,
                    "field_name": field.name,
                    "term": "",
                },
            )
            text = answer.content.decode()
            assert SECRET not in text and "alice" not in text, field
            assert str(staff.world.acorn.pk) not in {
                row["id"] for row in (answer.json()["results"] if answer.status_code == 200 else [])
            } or field.related_model is not type(staff.world.acorn), field


def test_actions_pass_over_rows_of_another_site(staff: Staff, stranger: Client) -> None:
    before = everything()
    for action in ("approve", "reject", "suspend", "delete_selected"):
        for across in ("0", "1"):
            stranger.post(
                reverse("admin:conversations_membership_changelist"),
                {
                    "action": action,
                    "_selected_action": [staff.world.alice.pk, staff.world.dave.pk],
                    "select_across": across if action != "suspend" else "0",
                    "post": "yes",
                },
            )
    assert everything() == before


def test_an_action_on_everything_means_everything_of_ones_own(staff: Staff, stranger: Client) -> None:
    own = make_member(staff.world.birch, "grace", status="pending")
    stranger.post(
        reverse("admin:conversations_membership_changelist"),
        {"action": "approve", "_selected_action": [staff.world.dave.pk], "select_across": "1"},
    )
    own.refresh_from_db()
    staff.world.dave.refresh_from_db()
    assert (own.status, staff.world.dave.status) == ("approved", "pending")


def test_recent_actions_forget_rows_one_may_no_longer_see(staff: Staff, stranger: Client) -> None:
    for membership, name in ((staff.world.alice, f"{SECRET}旧名"), (staff.world.carol, "白桦卡萝")):
        LogEntry.objects.create(
            user=staff.birch_manager.user,
            content_type=ContentType.objects.get_for_model(membership),
            object_id=str(membership.pk),
            object_repr=name,
            action_flag=CHANGE,
        )
    page = stranger.get(reverse("admin:index")).content.decode()
    assert SECRET not in page
    assert "白桦卡萝" in page


def test_the_history_of_another_sites_row_is_shut(staff: Staff, stranger: Client) -> None:
    LogEntry.objects.create(
        user=staff.root,
        content_type=ContentType.objects.get_for_model(staff.world.alice),
        object_id=str(staff.world.alice.pk),
        object_repr=SECRET,
        action_flag=CHANGE,
        change_message=SECRET,
    )
    answer = stranger.get(
        reverse("admin:conversations_membership_history", args=[staff.world.alice.pk]), follow=True
    )
    assert SECRET not in answer.content.decode()


def test_the_search_of_the_admin_names_no_rows(staff: Staff, stranger: Client) -> None:
    for term in (SECRET, "alice", "成员"):
        for extended in ({}, {"extended": "1"}):
            answer = stranger.get(reverse("admin:search"), {"s": term, **extended})
            assert SECRET not in answer.content.decode() and "alice" not in answer.content.decode()


def test_there_is_no_view_on_site_that_tells_existing_rows_from_missing_ones(
    staff: Staff, stranger: Client
) -> None:
    kind = ContentType.objects.get_for_model(staff.chat).pk
    answers = [stranger.get(f"/admin/r/{kind}/{pk}/") for pk in (staff.chat.pk, MISSING)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content.replace(str(staff.chat.pk).encode(), b"#") == answers[1].content.replace(
        str(MISSING).encode(), b"#"
    )


@pytest.mark.parametrize("reason", ["never a manager", "suspended", "pending", "analyst", "site off", "not staff"])
def test_whoever_manages_no_site_sees_nothing(staff: Staff, reason: str) -> None:
    manager = staff.acorn_manager
    manager.user.user_permissions.set(Permission.objects.exclude(content_type__model="endpoint"))
    if reason == "never a manager":
        manager.delete()
    elif reason in ("suspended", "pending"):
        manager.status = reason
        manager.save(update_fields=["status"])
    elif reason == "analyst":
        manager.role = reason
        manager.save(update_fields=["role"])
    elif reason == "site off":
        staff.world.acorn.is_active = False
        staff.world.acorn.save(update_fields=["is_active"])
    else:
        manager.user.is_staff = False
        manager.user.save(update_fields=["is_staff"])
    client = client_of(manager.user)
    index = client.get(reverse("admin:index"))
    assert SECRET not in index.content.decode()
    if reason != "not staff":
        assert index.context["app_list"] == []
        assert index.context["figures"] == []
    for model, row_id in victims(staff).items():
        for address in addresses_of(model, row_id):
            answer = client.get(address, follow=True)
            assert SECRET not in answer.content.decode(), address


def test_a_superuser_sees_every_row(staff: Staff) -> None:
    client = client_of(staff.root)
    for model, row_id in victims(staff).items():
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
        answer = client.get(reverse(name, args=[row_id]))
        assert answer.status_code == 200 and SECRET in answer.content.decode(), name
