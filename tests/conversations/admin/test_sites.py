"""A site's settings in the admin."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from conversations.admin.sites import PREFIX, SiteForm
from conversations.models import Site, User
from conversations.models.site_settings import DEFAULTS
from tests.conversations.admin.people import client_of, make_manager
from tests.world import World


@pytest.fixture
def manager(world: World) -> Client:
    return client_of(make_manager(world.acorn, "erin").user)


def filled(**changes: Any) -> dict[str, Any]:
    """Return the form of a site as a browser would send it."""
    return {
        "name": "橡果",
        "locale": "zh-hans",
        "setting_system_prompt": "",
        "setting_history_messages": "20",
        "setting_context_reuse_seconds": json.dumps(DEFAULTS["context_reuse_seconds"]),
        "setting_retention_days": "0",
        "setting_voice_max_minutes": "60",
        "setting_stand_in": "on",
        "setting_midstream_failover": "off",
        "setting_knowledge": "off",
        "setting_tool_rounds": "5",
        "setting_voice_apology": DEFAULTS["voice_apology"],
        **changes,
    }


def save(client: Client, site: Site, **changes: Any) -> dict[str, list[str]]:
    """Return the errors of the form, by field; none when it was stored."""
    answer = client.post(reverse("admin:conversations_site_change", args=[site.pk]), filled(**changes))
    site.refresh_from_db()
    if answer.status_code == 302:
        return {}
    return {name: list(errors) for name, errors in answer.context["adminform"].form.errors.items()}


def test_each_setting_has_a_field_that_shows_its_default() -> None:
    form = SiteForm(instance=Site())
    assert {name.removeprefix(PREFIX) for name in form.fields if name.startswith(PREFIX)} == set(DEFAULTS)
    assert {key: form.fields[PREFIX + key].initial for key in DEFAULTS} == dict(DEFAULTS)


def test_only_what_differs_from_the_default_is_stored(world: World, manager: Client) -> None:
    assert save(manager, world.acorn) == {}
    assert world.acorn.settings == {}
    assert save(manager, world.acorn, setting_system_prompt="你是橡果小站的客服。\n  请用中文回答。") == {}
    assert world.acorn.settings == {"system_prompt": "你是橡果小站的客服。\n  请用中文回答。"}


def test_every_setting_can_be_changed_and_is_shown_again(world: World, manager: Client) -> None:
    changes = {
        "setting_history_messages": "7",
        "setting_context_reuse_seconds": '{"task": 0, "自定义": 60, "general": 0}',
        "setting_retention_days": "30",
        "setting_voice_max_minutes": "45",
        "setting_voice_apology": "稍等一下。",
        "setting_ascii_stream": "on",
        "setting_stand_in": "",
        "setting_midstream_failover": "prefix",
        "setting_knowledge": "before",
        "setting_tools": ["current_time", "page_text"],
        "setting_tool_rounds": "3",
    }
    assert save(manager, world.acorn, **changes) == {}
    assert world.acorn.settings == {
        "history_messages": 7,
        "context_reuse_seconds": {"task": 0, "自定义": 60, "general": 0},
        "retention_days": 30,
        "voice_max_minutes": 45,
        "voice_apology": "稍等一下。",
        "ascii_stream": True,
        "stand_in": False,
        "midstream_failover": "prefix",
        "knowledge": "before",
        "tools": ["current_time", "page_text"],
        "tool_rounds": 3,
    }
    page = manager.get(reverse("admin:conversations_site_change", args=[world.acorn.pk])).content.decode()
    assert "自定义" in page and 'value="7"' in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("setting_history_messages", "201"),
        ("setting_history_messages", "-1"),
        ("setting_history_messages", "many"),
        ("setting_history_messages", ""),
        ("setting_retention_days", "40000"),
        ("setting_voice_max_minutes", "0"),
        ("setting_context_reuse_seconds", "{not json"),
        ("setting_context_reuse_seconds", "[1]"),
        ("setting_context_reuse_seconds", '{"task": -2}'),
        ("setting_context_reuse_seconds", '{"task": "永远"}'),
        ("setting_system_prompt", "长" * 32_769),
        ("name", ""),
        ("locale", "fr"),
    ],
)
def test_what_is_not_understood_is_said_at_its_own_field_and_changes_nothing(
    world: World, manager: Client, field: str, value: str
) -> None:
    errors = save(manager, world.acorn, **{field: value})
    assert list(errors) == [field]
    assert all(re.search("[\u4e00-\u9fff]", error) for error in errors[field])
    assert (world.acorn.name, world.acorn.settings) == ("橡果", {})


def test_a_manager_changes_neither_the_slug_nor_whether_the_site_is_on(world: World, manager: Client) -> None:
    assert save(manager, world.acorn, slug="taken-over", name="新橡果") == {}
    assert (world.acorn.slug, world.acorn.is_active, world.acorn.name) == ("acorn", True, "新橡果")


def test_a_manager_adds_no_site_and_deletes_none(world: World, manager: Client) -> None:
    add = reverse("admin:conversations_site_add")
    assert manager.get(add).status_code == 403
    assert manager.post(add, filled(slug="third")).status_code == 403
    delete = reverse("admin:conversations_site_delete", args=[world.acorn.pk])
    assert manager.post(delete, {"post": "yes"}).status_code == 403
    assert Site.objects.count() == 2


def test_a_superuser_adds_a_site_and_switches_one_off(world: World) -> None:
    root = client_of(User.objects.create(username="root", is_staff=True, is_superuser=True))
    answer = root.post(
        reverse("admin:conversations_site_add"), filled(slug="third", name="第三站", is_active="on")
    )
    assert answer.status_code == 302
    assert Site.objects.get(slug="third").settings == {}
    assert save(root, world.acorn, slug="acorn") == {}
    assert not world.acorn.is_active


@pytest.mark.parametrize("slug", ["Upper", "有中文", "-x", "a b", "", "birch", "x" * 65])
def test_a_slug_that_clients_could_not_send_is_refused(world: World, slug: str) -> None:
    root = client_of(User.objects.create(username="root", is_staff=True, is_superuser=True))
    assert list(save(root, world.acorn, slug=slug, is_active="on")) == ["slug"]
    assert world.acorn.slug == "acorn"
