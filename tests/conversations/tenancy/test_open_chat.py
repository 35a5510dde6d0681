"""The door of the hot path lets in whom the three plain doors let in, and refuses with their words."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from conversations.db import tenant
from conversations.errors import ChatError
from conversations.models import Login, Membership, Site, User
from conversations.tenancy.access import access_chat_to_write, open_chat
from conversations.tenancy.resolve import approved_member_for
from conversations.tenancy.tokens import Claims, read_access
from tests.world import World, make_conversation, make_tokens

STATES: dict[str, Callable[[Membership], Any]] = {
    "as is": lambda member: None,
    "pending": lambda member: Membership.across_sites.filter(pk=member.pk).update(status="pending"),
    "rejected": lambda member: Membership.across_sites.filter(pk=member.pk).update(status="rejected"),
    "suspended": lambda member: Membership.across_sites.filter(pk=member.pk).update(status="suspended"),
    "closed account": lambda member: User.objects.filter(pk=member.user_id).update(is_active=False),
    "closed site": lambda member: Site.objects.filter(pk=member.site_id).update(is_active=False),
    "signed out": lambda member: Login.across_sites.filter(membership=member).update(ended_at=timezone.now()),
}


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a door answers: the chat's id, or the code of its refusal."""
    try:
        answer = call()
    except ChatError as error:
        return error.code
    return getattr(answer, "chat_id", None) or answer.pk


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("whose", ["own", "deleted", "neighbour's", "other site's", "missing", "beyond bigint"])
def test_both_doors_answer_alike(world: World, state: str, whose: str) -> None:
    chat_id = {
        "own": lambda: make_conversation(world.alice, title="标题").pk,
        "deleted": lambda: make_conversation(world.alice, deleted_at=timezone.now()).pk,
        "neighbour's": lambda: make_conversation(world.bob).pk,
        "other site's": lambda: make_conversation(world.carol).pk,
        "missing": lambda: 10**15,
        "beyond bigint": lambda: 2**64,
    }[whose]()
    claims = read_access(make_tokens(world.alice).access)
    STATES[state](world.alice)
    with tenant(claims.site_id):
        plain = outcome(lambda: access_chat_to_write(approved_member_for(claims), chat_id, lock=True))
        quick = outcome(lambda: open_chat(claims, chat_id))
    assert quick == plain
    assert (quick == chat_id) == (state == "as is" and whose == "own")


def test_claims_that_mix_people_open_nothing(world: World) -> None:
    chat = make_conversation(world.alice)
    alice, carol = (read_access(make_tokens(member).access) for member in (world.alice, world.carol))
    mixed = [
        Claims(alice.membership_id, carol.site_id, alice.login_id, "x"),
        Claims(carol.membership_id, alice.site_id, carol.login_id, "x"),
        Claims(alice.membership_id, alice.site_id, carol.login_id, "x"),
        Claims(alice.membership_id, alice.site_id, uuid.uuid4(), "x"),
    ]
    for claims in mixed:
        with tenant(claims.site_id):
            assert outcome(lambda claims=claims: open_chat(claims, chat.pk)) == "token_invalid"
