"""Page sources: what a member's page tells the model. A secret is only taken, never shown."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextareaWidget, UnfoldBooleanSwitchWidget

from conversations.admin.base import ScopedAdmin, SiteFilter, column, managed_site_ids
from conversations.admin.sites import ReadableJSON
from conversations.context.pages import check_source
from conversations.models import PageSource
from providers.fields import keep_secret


class PageSourceForm(forms.ModelForm):
    """A page source with a secret field that only takes."""

    secret = forms.CharField(
        label=_("secret"),
        required=False,
        max_length=4096,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}, render_value=False),
    )
    clear_secret = forms.BooleanField(
        label=_("Remove the stored secret"), required=False, widget=UnfoldBooleanSwitchWidget()
    )

    class Meta:
        model = PageSource
        fields = ("site", "name", "page", "kind", "template", "request", "is_active")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(field := self.fields.get("request"), forms.JSONField):
            field.encoder = ReadableJSON
            field.widget = UnfoldAdminTextareaWidget(
                attrs={"rows": 10, "spellcheck": "false", "class": "font-mono"}
            )
        if "secret" in self.fields:
            stored = self.instance.secret_mask
            self.fields["secret"].help_text = (
                _("Stored: %(mask)s. Leave empty to keep it.") % {"mask": stored}
                if stored
                else _("None is stored.")
            )

    def clean(self) -> dict[str, Any]:
        """Check the source as a whole; what is wrong is told at its field. A secret stays with its host."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        request = data["request"] = data.get("request") or {}
        if not {"kind", "template", "request"} & set(self.errors):
            row = PageSource(kind=data["kind"], template=data.get("template", ""), request=request)
            try:
                check_source(row)
            except ValueError as error:
                field, _colon, why = str(error).partition(": ")
                self.add_error(field if field in self.fields else "request", gettext(why))
        secret, clear = data.get("secret"), data.get("clear_secret")
        if secret and clear:
            self.add_error("clear_secret", _("Either a new secret or none."))
        if secret and not (secret.isascii() and secret.isprintable()):
            self.add_error("secret", _("A secret has visible ASCII characters only."))
        before = self.initial.get("request") or {}
        is_moved = _origin(before) != _origin(request)
        if self.instance.pk and self.instance.secret_encrypted and is_moved and not secret and not clear:
            self.add_error(
                "secret", _("The host changed: enter the secret again; the old host's is not sent to it.")
            )
        return data

    def save(self, commit: bool = True) -> PageSource:
        """Return the source with its new secret, or with the one it had."""
        if secret := self.cleaned_data.get("secret"):
            keep_secret(self.instance, "secret", secret)
        elif self.cleaned_data.get("clear_secret"):
            keep_secret(self.instance, "secret", "")
        saved: PageSource = super().save(commit)
        return saved


def _origin(request: Any) -> tuple[str, str]:
    url = request.get("url", "") if isinstance(request, dict) else ""
    try:
        parts = urlsplit(str(url))
    except ValueError:
        return ("", "")
    return (parts.scheme.lower(), parts.netloc.lower())


@admin.register(PageSource)
class PageSourceAdmin(ScopedAdmin):
    """What each page of a site tells the model."""

    manager_may = frozenset({"view", "add", "change"})
    superuser_may = frozenset({"view", "add", "change"})
    form = PageSourceForm
    list_display = ("name", "site", "page", "kind", "is_active", "changed_at")
    changed_at = column("updated_at", _("changed"))
    list_filter = (SiteFilter, "kind", "is_active")
    list_select_related = ("site",)
    search_fields = ("name", "page")
    ordering = ("site", "name")
    fieldsets = (
        (None, {"fields": ("site", "name", "page", "is_active")}),
        (_("What the model is told"), {"fields": ("kind", "template", "request", "secret", "clear_secret")}),
    )

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Return the site of whoever has only one."""
        sites = managed_site_ids(request)
        return super().get_changeform_initial_data(request) | ({"site": min(sites)} if len(sites) == 1 else {})

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether this person may delete the source."""
        return self._may(request, "change", obj)
