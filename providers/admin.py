"""The endpoints in the admin, for staff with Django's permissions on them; keys go in and never come out.

They serve all sites. What has to know who uses an endpoint stands on top of this, in
`conversations/admin/endpoints.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import async_to_sync
from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase
from django.utils.html import format_html
from django.utils.translation import get_language, gettext, ngettext
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldBooleanSwitchWidget

from providers.advice import advice
from providers.clients.dashscope_app import BASE_URL, SET_BY_US
from providers.clients.declarative.fill import check_base_url
from providers.clients.declarative.schema import ConfigRefused
from providers.clients.declarative.stored import addresses_of, check_stored
from providers.clients.openai_chat import CONTINUES, chat_url
from providers.errors import ConnectFailed, Misconfigured
from providers.http import resolve
from providers.lab.pages import LabPages
from providers.lab.words import in_words
from providers.models import Endpoint, origin_of
from providers.pool import probe
from providers.registry import config_of
from providers.types import storable

_PROBES_MAX = 5
_CLOCK_MAX_SECONDS = 86_400
_SCRIPT_KEYS = {"script", "step_seconds"}
_STEP_KEYS = {"text", "reasoning", "sleep", "error", "finish", "cut", "tool_calls"}


def checked_key(key: str) -> str:
    """Return a key that can stand in a header, or "". Raises: ValidationError, which never repeats it."""
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise forms.ValidationError(_("A key has no spaces, line ends or special characters. Copy it again."))
    return key


class KeyField(forms.CharField):
    """A field that takes a key and never shows one."""

    def __init__(self, **kwargs: Any) -> None:
        widget = UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}, render_value=False)
        super().__init__(**{"required": False, "strip": True, "max_length": 4096, "widget": widget, **kwargs})

    def clean(self, value: Any) -> str:
        """Return the key, or ""."""
        return checked_key(super().clean(value))


class EndpointForm(forms.ModelForm):
    """An endpoint with a key field that only takes."""

    api_key = KeyField(label=_("API key"))
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
            "is_shared",
            "priority",
            "weight",
            "concurrency_max",
            "requests_per_minute",
            "input_micros_per_million",
            "output_micros_per_million",
            "params",
            "config",
            "continues",
            "tools",
            "connect_seconds",
            "first_seconds",
            "idle_seconds",
            "total_seconds",
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "tools" in self.fields:  # not for who may only look
            self.fields["tools"].required = False
        self._called_before = _called(self.instance)
        mask = self.instance.api_key_mask
        self.fields["api_key"].help_text = (
            _("Stored: %(mask)s. Leave empty to keep it.") % {"mask": mask} if mask else _("None is stored.")
        )

    def clean_tools(self) -> str:
        """Return whether tools may be offered; nothing said is as the dialect says."""
        return self.cleaned_data["tools"] or "auto"

    def clean_params(self) -> dict[str, Any]:
        """Return the parameters, an object without the fields that are ours."""
        params = self.cleaned_data["params"]
        if params in (None, ""):
            return {}
        if not isinstance(params, dict):
            raise forms.ValidationError(_('Write a JSON object, for example {"temperature": 0.7}.'))
        _refuse_unstorable(params)
        _check_continues(params.get(CONTINUES))
        is_application = self.cleaned_data.get("dialect") == Endpoint.Dialect.DASHSCOPE_APP
        if taken := sorted((SET_BY_US if is_application else {"model", "messages", "stream"}) & set(params)):
            raise forms.ValidationError(_("These are set by the system: %(names)s.") % {"names": ", ".join(taken)})
        return params

    def clean_config(self) -> dict[str, Any]:
        """Return the configuration of a declarative endpoint, checked; other dialects have none."""
        config = self.cleaned_data["config"]
        if self.cleaned_data.get("dialect") != Endpoint.Dialect.DECLARATIVE:
            return {}
        try:
            check_stored(config)
        except ConfigRefused as error:
            raise forms.ValidationError(
                [f"{path}: {in_words(text)}" if path else in_words(text) for path, text in error.problems]
            ) from None
        _refuse_unstorable(config)
        for path, address in addresses_of(config):
            try:
                refusal = _refusal_of(check_base_url(address))
            except ValueError as error:
                refusal = in_words(str(error))
            except ConnectFailed:
                continue  # Nobody knows the name today: it is looked up, and its address checked, at each call.
            if refusal is not None:
                raise forms.ValidationError(f"{path}: {refusal}")
        return dict(config)

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
        try:
            if (refusal := _refusal_of(parts.geturl())) is not None:
                raise forms.ValidationError(refusal)
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
        if data.get("dialect") == Endpoint.Dialect.SCRIPTED and isinstance(data.get("params"), dict):
            for problem in _script_problems(data["params"]):
                self.add_error("params", problem)
        for name in ("connect_seconds", "first_seconds", "idle_seconds", "total_seconds"):
            seconds = data.get(name)
            if seconds is not None and not 0 < seconds <= _CLOCK_MAX_SECONDS:
                self.add_error(name, _("Write a number of seconds above zero, at most a day, or nothing."))
        key, clear = data.get("api_key"), data.get("clear_api_key")
        if key and clear:
            self.add_error("clear_api_key", _("Either a new key or none."))
        old_url = _url_called(self.initial)
        is_moved = "base_url" in data and origin_of(_url_called(data)) != origin_of(old_url)
        if Endpoint.Dialect.DECLARATIVE in (data.get("dialect"), self.initial.get("dialect")):
            # Where the key goes is said anywhere in the configuration: whatever changes, it is entered again.
            old_url = old_url or "configured"
            before = (self.initial.get("dialect"), self.initial.get("config"), self.initial.get("base_url") or "")
            is_moved = before != (data.get("dialect"), data.get("config"), data.get("base_url") or "")
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
        is_new_key = self.cleaned_data.get("api_key") or self.cleaned_data.get("clear_api_key")
        if is_new_key or _called(self.instance) != self._called_before:
            self.instance.tested_at = self.instance.test_ok = None
        if self.instance.is_active:
            self.instance.is_draining = False
        saved: Endpoint = super().save(commit)
        return saved


def _refusal_of(url: str) -> str | None:
    """Return why the address guard does not let this URL through, None when it does. Raises: ConnectFailed."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    allowed = frozenset(address.lower() for address in settings.PROVIDER_ALLOWED_ADDRESSES)
    try:
        resolve(parts.hostname or "", port, allowed)
    except Misconfigured:
        return gettext(
            "This host has a private or reserved address, which endpoints may not use. The operator can "
            "allow it: add %(address)s to PROVIDER_ALLOWED_ADDRESSES."
        ) % {"address": f"{parts.hostname}:{port}"}
    return None


