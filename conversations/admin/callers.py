"""Internal callers: servers that sign their calls and may act for the members of a site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display
from unfold.widgets import UnfoldBooleanSwitchWidget

from conversations.admin.base import SiteFilter, chip
from conversations.admin.keys import SiteBoundAdmin, WriteOnlyKeysForm, key_field
from conversations.models import InternalCaller
from providers.fields import keep_secret, move_secret

SECRET_MIN_CHARS = 32


class CallerForm(WriteOnlyKeysForm):
    """An internal caller; a new secret leaves the one before it good until that is dropped."""

    keys = ("secret",)
    secret = key_field(_("Secret"))
    drop_previous = forms.BooleanField(
        label=_("Drop the previous secret"),
        required=False,
        widget=UnfoldBooleanSwitchWidget(),
        help_text=_("Two secrets are good at a time, so that both sides can change one after the other."),
    )

    class Meta:
        model = InternalCaller
        fields: Sequence[str] = ("site", "key_id", "name", "membership", "is_active")

    def clean(self) -> dict[str, Any]:
        """Return the cleaned data: a secret that is long enough, and a member of the same site."""
        data = super().clean()
        secret = data.get("secret")
        if secret and len(secret) < SECRET_MIN_CHARS:
            self.add_error("secret", _("At least 32 characters: openssl rand -hex 32"))
        if not secret and not self.instance.secret_encrypted and "secret" not in self.errors:
            self.add_error("secret", _("A caller needs a secret: openssl rand -hex 32"))
        site, member = data.get("site") or getattr(self.instance, "site", None), data.get("membership")
        if member is not None and site is not None and member.site_id != site.pk:
            self.add_error("membership", _("This member belongs to another site."))
        return data

    def save(self, commit: bool = True) -> InternalCaller:
        """Return the caller with its new secret, or with the one it had."""
        if self.cleaned_data.get("drop_previous"):
            keep_secret(self.instance, "previous_secret", "")
        if self.cleaned_data.get("secret"):
            if self.instance.secret_encrypted and not self.cleaned_data.get("drop_previous"):
                move_secret(self.instance, "secret", "previous_secret")
            keep_secret(self.instance, "secret", self.cleaned_data["secret"])
        saved: InternalCaller = super().save(commit)
        return saved


@admin.register(InternalCaller)
class InternalCallerAdmin(SiteBoundAdmin):
    """Servers that may act for members: superusers make them, managers see theirs."""

    form = CallerForm
    superuser_may = frozenset({"view", "add", "change"})
    list_display = ("header", "site", "state", "masks", "created_at")
    list_display_links = ("header",)
    list_filter = (SiteFilter,)
    list_select_related = ("site",)
    autocomplete_fields = ("membership",)
    search_fields = ("key_id", "name")
    ordering = ("site", "key_id")
    readonly_fields = ("masks", "created_at")
    fieldsets = (
        (None, {"fields": ("site", "key_id", "name", "membership", "is_active")}),
        (_("Keys"), {"fields": ("masks", "secret", "drop_previous")}),
        (_("Times"), {"classes": ["collapse"], "fields": ("created_at",)}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Model | None = None) -> Any:
        """Return the sections; who may only look has no fields for secrets."""
        if self.has_change_permission(request, obj) if obj else self.has_add_permission(request):
            return super().get_fieldsets(request, obj)
        return ((None, {"fields": ("site", "key_id", "name", "membership", "is_active", "masks", "created_at")}),)

    @display(description=_("internal caller"), ordering="key_id", header=True)
    def header(self, caller: InternalCaller) -> list[str]:
        """Return the name over the key id."""
        return [caller.name or caller.key_id, caller.key_id]

    @display(description=_("state"), ordering="is_active")
    def state(self, caller: InternalCaller) -> SafeString:
        """Return whether its calls are accepted."""
        return (
            chip("on", _("on"), {"on": "success"})
            if caller.is_active
            else chip("off", _("off"), {"off": "danger"})
        )

    @display(description=_("secrets"), empty_value="–")
    def masks(self, caller: InternalCaller) -> str:
        """Return the masks of the secrets that are good now."""
        return " · ".join(filter(None, (caller.secret_mask, caller.previous_secret_mask)))
