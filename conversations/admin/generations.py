"""The ledger: every attempt at a reply, what it cost and how it ended. Read-only."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display

from conversations.admin.base import ScopedAdmin, SiteFilter, chip, column
from conversations.models import Generation

STATUS_COLOURS = {
    "running": "info",
    "complete": "success",
    "stopped": "warning",
    "failed": "danger",
    "interrupted": "danger",
}


def milliseconds_between(start: datetime | None, end: datetime | None) -> str | None:
    """Return a duration for people: milliseconds below one second, else seconds."""
    if start is None or end is None:
        return None
    duration_ms = (end - start).total_seconds() * 1000
    return f"{duration_ms:.0f} ms" if duration_ms < 1000 else f"{duration_ms / 1000:.1f} s"


class StatusFilter(admin.SimpleListFilter):
    """Offers how attempts end."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choices."""
        return [(value, str(label)) for value, label in Generation.Status.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Generation]) -> QuerySet[Generation]:
        """Return the attempts that ended so."""
        return queryset.filter(status=self.value()) if self.value() else queryset


@admin.register(Generation)
class GenerationAdmin(ScopedAdmin):
    """One row per attempt, newest first."""

    list_display = ("header", "site", "status_label", "tokens", "first_token_after", "took", "queued")
    list_display_links = ("header",)
    list_filter = (StatusFilter, SiteFilter)
    list_select_related = ("site", "message")
    ordering = ("-queued_at", "-pk")
    search_fields = ("endpoint_name", "model", "vendor_request_id", "error_code")
    search_help_text = _("Endpoint, model, error code or the provider's request id")
    fieldsets = (
        (None, {"fields": ("reply", "number", "endpoint_used", "model_used", "status_label", "error")}),
        (
            _("Size"),
            {
                "fields": (
                    "prompt_size",
                    "continued",
                    "tokens",
                    "cost",
                    "key_used",
                    "finish",
                    "tools_used",
                    "request_id",
                )
            },
        ),
        (_("Times"), {"fields": ("queued", "called", "first", "last", "finished", "closed")}),
        (_("Durations"), {"fields": ("first_token_after", "took")}),
    )
    readonly_fields = tuple(name for _title, shown in fieldsets for name in shown["fields"])
    number = column("attempt", _("attempt"))
    endpoint_used = column("endpoint_name", _("endpoint"))
    model_used = column("model", _("model"))
    error = column("error_code", _("error"))
    continued = column("continued_from", _("goes on after, characters"))
    finish = column("finish_reason", _("finish reason"))
    request_id = column("vendor_request_id", _("provider's request id"))
    queued = column("queued_at", _("accepted"))
    called = column("called_at", _("provider called"))
    first = column("first_token_at", _("first token"))
    last = column("last_token_at", _("last token"))
    finished = column("finished_at", _("finished"))
    closed = column("upstream_closed_at", _("connection closed"))

    @display(description=_("attempt"), ordering="endpoint_name", header=True)
    def header(self, generation: Generation) -> list[str]:
        """Return the endpoint over the model and number."""
        second = f"{generation.model or '–'} · #{generation.message_id}/{generation.attempt}"
        return [generation.endpoint_name or "–", second]

    @display(description=_("status"), ordering="status")
    def status_label(self, generation: Generation) -> SafeString:
        """Return the status as a coloured word."""
        return chip(generation.status, generation.get_status_display(), STATUS_COLOURS)

    @display(description=_("reply"))
    def reply(self, generation: Generation) -> SafeString:
        """Return a link to the reply in its transcript."""
        message = generation.message
        url = reverse("admin:conversations_conversation_change", args=[message.conversation_id])
        return format_html(
            '<a class="text-primary-600 dark:text-primary-400" href="{}?message={}#m-{}">#{}</a>',
            url,
            message.pk,
            message.pk,
            message.pk,
        )

    @display(description=_("prompt"))
    def prompt_size(self, generation: Generation) -> str:
        """Return how much the model was shown."""
        return gettext("%(messages)d messages, %(chars)d characters") % {
            "messages": generation.prompt_messages,
            "chars": generation.prompt_chars,
        }

    @display(description=_("tokens in / out"), empty_value="–")
    def tokens(self, generation: Generation) -> str | None:
        """Return the token counts; an estimate is marked with ≈."""
        if generation.input_tokens is None and generation.output_tokens is None:
            return None
        about = "" if generation.tokens_source == "provider" else "≈ "
        return f"{about}{generation.input_tokens or 0} / {generation.output_tokens or 0}"

    @display(description=_("cost"), empty_value="–")
    def cost(self, generation: Generation) -> str | None:
        """Return the cost in the currency of the endpoint's prices; None when no price was known."""
        return None if generation.cost_micros is None else f"{generation.cost_micros / 1_000_000:.6f}"

    @display(description=_("tools"), empty_value="–")
    def tools_used(self, generation: Generation) -> str | None:
        """Return what this call of the model asked of tools, and how that went."""
        runs = [
            f"{run['name']} {run['problem'] or run['outcome']} {run['ms']} ms" for run in generation.tools or []
        ]
        return "; ".join(runs) or None

    @display(description=_("key used"), ordering="credential")
    def key_used(self, generation: Generation) -> str:
        """Return whose key it was: who pays."""
        return str(generation.get_credential_display())

    @display(description=_("first token after"), empty_value="–")
    def first_token_after(self, generation: Generation) -> str | None:
        """Return how long the first token took, from the acceptance of the request."""
        return milliseconds_between(generation.queued_at, generation.first_token_at)

    @display(description=_("took"), empty_value="–")
    def took(self, generation: Generation) -> str | None:
        """Return how long the attempt took."""
        return milliseconds_between(generation.queued_at, generation.finished_at)