def _url_called(values: Mapping[str, Any]) -> str:
    """Return the base URL that an endpoint with these values calls: an application has one by default."""
    default = BASE_URL if values.get("dialect") == Endpoint.Dialect.DASHSCOPE_APP else ""
    return values.get("base_url") or default


def _refuse_unstorable(value: Any) -> None:
    """Return when the database can hold this JSON value. Raises: ValidationError."""
    text = json.dumps(value, ensure_ascii=False)
    if storable(text) != text or re.search(r"(?<!\\)(\\\\)*\\u0000", text):
        raise forms.ValidationError(_("There are characters in it that cannot be stored."))


def _check_continues(value: Any) -> None:
    """Return when this says what a vendor wants to go on with a text. Raises: ValidationError."""
    is_good = value is None or (
        isinstance(value, dict)
        and set(value) <= {"message", "params"}
        and all(isinstance(part, dict) for part in value.values())
    )
    taken = {"role", "content", "model", "messages", "stream"}
    if not is_good or (value and any(taken & set(part) for part in value.values())):
        raise forms.ValidationError(
            _('continues is such as {"message": {"partial": true}}: objects "message" and "params", nothing else.')
        )


def _called(endpoint: Endpoint) -> tuple[str, ...]:
    """Return what is called: whoever changes it has an endpoint that nobody has tested."""
    params = json.dumps(endpoint.params, sort_keys=True)
    config = json.dumps(endpoint.config, sort_keys=True)
    return (endpoint.dialect, endpoint.base_url, endpoint.model, params, config)


def _advice(code: str) -> str:
    return advice(code, "en" if (get_language() or "").startswith("en") else "zh-hans")


