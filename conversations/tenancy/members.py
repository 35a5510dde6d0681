"""Deciding about members: the only code that changes a membership's status after it was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from conversations.db import database_now, tenant
from conversations.models import Membership, User

Decision = Literal["approve", "reject", "suspend"]
Status = Membership.Status

OUTCOMES: dict[Decision, tuple[Status, frozenset[Status]]] = {
    "approve": (Status.APPROVED, frozenset({Status.PENDING, Status.REJECTED, Status.SUSPENDED})),
    "reject": (Status.REJECTED, frozenset({Status.PENDING})),
    "suspend": (Status.SUSPENDED, frozenset({Status.APPROVED})),
}
"""What each decision makes of a membership, and of which: whoever was rejected cannot be suspended."""


def decide_memberships(
    site_id: int, membership_ids: Iterable[int], *, decision: Decision, decided_by: User
) -> list[int]:
    """Return the ids that the decision changed; the others were in no state for it, or of another site."""
    status, before = OUTCOMES[decision]
    with tenant(site_id):
        changed = list(
            Membership.objects.for_site(site_id)
            .filter(pk__in=list(membership_ids), status__in=before)
            .order_by("pk")
            .select_for_update()
            .values_list("pk", flat=True)
        )
        Membership.objects.for_site(site_id).filter(pk__in=changed).update(
            status=status, decided_by=decided_by, decided_at=database_now()
        )
    return changed
