"""Decisions about members, without the admin."""

from __future__ import annotations

from conversations.models import Membership
from conversations.tenancy.members import decide_memberships
from tests.world import World


def test_a_decision_reaches_only_members_of_the_site_it_is_made_for(world: World) -> None:
    ids = [world.alice.pk, world.bob.pk, world.carol.pk, world.dave.pk]
    changed = decide_memberships(world.acorn.pk, ids, decision="suspend", decided_by=world.alice.user)
    assert changed == [world.alice.pk, world.bob.pk]
    assert dict(Membership.across_sites.values_list("pk", "status")) == {
        world.alice.pk: "suspended",
        world.bob.pk: "suspended",
        world.carol.pk: "approved",
        world.dave.pk: "pending",
    }


def test_the_second_of_two_decisions_changes_nothing(world: World) -> None:
    first = decide_memberships(world.acorn.pk, [world.dave.pk], decision="approve", decided_by=world.alice.user)
    second = decide_memberships(world.acorn.pk, [world.dave.pk], decision="reject", decided_by=world.bob.user)
    world.dave.refresh_from_db()
    assert (first, second) == ([world.dave.pk], [])
    assert (world.dave.status, world.dave.decided_by) == ("approved", world.alice.user)
