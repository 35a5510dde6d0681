"""The endpoints in the admin. They serve all sites, so only superusers see them; keys go in and never come out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import async_to_sync
from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldBooleanSwitchWidget

from providers.clients.dashscope_app import BASE_URL, SET_BY_US
from providers.clients.openai_chat import chat_url
from providers.errors import ConnectFailed, Misconfigured
from providers.http import resolve
from providers.models import Endpoint
from providers.pool import probe
from providers.registry import config_of

_PROBES_MAX = 5


class EndpointForm(forms.ModelForm):
    """An endpoint with a key field that only takes."""

    api_key = forms.CharField(
        label=_("API key"),
        required=False,
        strip=True,
        max_length=4096,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}, render_value=False),
    )
    clear_api_key = forms.BooleanField(
        label=_("Remove the stored key"), required=False, widget=UnfoldBooleanSwitchWidget()
    )

    class Meta:
        model = Endpoint
        fields = [
            "name",
            "dialect",
            "base_url",
            "model",
            "is_active",
            "priority",
            "weight",
            "params",
            "connect_seconds",
            "first_seconds",
            "idle_seconds",
            "total_seconds",
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mask = self.instance.api_key_mask
        self.fields["api_key"].help_text = (
            _("Stored: %(mask)s. Leave empty to keep it.") % {"mask": mask} if mask else _("None is stored.")
        )

    def clean_api_key(self) -> str:
        """Return the key, refusing what could not stand in a header; the message never repeats it."""
        key: str = self.cleaned_data["api_key"]
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise forms.ValidationError(_("A key has no spaces, line ends or special characters. Copy it again."))
        return key

    def clean_params(self) -> dict[str, Any]:
        """Return the parameters, an object without the fields that are ours."""
        params = self.cleaned_data["params"]
        if params in (None, ""):
            return {}
        if not isinstance(params, dict):
            raise forms.ValidationError(_('Write a JSON object, for example {"temperature": 0.7}.'))
        is_application = self.cleaned_data.get("dialect") == Endpoint.Dialect.DASHSCOPE_APP
        if taken := sorted((SET_BY_US if is_application else {"model", "messages", "stream"}) & set(params)):
            raise forms.ValidationError(_("These are set by the system: %(names)s.") % {"names": ", ".join(taken)})
        return params

    def clean_base_url(self) -> str:
        """Return the URL without surrounding blanks, once it is one that may be reached."""
        url: str = self.cleaned_data["base_url"].strip()
        if not url:
            return ""
        try:
            parts = urlsplit(chat_url(url))
        except Misconfigured:
            raise forms.ValidationError(
                _("Write http(s)://host[:port][/path] without user, password, query or fragment.")
            ) from None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        allowed = frozenset(address.lower() for address in settings.PROVIDER_ALLOWED_ADDRESSES)
        try:
            resolve(parts.hostname or "", port, allowed)
        except Misconfigured:
            raise forms.ValidationError(
                _(
                    "This host has a private or reserved address, which endpoints may not use. The operator can "
                    "allow it: add %(address)s to PROVIDER_ALLOWED_ADDRESSES."
                )
                % {"address": f"{parts.hostname}:{port}"}
            ) from None
        except ConnectFailed:
            raise forms.ValidationError(_("This host name is not known.")) from None
        return url

    def clean(self) -> dict[str, Any]:
        """Check the fields together: an OpenAI endpoint needs URL and model; a key does not move to a new host."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if data.get("dialect") == Endpoint.Dialect.OPENAI:
            for name in ("base_url", "model"):
                if name not in self.errors and not data.get(name):
                    self.add_error(name, _("An OpenAI compatible endpoint needs this."))
        if data.get("dialect") == Endpoint.Dialect.DASHSCOPE_APP and not data.get("model", "given wrongly"):
            self.add_error("model", _("Write the id of the DashScope application here."))
        key, clear = data.get("api_key"), data.get("clear_api_key")
        if key and clear:
            self.add_error("clear_api_key", _("Either a new key or none."))
        old_url = _url_called(self.initial)
        is_moved = "base_url" in data and _origin(_url_called(data)) != _origin(old_url)
        if self.instance.api_key_encrypted and old_url and is_moved and not key and not clear:
            self.add_error(
                "api_key",
                _("The host changed: enter the key again, so that the old host's key is not sent to it."),
            )
        return data

    def save(self, commit: bool = True) -> Endpoint:
        """Return the endpoint with its new key, or with the one it had."""
        if self.cleaned_data.get("api_key"):
            self.instance.set_api_key(self.cleaned_data["api_key"])
        elif self.cleaned_data.get("clear_api_key"):
            self.instance.set_api_key("")
        saved: Endpoint = super().save(commit)
        return saved


