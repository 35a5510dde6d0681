"""Members of a site: who waits, who may chat, who decided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from unfold.dataclasses import UnfoldAction
from unfold.decorators import action, display

from conversations.admin.base import ScopedAdmin, SiteFilter, chip, is_superuser
from conversations.admin.grants import keys_of_member
from conversations.db import database_now, tenant
from conversations.models import Membership, User
from conversations.tenancy.members import OUTCOMES, Decision, decide_memberships

STATUS_COLOURS = {"pending": "warning", "approved": "success", "rejected": "danger", "suspended": "danger"}
ROLE_COLOURS = {"manager": "primary", "analyst": "info", "member": ""}


@admin.register(Membership)
class MembershipAdmin(ScopedAdmin):
    """A manager decides about the members of their site, but not about themselves."""

    manager_may = frozenset({"view", "change"})
    superuser_may = frozenset({"view", "add", "change"})
    list_display = ("header", "site", "role_label", "status_label", "decided_at", "decider", "created_at")
    list_display_links = ("header",)
    list_filter = ("status", "role", SiteFilter)
    list_select_related = ("user", "site", "decided_by")
    search_fields = ("nickname", "user__username", "user__first_name", "user__last_name")
    search_help_text = _("Nickname or user name")
    ordering = ("-created_at", "-pk")
    actions = ("approve", "reject", "suspend")
    actions_submit_line = ("approve_now", "reject_now", "suspend_now")
    autocomplete_fields = ("user",)
    readonly_fields = (
        "person",
        "site_name",
        "own_keys",
        "status_label",
        "decider",
        "decided_at",
        "created_at",
    )

    def get_fieldsets(self, request: HttpRequest, obj: Membership | None = None) -> Sequence[Any]:
        """Return the fields; whose membership it is can be said only when it is made."""
        if obj is None:
            return ((None, {"fields": ("site", "user", "role", "nickname")}),)
        return (
            (None, {"fields": ("person", "site_name", "nickname", "role", "own_keys")}),
            (_("Decision"), {"fields": ("status_label", "decider", "decided_at", "created_at")}),
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Membership | None = None) -> Sequence[str]:
        """Return what cannot be changed here: for a manager, not their own role either."""
        fields = tuple(super().get_readonly_fields(request, obj))
        if obj is not None and obj.user_id == request.user.pk and not is_superuser(request):
            fields += ("role",)
        return fields

    def save_model(self, request: HttpRequest, obj: Membership, form: ModelForm[Any], change: bool) -> None:
        """Store the membership; adding somebody is deciding about them."""
        if not change:
            assert isinstance(request.user, User)
            obj.status, obj.decided_by, obj.decided_at = (
                Membership.Status.APPROVED,
                request.user,
                database_now(),
            )
        with tenant(obj.site_id):
            super().save_model(request, obj, form, change)

    def count_waiting(self, request: HttpRequest) -> int:
        """Return how many people wait for this staff member's decision; shown in the sidebar."""
        return self.get_queryset(request).filter(status=Membership.Status.PENDING).count()

    # --- Columns -------------------------------------------------------------------------------------

    @display(description=_("member"), ordering="nickname", header=True)
    def header(self, membership: Membership) -> list[str]:
        """Return the nickname over the user name, with an initial."""
        name = membership.nickname or membership.user.get_full_name() or membership.user.get_username()
        return [name, membership.user.get_username(), name[:1]]

    @display(description=_("user"))
    def person(self, membership: Membership) -> str:
        """Return the user's name."""
        full_name, username = membership.user.get_full_name(), membership.user.get_username()
        return f"{full_name} ({username})" if full_name else username

    @display(description=_("site"))
    def site_name(self, membership: Membership) -> str:
        """Return the site's name."""
        return membership.site.name

    @display(description=_("own keys"))
    def own_keys(self, membership: Membership) -> SafeString:
        """Return the masks of the member's own keys."""
        return keys_of_member(membership)

    @display(description=_("role"), ordering="role")
    def role_label(self, membership: Membership) -> SafeString:
        """Return the role as a coloured word."""
        return chip(membership.role, membership.get_role_display(), ROLE_COLOURS)

    @display(description=_("status"), ordering="status")
    def status_label(self, membership: Membership) -> SafeString:
        """Return the status as a coloured word."""
        return chip(membership.status, membership.get_status_display(), STATUS_COLOURS)

    @display(description=_("decided by"), empty_value="–")
    def decider(self, membership: Membership) -> str | None:
        """Return who decided."""
        user = membership.decided_by
        return (user.get_full_name() or user.get_username()) if user else None

    # --- Decisions -----------------------------------------------------------------------------------

    @admin.action(description=_("Approve selected members"), permissions=["change"])
    def approve(self, request: HttpRequest, queryset: QuerySet[Membership]) -> None:
        """Approve those of the rows that can be."""
        self._decide(request, queryset, "approve")

    @admin.action(description=_("Reject selected members"), permissions=["change"])
    def reject(self, request: HttpRequest, queryset: QuerySet[Membership]) -> None:
        """Reject those of the rows that wait."""
        self._decide(request, queryset, "reject")

    @admin.action(description=_("Suspend selected members"), permissions=["change"])
    def suspend(self, request: HttpRequest, queryset: QuerySet[Membership]) -> None:
        """Suspend those of the rows that are approved."""
        self._decide(request, queryset, "suspend")

    @action(description=_("Approve"), permissions=["change"])
    def approve_now(self, request: HttpRequest, membership: Membership) -> None:
        """Approve this member."""
        self._decide(request, self.get_queryset(request).filter(pk=membership.pk), "approve")

    @action(description=_("Reject"), permissions=["change"])
    def reject_now(self, request: HttpRequest, membership: Membership) -> None:
        """Reject this member."""
        self._decide(request, self.get_queryset(request).filter(pk=membership.pk), "reject")

    @action(description=_("Suspend"), permissions=["change"])
    def suspend_now(self, request: HttpRequest, membership: Membership) -> None:
        """Suspend this member."""
        self._decide(request, self.get_queryset(request).filter(pk=membership.pk), "suspend")

    def get_actions_submit_line(self, request: HttpRequest, object_id: int | str) -> list[UnfoldAction]:
        """Return the buttons that make sense for this member in its present state."""
        found = self.get_object(request, str(object_id))
        if found is None or (found.user_id == request.user.pk and not is_superuser(request)):
            return []
        possible = {f"{decision}_now" for decision, (_to, before) in OUTCOMES.items() if found.status in before}
        return [
            button
            for button in super().get_actions_submit_line(request, object_id)
            if button.method.original_function_name in possible
        ]

    def _decide(self, request: HttpRequest, queryset: QuerySet[Membership], decision: Decision) -> None:
        """Carry out one decision, log each changed row, and say how many did not change."""
        assert isinstance(request.user, User)
        chosen = list(queryset.select_related("site", "user"))
        ids_by_site: dict[int, list[int]] = defaultdict(list)
        for row in chosen:
            if row.user_id != request.user.pk or is_superuser(request):
                ids_by_site[row.site_id].append(row.pk)
        changed: set[int] = set()
        for site_id, ids in ids_by_site.items():
            changed.update(decide_memberships(site_id, ids, decision=decision, decided_by=request.user))
        said = {
            "approve": gettext("Approved."),
            "reject": gettext("Rejected."),
            "suspend": gettext("Suspended."),
        }[decision]
        for row in chosen:
            if row.pk in changed:
                self.log_change(request, row, said)
        if changed:
            text = ngettext("%(count)d member: %(done)s", "%(count)d members: %(done)s", len(changed))
            self.message_user(request, text % {"count": len(changed), "done": said}, messages.SUCCESS)
        if left := len(chosen) - len(changed):
            text = ngettext(
                "%(count)d member was left unchanged: in no state for this, or yourself.",
                "%(count)d members were left unchanged: in no state for this, or yourself.",
                left,
            )
            self.message_user(request, text % {"count": left}, messages.WARNING)
