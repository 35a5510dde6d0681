"""Voice rooms: who is in them, how they stand with the platform, and a way to end them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display

from conversations.admin.base import ScopedAdmin, SiteFilter, chip, column
from conversations.db import tenant
from conversations.models import VoiceSession
from conversations.voice.sessions import request_stop

SESSION_COLOURS = {
    "created": "",
    "starting": "info",
    "started": "success",
    "stopping": "warning",
    "stopped": "",
    "failed": "danger",
}


class SessionStatusFilter(admin.SimpleListFilter):
    """Offers the states of a room."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choices."""
        return [(value, str(label)) for value, label in VoiceSession.Status.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[VoiceSession]) -> QuerySet[VoiceSession]:
        """Return the rooms in that state."""
        return queryset.filter(status=self.value()) if self.value() else queryset


@admin.register(VoiceSession)
class VoiceSessionAdmin(ScopedAdmin):
    """Rooms, newest first; read-only but for their end."""

    list_display = ("header", "site", "member", "status_label", "created", "started", "stopped")
    list_display_links = ("header",)
    list_filter = (SessionStatusFilter, SiteFilter)
    list_select_related = ("site", "scene", "membership__user", "membership__site")
    ordering = ("-pk",)
    search_fields = ("room_id", "scene__key", "membership__nickname", "membership__user__username")
    actions = ["stop_rooms"]
    fieldsets = (
        (None, {"fields": ("site", "scene", "member", "caller", "chat", "status_label", "by", "error")}),
        (_("Platform"), {"fields": ("room", "user_in_room", "bot", "task", "attempts")}),
        (_("Times"), {"fields": ("created", "started", "stopped", "due", "token_ends")}),
    )
    readonly_fields = tuple(name for _title, shown in fieldsets for name in shown["fields"])
    room = column("room_id", _("room"))
    user_in_room = column("user_id", _("user in the room"))
    bot = column("bot_id", _("bot in the room"))
    task = column("task_id", _("task"))
    error = column("last_error", _("last error"))
    attempts = column("stop_attempts", _("failed stops"))
    created = column("created_at", _("created"))
    started = column("started_at", _("started"))
    stopped = column("stopped_at", _("stopped"))
    due = column("stop_due_at", _("to be stopped"))
    token_ends = column("token_expires_at", _("token ends"))

    @admin.action(description=_("Stop the selected rooms"), permissions=["view"])
    def stop_rooms(self, request: HttpRequest, queryset: QuerySet[VoiceSession]) -> None:
        """Ask for the end of the rooms that run; a worker does it within seconds."""
        count = 0
        for session in queryset:
            with tenant(session.site_id):
                if request_stop(session):
                    self.log_change(request, session, gettext("Asked to be stopped."))
                    count += 1
        text = ngettext("%(count)d room will be stopped.", "%(count)d rooms will be stopped.", count)
        self.message_user(request, text % {"count": count}, messages.SUCCESS if count else messages.WARNING)

    @display(description=_("room"), ordering="room_id", header=True)
    def header(self, session: VoiceSession) -> list[str]:
        """Return the scene over the room."""
        return [session.scene.name, session.room_id]

    @display(description=_("member"))
    def member(self, session: VoiceSession) -> str:
        """Return who is in the room."""
        return session.membership.nickname or session.membership.user.get_username()

    @display(description=_("status"), ordering="status")
    def status_label(self, session: VoiceSession) -> SafeString:
        """Return the status as a coloured word."""
        return chip(session.status, session.get_status_display(), SESSION_COLOURS)

    @display(description=_("stopped by"), empty_value="–")
    def by(self, session: VoiceSession) -> str | None:
        """Return who asked for the end."""
        return session.get_stopped_by_display() if session.stopped_by else None

    @display(description=_("conversation"), empty_value="–")
    def chat(self, session: VoiceSession) -> SafeString | None:
        """Return a link to what was said."""
        if session.conversation_id is None:
            return None
        url = reverse("admin:conversations_conversation_change", args=[session.conversation_id])
        style = "text-primary-600 dark:text-primary-400"
        return format_html('<a class="{}" href="{}">#{}</a>', style, url, session.conversation_id)
