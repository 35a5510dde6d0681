"""Sites and their settings. A manager edits the settings of their own site; its slug belongs to superusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from conversations.admin.base import ScopedAdmin, chip, is_superuser
from conversations.admin.grants import endpoints_of_site
from conversations.context.offers import known_tools
from conversations.models import Site
from conversations.models.site_settings import (
    APOLOGY_MAX_CHARS,
    DEFAULTS,
    INTEGER_BOUNDS,
    PROMPT_MAX_CHARS,
    validate_site_settings,
)

PREFIX = "setting_"


class ReadableJSON(json.JSONEncoder):
    """Indents, and leaves Chinese as it is."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "indent": 2, "ensure_ascii": False})


class SiteForm(forms.ModelForm):
    """A field for each setting; they are stored together, and only where they differ from the default."""

    setting_system_prompt = forms.CharField(
        label=_("System prompt"),
        required=False,
        strip=False,
        max_length=PROMPT_MAX_CHARS,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 8}),
        help_text=_("Tells the model who it is and how it should answer; sent before each conversation."),
    )
    setting_history_messages = forms.IntegerField(
        label=_("Messages remembered"),
        min_value=INTEGER_BOUNDS["history_messages"][0],
        max_value=INTEGER_BOUNDS["history_messages"][1],
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text=_("How many of the latest messages the model is shown with each question."),
    )
    setting_context_reuse_seconds = forms.JSONField(
        label=_("Reuse of conversations"),
        encoder=ReadableJSON,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 8, "spellcheck": "false", "class": "font-mono"}),
        help_text=_(
            "Seconds since the last message within which a context goes on in the same conversation: "
            "-1 for ever, 0 never. Types that are not listed behave as “general”."
        ),
    )
    setting_retention_days = forms.IntegerField(
        label=_("Days kept"),
        min_value=INTEGER_BOUNDS["retention_days"][0],
        max_value=INTEGER_BOUNDS["retention_days"][1],
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text=_(
            "Conversations that nobody has touched for so many days are erased; 0 keeps them. "
            "Deleted ones are erased after 30 days."
        ),
    )
    setting_stand_in = forms.BooleanField(
        label=_("Stand-in without a model"),
        required=False,
        widget=UnfoldBooleanSwitchWidget(),
        help_text=_("While no model is configured, a scripted stand-in answers, and says so."),
    )
    setting_midstream_failover = forms.ChoiceField(
        label=_("When a model fails in mid-reply"),
        choices=[
            ("off", _("End the reply as failed, with what it has")),
            ("on", _("Another model goes on, in the way that suits it")),
            ("prefix", _("Another model goes on; it is shown the text so far as its own, if it can be")),
            ("instruction", _("Another model goes on; it is told to, in words")),
        ],
        widget=UnfoldAdminSelectWidget(),
        help_text=_("Needs a second endpoint."),
    )
    setting_member_keys = forms.BooleanField(
        label=_("Members' own keys"),
        required=False,
        widget=UnfoldBooleanSwitchWidget(),
        help_text=_("Members may keep a key of their own for an endpoint; it is used for their replies alone."),
    )
    setting_voice_max_minutes = forms.IntegerField(
        label=_("Longest voice room, in minutes"),
        min_value=INTEGER_BOUNDS["voice_max_minutes"][0],
        max_value=INTEGER_BOUNDS["voice_max_minutes"][1],
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text=_("Rooms that nobody has stopped by then are stopped; a scene may say otherwise."),
    )
    setting_knowledge = forms.ChoiceField(
        label=_("Use of documents"),
        choices=[
            ("off", _("None")),
            ("before", _("Search them for each question, and show the model what was found")),
            ("tool", _("Let the model search them by itself; needs a model with tools")),
        ],
        widget=UnfoldAdminSelectWidget(),
        help_text=_("Whether answers lean on the documents of this site."),
    )
    setting_tools = forms.MultipleChoiceField(
        label=_("Tools"),
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text=_(
            "What the model may ask for by itself; needs a model with tools. More are made under “Tools”."
        ),
    )
    setting_tool_rounds = forms.IntegerField(
        label=_("Rounds of tools"),
        min_value=INTEGER_BOUNDS["tool_rounds"][0],
        max_value=INTEGER_BOUNDS["tool_rounds"][1],
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text=_("How often the model may ask for tools in one reply; then it is told to answer."),
    )
    setting_voice_apology = forms.CharField(
        label=_("Spoken apology"),
        required=False,
        max_length=APOLOGY_MAX_CHARS,
        widget=UnfoldAdminTextInputWidget(),
        help_text=_("What is said in a voice room when a reply fails; empty: nothing."),
    )
    setting_ascii_stream = forms.BooleanField(
        label=_("ASCII streams"),
        required=False,
        widget=UnfoldBooleanSwitchWidget(),
        help_text=_("Escape all non-ASCII characters, for clients that decode each chunk by itself."),
    )

    class Meta:
        model = Site
        fields: Sequence[str] = ("name", "slug", "locale", "is_active")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(field := self.fields.get(f"{PREFIX}tools"), forms.MultipleChoiceField):
            field.choices = [(name, name) for name in known_tools(self.instance.pk)]
        for key, default in DEFAULTS.items():
            if field := self.fields.get(PREFIX + key):
                field.initial = self.instance.settings.get(key, default)

    def clean(self) -> dict[str, Any]:
        """Return the cleaned data; each setting that is not understood is reported at its own field."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        before = self.instance.settings
        settings: dict[str, Any] = {}
        for key, default in DEFAULTS.items():
            if PREFIX + key not in self.fields:  # shown read-only
                if key in before:
                    settings[key] = before[key]
            elif PREFIX + key in data:
                value = data[PREFIX + key]
                try:
                    validate_site_settings({key: value})
                except ValueError as error:
                    self.add_error(PREFIX + key, gettext(str(error).removeprefix(f"{key}: ")))
                    continue
                if key in before or value != default:
                    settings[key] = value
        if not self.errors:
            self.instance.settings = settings
        return data

    def _post_clean(self) -> None:
        # The model checks `settings` as a whole and has no field here to blame, so it is asked only when the
        # settings above are sound.
        if not any(name.startswith(PREFIX) for name in self.errors):
            super()._post_clean()  # type: ignore[misc]  # Django has it, the stubs do not


@admin.register(Site)
class SiteAdmin(ScopedAdmin):
    """The site's name and settings."""

    site_path = "pk"
    manager_may = frozenset({"view", "change"})
    superuser_may = frozenset({"view", "add", "change"})
    form = SiteForm
    list_display = ("header", "slug", "locale", "state", "created_at")
    list_display_links = ("header",)
    search_fields = ("name", "slug")
    ordering = ("slug",)
    readonly_fields = ("created_at", "endpoints")
    fieldsets = (
        (None, {"fields": ("name", "slug", "locale", "is_active", "created_at")}),
        (
            _("Answers"),
            {
                "fields": (
                    "setting_system_prompt",
                    "setting_history_messages",
                    "setting_stand_in",
                    "setting_midstream_failover",
                    "setting_knowledge",
                    "setting_tools",
                    "setting_tool_rounds",
                )
            },
        ),
        (_("Models"), {"fields": ("endpoints", "setting_member_keys")}),
        (_("Voice"), {"fields": ("setting_voice_max_minutes", "setting_voice_apology")}),
        (
            _("Conversations"),
            {"fields": ("setting_context_reuse_seconds", "setting_retention_days", "setting_ascii_stream")},
        ),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Site | None = None) -> Sequence[str]:
        """Return what this person may not change: a manager, neither the slug nor whether the site is on."""
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if is_superuser(request) else (*fields, "slug", "is_active")

    @display(description=_("endpoints it may use"))
    def endpoints(self, site: Site) -> SafeString:
        """Return the endpoints, each with whose key is used; they are granted on the endpoint's page."""
        return endpoints_of_site(site)

    @display(description=_("name"), ordering="name")
    def header(self, site: Site) -> str:
        """Return the name."""
        return site.name

    @display(description=_("state"), ordering="is_active")
    def state(self, site: Site) -> SafeString:
        """Return whether the site is on, as a coloured word."""
        return (
            chip("on", _("on"), {"on": "success"}) if site.is_active else chip("off", _("off"), {"off": "danger"})
        )