def _script_problems(params: dict[str, Any]) -> Iterator[Any]:
    """Yield what is wrong with the parameters of a scripted endpoint."""
    if unknown := sorted(set(params) - _SCRIPT_KEYS):
        yield _("Unknown keys: %(names)s.") % {"names": ", ".join(unknown)[:200]}
    script = params.get("script", [])
    if not isinstance(script, list) or not all(
        isinstance(step, dict)
        and set(step) <= _STEP_KEYS
        and all(isinstance(step.get(name, ""), str) for name in ("text", "reasoning", "error"))
        and _is_pause(step.get("sleep", 0))
        and _are_calls(step.get("tool_calls", []))
        for step in script
    ):
        yield _('A script is a list of steps such as {"text": "…"}, {"sleep": 1} or {"finish": "stop"}.')
    if not _is_pause(params.get("step_seconds", 0)):
        yield _("step_seconds is a number of seconds.")


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and set(call) <= {"id", "name", "arguments"}
        for call in calls
    )


def _is_pause(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= 3600


@admin.register(Endpoint)
class EndpointAdmin(LabPages):
    """Staff register, change, try, activate and remove endpoints, each as their permissions allow."""

    form = EndpointForm
    list_display = ["name", "model", "base_url", "api_key_mask", "is_active", "test_ok", "priority", "weight"]
    list_filter = ["is_active", "is_shared", "dialect"]
    search_fields = ["name", "model", "base_url"]
    actions = ["activate", "deactivate", "try_out"]
    readonly_fields = ["created_at", "updated_at", "tested_at", "test_ok"]
    fieldsets = [
        (None, {"fields": ["name", "is_active", "dialect", "base_url", "model", "api_key", "clear_api_key"]}),
        (_("Choice"), {"fields": ["is_shared", "priority", "weight", "concurrency_max", "requests_per_minute"]}),
        (_("Prices"), {"fields": ["input_micros_per_million", "output_micros_per_million"]}),
        (
            _("Request and clocks"),
            {
                "classes": ["collapse"],
                "fields": [
                    "params",
                    "config",
                    "continues",
                    "tools",
                    "connect_seconds",
                    "first_seconds",
                    "idle_seconds",
                    "total_seconds",
                ],
            },
        ),
        (_("Times"), {"classes": ["collapse"], "fields": ["tested_at", "test_ok", "created_at", "updated_at"]}),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Endpoint]:
        """Return all endpoints, or none for who may not see them: nobody else learns which ids exist."""
        rows = super().get_queryset(request)
        return rows if self.has_view_permission(request) else rows.none()

    @admin.action(description=_("Activate the selected endpoints"), permissions=["change"])
    def activate(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> None:
        """Activate."""
        for row in queryset:
            if row.was_never_well:
                warning = gettext("%(name)s has not passed a test as it stands.") % {"name": row.name}
                self.message_user(request, warning, messages.WARNING)
        self._switch(request, queryset, is_active=True)

    @admin.action(description=_("Deactivate the selected endpoints"), permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> None:
        """Deactivate."""
        self._switch(request, queryset, is_active=False)

    @admin.action(description=_("Try the selected endpoints with a real call"), permissions=["change"])
    def try_out(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> HttpResponseBase | None:
        """Call each endpoint once and say how it went."""
        for row in queryset[:_PROBES_MAX]:
            try:
                result = async_to_sync(probe)(config_of(row), seconds=15.0)
            except Misconfigured as error:
                row.note_test(is_ok=False)
                self.message_user(request, f"{row.name}: {_advice(error.code)}", messages.ERROR)
                continue
            row.note_test(is_ok=result.is_ok)
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
                    detail=" ".join(filter(None, (_advice(result.error_code or ""), result.vendor_message))),
                ),
                level,
            )
        return None

    def _switch(self, request: HttpRequest, queryset: QuerySet[Endpoint], *, is_active: bool) -> None:
        count = queryset.exclude(is_active=is_active).update(
            is_active=is_active, **({"is_draining": False} if is_active else {})
        )
        text = ngettext("%(count)d endpoint changed.", "%(count)d endpoints changed.", count) % {"count": count}
        self.message_user(request, text, messages.SUCCESS)
