"""Tools of a site in the admin: checked field by field, and their secret only goes in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from conversations.models import Generation, SiteTool
from providers.fields import secret_of
from tests.conversations.admin.people import client_of, make_manager
from tests.conversations.admin.test_sites import save
from tests.world import World, make_conversation, make_exchange, make_message, make_worker

SECRET = "tool-secret-0123456789"


@pytest.fixture
def manager(world: World) -> Client:
    return client_of(make_manager(world.acorn, "erin").user)


def filled(world: World, **changes: Any) -> dict[str, Any]:
    """Return the form of a tool as a browser would send it."""
    return {
        "site": str(world.acorn.pk),
        "name": "get_order",
        "description": "查询订单的状态",
        "parameters": json.dumps({"type": "object", "properties": {"order_id": {"type": "string"}}}),
        "method": "GET",
        "url": "https://api.example.com/orders/${args.order_id}",
        "query": "{}",
        "headers": '{"Authorization": "Bearer ${secret}"}',
        "body": "",
        "timeout_seconds": "5",
        "is_active": "on",
        "secret": "",
        **changes,
    }


def errors_of(answer: Any) -> dict[str, list[str]]:
    """Return what the form says is wrong, by field; none when it was stored."""
    if answer.status_code == 302:
        return {}
    return {name: list(errors) for name, errors in answer.context["adminform"].form.errors.items()}


def test_a_manager_adds_a_tool_and_its_secret_never_comes_back(world: World, manager: Client) -> None:
    answer = manager.post(reverse("admin:conversations_sitetool_add"), filled(world, secret=SECRET))
    assert errors_of(answer) == {}
    row = SiteTool.across_sites.get()
    assert (row.site_id, row.name, row.headers) == (
        world.acorn.pk,
        "get_order",
        {"Authorization": "Bearer ${secret}"},
    )
    assert secret_of(row, "secret").reveal() == SECRET and SECRET not in row.secret_encrypted
    page = manager.get(reverse("admin:conversations_sitetool_change", args=[row.pk])).content.decode()
    assert SECRET not in page and row.secret_mask in page and "查询订单的状态" in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "查订单"),
        ("name", "current_time"),
        ("name", "a b"),
        ("parameters", '{"type": "array"}'),
        ("parameters", '{"type": "object", "properties": {"a": {"$ref": "http://x"}}}'),
        ("parameters", "{坏"),
        ("url", "ftp://api.example.com/"),
        ("url", "https://${args.host}/"),
        ("url", "https://api.example.com/${user.id}"),
        ("headers", '{"Host": "x"}'),
        ("query", '{"a": 7}'),
        ("body", '{"a": "${nobody}"}'),
        ("timeout_seconds", "11"),
        ("timeout_seconds", "0"),
        ("secret", "密"),
    ],
)
def test_what_cannot_be_used_is_refused_at_its_field(
    world: World, manager: Client, field: str, value: str
) -> None:
    changes = {"method": "POST"} if field == "body" else {}
    answer = manager.post(reverse("admin:conversations_sitetool_add"), filled(world, **{field: value}, **changes))
    assert set(errors_of(answer)) in ({field}, {"url"} if field == "body" else {field})
    assert not SiteTool.across_sites.exists()


def test_a_name_is_taken_once_in_a_site_and_free_in_another(world: World, manager: Client) -> None:
    assert errors_of(manager.post(reverse("admin:conversations_sitetool_add"), filled(world))) == {}
    assert errors_of(manager.post(reverse("admin:conversations_sitetool_add"), filled(world))) != {}
    other = client_of(make_manager(world.birch, "frank").user)
    add = reverse("admin:conversations_sitetool_add")
    assert errors_of(other.post(add, filled(world, site=str(world.birch.pk)))) == {}
    assert "site" in errors_of(other.post(add, filled(world, name="another")))
    assert SiteTool.across_sites.count() == 2


def test_a_secret_is_not_sent_to_another_host(world: World, manager: Client) -> None:
    manager.post(reverse("admin:conversations_sitetool_add"), filled(world, secret=SECRET))
    row = SiteTool.across_sites.get()
    change = reverse("admin:conversations_sitetool_change", args=[row.pk])
    moved = filled(world, url="https://evil.example/")
    assert set(errors_of(manager.post(change, moved))) == {"secret"}
    assert errors_of(manager.post(change, filled(world, url="https://api.example.com/v2"))) == {}
    row.refresh_from_db()
    assert secret_of(row, "secret").reveal() == SECRET
    assert errors_of(manager.post(change, {**moved, "clear_secret": "on"})) == {}
    row.refresh_from_db()
    assert not secret_of(row, "secret")


def test_only_tools_that_exist_can_be_switched_on(world: World, manager: Client) -> None:
    SiteTool.across_sites.create(site=world.birch, name="theirs", description="x", url="https://x.example/")
    SiteTool.across_sites.create(site=world.acorn, name="ours", description="x", url="https://x.example/")
    assert set(save(manager, world.acorn, setting_tools=["theirs"])) == {"setting_tools"}
    assert save(manager, world.acorn, setting_tools=["ours", "current_time"]) == {}
    assert world.acorn.settings == {"tools": ["ours", "current_time"]}


def test_the_ledger_shows_what_tools_a_call_asked_for(world: World, manager: Client) -> None:
    _question, reply = make_exchange(make_conversation(world.alice))
    runs = [
        {"name": "current_time", "ms": 2, "outcome": "done", "problem": ""},
        {"name": "get_order", "ms": 5003, "outcome": "failed", "problem": "timed_out"},
    ]
    row = Generation.across_sites.create(
        site=world.acorn, message=reply, worker_id=make_worker().pk, queued_at=timezone.now(), tools=runs
    )
    page = manager.get(reverse("admin:conversations_generation_change", args=[row.pk])).content.decode()
    assert "current_time done 2 ms; get_order timed_out 5003 ms" in page


def test_the_transcript_shows_what_tools_did(world: World, manager: Client) -> None:
    chat = make_conversation(world.alice)
    _question, reply = make_exchange(chat)
    said = {"name": "get_order", "arguments": '{"order_id":"甲7"}', "at": [0, 0], "outcome": "failed", "ms": 41}
    make_message(
        chat,
        json.dumps({**said, "problem": "timed_out", "result": "没有<b>完成"}, ensure_ascii=False),
        role="tool",
        reply_to=reply,
        status="failed",
    )
    page = manager.get(reverse("admin:conversations_conversation_change", args=[chat.pk])).content.decode()
    assert "get_order" in page and "甲7" in page and "41 ms" in page and "timed_out" in page
    assert "没有&lt;b&gt;完成" in page
