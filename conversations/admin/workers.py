"""Serving processes: which live, how far their registry is, and how many replies they run."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.contrib import admin
from django.db.models import DateTimeField as DateTimeColumn
from django.db.models import ExpressionWrapper, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display

from conversations.admin.base import SuperuserAdmin, chip, column
from conversations.models import Worker

STATE_COLOURS = {"alive": "success", "draining": "warning", "silent": "warning", "dead": "danger"}


@admin.register(Worker)
class WorkerAdmin(SuperuserAdmin):
    """Read-only; the engine writes these rows."""

    list_display = ("header", "state", "replies", "revision", "seen", "started")
    list_display_links = ("header",)
    ordering = ("is_dead", "-seen_at")
    readonly_fields = ("header", "state", "replies", "revision", "seen", "started", "folded")
    fieldsets = (
        (None, {"fields": ("header", "state", "replies", "revision")}),
        (_("Times"), {"fields": ("started", "seen", "folded")}),
    )
    replies = column("live_replies", _("live replies"))
    revision = column("registry_revision", _("model registry revision"))
    seen = column("seen_at", _("last seen"))
    started = column("started_at", _("started"))
    folded = column("folded_sequence", _("log folded up to"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Worker]:
        """Return the workers with the database's clock beside them."""
        now = ExpressionWrapper(Now(), output_field=DateTimeColumn())
        return super().get_queryset(request).annotate(clock=now)

    @display(description=_("worker"), ordering="host", header=True)
    def header(self, worker: Worker) -> list[str]:
        """Return the host over the process id and epoch."""
        return [worker.host, f"pid {worker.pid} · #{worker.pk}"]

    @display(description=_("state"), ordering="is_dead")
    def state(self, worker: Worker) -> SafeString:
        """Return whether the worker lives, by the database's clock, as a coloured word."""
        clock: datetime = worker.clock  # type: ignore[attr-defined]  # annotated by the queryset
        if worker.is_dead:
            return chip("dead", _("dead"), STATE_COLOURS)
        if clock - worker.seen_at > timedelta(seconds=settings.LEASE_SECONDS):
            return chip("silent", _("silent"), STATE_COLOURS)
        if worker.is_draining:
            return chip("draining", _("draining"), STATE_COLOURS)
        return chip("alive", _("alive"), STATE_COLOURS)
