"""What the first page says at a glance: who waits, and how the last day went."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from conversations.admin.base import is_superuser, managed_site_ids
from conversations.admin.endpoints import is_standing_in
from conversations.models import Conversation, Generation, Membership


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its name and where to look further."""

    label: Any
    count: int
    url: str
    is_urgent: bool = False


def _visible(request: HttpRequest) -> Q:
    return Q() if is_superuser(request) else Q(site_id__in=managed_site_ids(request))


def figures(request: HttpRequest) -> list[Figure]:
    """Return the numbers for this staff member's sites; none when they manage no site."""
    if not (is_superuser(request) or managed_site_ids(request)):
        return []
    since = timezone.now() - timedelta(hours=24)
    waiting = Membership.across_sites.filter(_visible(request), status=Membership.Status.PENDING).count()
    active = Conversation.across_sites.filter(
        _visible(request), last_message_at__gte=since, deleted_at__isnull=True
    ).count()
    attempts = Generation.across_sites.filter(_visible(request), queued_at__gte=since).aggregate(
        all=Count("pk"), failed=Count("pk", filter=Q(status__in=["failed", "interrupted"]))
    )
    ledger = reverse("admin:conversations_generation_changelist")
    return [
        Figure(
            _("members waiting for approval"),
            waiting,
            reverse("admin:conversations_membership_changelist") + "?status__exact=pending",
            is_urgent=waiting > 0,
        ),
        Figure(
            _("conversations active in 24 hours"), active, reverse("admin:conversations_conversation_changelist")
        ),
        Figure(_("attempts at replies in 24 hours"), attempts["all"], ledger),
        Figure(
            _("failed or interrupted in 24 hours"),
            attempts["failed"],
            ledger + "?status=failed",
            is_urgent=attempts["failed"] > 0,
        ),
    ]


def add_figures(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context of the first page with the figures in it."""
    may_see = request.user.has_perm("providers.view_endpoint") or is_superuser(request)
    return {**context, "figures": figures(request), "is_standing_in": may_see and is_standing_in()}