def _url_called(values: Mapping[str, Any]) -> str:
    """Return the base URL that an endpoint with these values calls: an application has one by default."""
    default = BASE_URL if values.get("dialect") == Endpoint.Dialect.DASHSCOPE_APP else ""
    return values.get("base_url") or default


def _origin(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return ("", "")
    return (parts.scheme, parts.netloc.lower())


@admin.register(Endpoint)
class EndpointAdmin(ModelAdmin):
    """Superusers register, change, try, activate and remove endpoints."""

    form = EndpointForm
    list_display = ["name", "model", "base_url", "api_key_mask", "is_active", "priority", "weight", "updated_at"]
    list_filter = ["is_active", "dialect"]
    search_fields = ["name", "model", "base_url"]
    actions = ["activate", "deactivate", "try_out"]
    readonly_fields = ["created_at", "updated_at"]
    fieldsets = [
        (None, {"fields": ["name", "is_active", "dialect", "base_url", "model", "api_key", "clear_api_key"]}),
        (_("Choice"), {"fields": ["priority", "weight"]}),
        (
            _("Request and clocks"),
            {
                "classes": ["collapse"],
                "fields": ["params", "connect_seconds", "first_seconds", "idle_seconds", "total_seconds"],
            },
        ),
        (_("Times"), {"classes": ["collapse"], "fields": ["created_at", "updated_at"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Endpoint]:
        """Return all endpoints, or none: nobody else learns which ids exist."""
        rows = super().get_queryset(request)
        return rows if _is_superuser(request) else rows.none()

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Return whether endpoints appear at all."""
        return _is_superuser(request)

    def has_view_permission(self, request: HttpRequest, obj: Endpoint | None = None) -> bool:
        """Return whether endpoints may be seen."""
        return _is_superuser(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return whether endpoints may be added."""
        return _is_superuser(request)

    def has_change_permission(self, request: HttpRequest, obj: Endpoint | None = None) -> bool:
        """Return whether endpoints may be changed."""
        return _is_superuser(request)

    def has_delete_permission(self, request: HttpRequest, obj: Endpoint | None = None) -> bool:
        """Return whether endpoints may be removed."""
        return _is_superuser(request)

    @admin.action(description=_("Activate the selected endpoints"))
    def activate(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> None:
        """Activate."""
        self._switch(request, queryset, is_active=True)

    @admin.action(description=_("Deactivate the selected endpoints"))
    def deactivate(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> None:
        """Deactivate."""
        self._switch(request, queryset, is_active=False)

    @admin.action(description=_("Try the selected endpoints with a real call"))
    def try_out(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> HttpResponseBase | None:
        """Call each endpoint once and say how it went."""
        for row in queryset[:_PROBES_MAX]:
            try:
                result = async_to_sync(probe)(config_of(row), seconds=15.0)
            except Misconfigured as error:
                self.message_user(request, f"{row.name}: {error.code}", messages.ERROR)
                continue
            if result.is_ok:
                text = gettext("{name}: answered in {latency} ms, first token after {first} ms: {sample}")
                level = messages.SUCCESS
            else:
                text, level = gettext("{name}: {code} after {latency} ms. {detail}"), messages.ERROR
            self.message_user(
                request,
                format_html(
                    text,
                    name=row.name,
                    latency=result.latency_ms,
                    first=result.first_token_ms,
                    sample=result.sample,
                    code=result.error_code,
                    detail=result.vendor_message or "",
                ),
                level,
            )
        return None

    def _switch(self, request: HttpRequest, queryset: QuerySet[Endpoint], *, is_active: bool) -> None:
        count = queryset.exclude(is_active=is_active).update(is_active=is_active)
        text = ngettext("%(count)d endpoint changed.", "%(count)d endpoints changed.", count) % {"count": count}
        self.message_user(request, text, messages.SUCCESS)


def _is_superuser(request: HttpRequest) -> bool:
    return bool(request.user.is_active and getattr(request.user, "is_superuser", False))
