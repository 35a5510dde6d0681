"""Tools of a site's own. What a model could be led to misuse is said by managers, and checked field by field."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextareaWidget, UnfoldBooleanSwitchWidget

from conversations.admin.base import ScopedAdmin, SiteFilter, chip
from conversations.admin.sites import ReadableJSON
from conversations.context.builtin_tools import BUILT_IN
from conversations.context.http_tools import call_of
from conversations.context.tools import check_schema
from conversations.models import SiteTool
from conversations.models.site_settings import TOOL_NAME
from providers.fields import keep_secret

JSON_FIELDS = ("parameters", "query", "headers", "body")


class SiteToolForm(forms.ModelForm):
    """A tool with a secret field that only takes."""

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
        model = SiteTool
        fields = (
            "site",
            "name",
            "description",
            "parameters",
            "method",
            "url",
            "query",
            "headers",
            "body",
            "timeout_seconds",
            "is_active",
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in JSON_FIELDS:
            if isinstance(field := self.fields.get(name), forms.JSONField):
                field.encoder = ReadableJSON
                field.widget = UnfoldAdminTextareaWidget(
                    attrs={"rows": 6, "spellcheck": "false", "class": "font-mono"}
                )
        if "secret" in self.fields:
            mask = self.instance.secret_mask
            self.fields["secret"].help_text = (
                _("Stored: %(mask)s. Leave empty to keep it.") % {"mask": mask} if mask else _("None is stored.")
            )

    def clean_name(self) -> str:
        """Return the name, one that every vendor takes and that no built-in tool has."""
        name: str = self.cleaned_data["name"]
        if not TOOL_NAME.match(name):
            raise ValidationError(_("Letters, digits, _ and - only, beginning with a letter or _."))
        if name in BUILT_IN:
            raise ValidationError(_("A built-in tool has this name."))
        return name

    def clean_parameters(self) -> dict[str, Any]:
        """Return the schema of the arguments, checked."""
        try:
            return check_schema(self.cleaned_data["parameters"] or {})
        except ValueError as error:
            raise ValidationError(gettext("The schema cannot be used: %(why)s") % {"why": str(error)}) from None

    def clean(self) -> dict[str, Any]:
        """Check the call as a whole; each mistake is told at its own field. A secret stays with its host."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        for name in ("query", "headers"):
            data[name] = data.get(name) or {}
        if not {"method", "url", *JSON_FIELDS} & set(self.errors):
            row = SiteTool(**{name: data.get(name) for name in ("method", "url", "query", "headers", "body")})
            try:
                call_of(row)
            except ValueError as error:
                field, _colon, why = str(error).partition(": ")
                known = field in self.fields
                self.add_error(field if known else "url", why if known and why else str(error))
        secret, clear = data.get("secret"), data.get("clear_secret")
        if secret and clear:
            self.add_error("clear_secret", _("Either a new secret or none."))
        if secret and not (secret.isascii() and secret.isprintable()):
            self.add_error("secret", _("A secret has visible ASCII characters only."))
        is_moved = "url" in data and _origin(str(self.initial.get("url", ""))) != _origin(str(data["url"]))
        if self.instance.pk and self.instance.secret_encrypted and is_moved and not secret and not clear:
            self.add_error(
                "secret",
                _("The host changed: enter the secret again; the old host's is not sent to it."),
            )
        return data

    def save(self, commit: bool = True) -> SiteTool:
        """Return the tool with its new secret, or with the one it had."""
        if self.cleaned_data.get("secret"):
            keep_secret(self.instance, "secret", self.cleaned_data["secret"])
        elif self.cleaned_data.get("clear_secret"):
            keep_secret(self.instance, "secret", "")
        saved: SiteTool = super().save(commit)
        return saved


def _origin(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ("", "")
    return (parts.scheme.lower(), parts.netloc.lower())


@admin.register(SiteTool)
class SiteToolAdmin(ScopedAdmin):
    """The HTTP calls that models of a site may ask for; which are on offer is said on the site's page."""

    manager_may = frozenset({"view", "add", "change"})
    superuser_may = frozenset({"view", "add", "change"})
    form = SiteToolForm
    list_display = ("name", "site", "method", "url", "state", "updated_at")
    list_filter = (SiteFilter, "is_active")
    search_fields = ("name", "description")
    list_select_related = ("site",)
    ordering = ("site", "name")
    readonly_fields = ("created_at", "updated_at")
    fieldsets = (
        (None, {"fields": ("site", "name", "is_active", "description", "parameters")}),
        (
            _("Call"),
            {
                "fields": ("method", "url", "query", "headers", "body", "timeout_seconds"),
                "description": _(
                    "Templates: ${args.x} is what the model asks; ${member.userId}, ${member.role}, ${site.slug} "
                    "and ${secret} are ours. With a secret each call is signed and says who the member is."
                ),
            },
        ),
        (_("Secret"), {"fields": ("secret", "clear_secret")}),
        (_("Times"), {"classes": ("collapse",), "fields": ("created_at", "updated_at")}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: SiteTool | None = None) -> tuple[str, ...]:
        """Return what cannot be changed: a tool stays with its site, and its secret with it."""
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if obj is None else (*fields, "site")

    @display(description=_("state"), ordering="is_active")
    def state(self, tool: SiteTool) -> SafeString:
        """Return whether the tool is on, as a coloured word."""
        return (
            chip("on", _("on"), {"on": "success"}) if tool.is_active else chip("off", _("off"), {"off": "danger"})
        )
