"""Endpoints, seen from above: who uses them, how far the workers are, and which revision can be brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST

from conversations.admin.grants import GrantInline
from conversations.generation.endpoints import live_replies_on, remove_endpoint, standing
from providers.admin import EndpointAdmin
from providers.models import Endpoint, EndpointRevision, restore_revision

admin.site.unregister(Endpoint)


def is_standing_in() -> bool:
    """Return whether the stand-in answers, because nothing else is configured."""
    is_alone = not settings.LLM_BASE_URL and not Endpoint.objects.filter(is_active=True).exists()
    return bool(settings.STAND_IN and is_alone)


@admin.register(Endpoint)
class WatchedEndpointAdmin(EndpointAdmin):
    """The endpoints with what their room cannot know: the workers that use them."""

    list_before_template = "admin/providers/endpoint/standing.html"
    actions = ["activate", "deactivate", "try_out", "drain"]
    inlines = [GrantInline]

    def get_urls(self) -> list[URLPattern]:
        """Return the addresses, with the one that brings a revision back."""
        restore = self.admin_site.admin_view(require_POST(self.restore))
        return [path("restore/", restore, name="providers_endpoint_restore"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Return the list under how far the workers are, and the banner of the stand-in."""
        now = standing()
        kept = EndpointRevision.objects.exclude(revision=now.revision).values("revision", "created_at")
        context = {
            "standing": now,
            "is_standing_in": is_standing_in(),
            "kept_revisions": kept if self._may_restore(request) else (),
            **(extra_context or {}),
        }
        response: HttpResponse = super().changelist_view(request, context)
        return response

    def get_deleted_objects(
        self, objs: QuerySet[Endpoint] | Sequence[Endpoint], request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Return what a deletion takes along; an endpoint in use is protected by its replies."""
        taken, counts, needed, protected = super().get_deleted_objects(objs, request)
        for endpoint in objs:
            if live := live_replies_on(endpoint.pk):
                text = ngettext("%(name)s: %(count)d live reply", "%(name)s: %(count)d live replies", live)
                protected = [*protected, text % {"name": endpoint.name, "count": live}]
        return taken, counts, needed, protected

    @admin.action(description=_("Remove when the last reply is over"), permissions=["delete"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> None:
        """Give the endpoints no new replies, and delete them when the running ones are over."""
        for endpoint in queryset:
            self.log_deletions(request, [endpoint])
            if remove_endpoint(endpoint, drain=True) == "deleted":
                text = gettext("%(name)s was removed.")
            else:
                text = gettext("%(name)s gets no new replies and is removed when the last one is over.")
            self.message_user(request, text % {"name": endpoint.name}, messages.SUCCESS)

    def restore(self, request: HttpRequest) -> HttpResponse:
        """Bring back the revision that was chosen."""
        if not self._may_restore(request):
            raise PermissionDenied
        chosen = request.POST.get("revision", "")
        try:
            if not (chosen.isascii() and chosen.isdigit() and len(chosen) < 19):
                raise EndpointRevision.DoesNotExist
            with transaction.atomic():
                restore_revision(int(chosen))
                changed = list(Endpoint.objects.all())
                note = f"revision {chosen} brought back"
                LogEntry.objects.log_actions(request.user.pk or 0, changed, CHANGE, note)
        except EndpointRevision.DoesNotExist:
            self.message_user(request, gettext("This revision is not kept any more."), messages.ERROR)
        else:
            text = gettext("Revision %(revision)s is back.") % {"revision": chosen}
            self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:providers_endpoint_changelist"))

    def _may_restore(self, request: HttpRequest) -> bool:
        return (
            self.has_add_permission(request)
            and self.has_change_permission(request)
            and self.has_delete_permission(request)
        )
