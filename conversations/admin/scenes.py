"""Voice scenes: keys that only go in, what is missing, and the files of the vendor's demo in and out."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import get_language, gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldBooleanSwitchWidget

from conversations.admin.base import SiteFilter, chip, is_superuser, managed_site_ids
from conversations.admin.keys import SiteBoundAdmin, WriteOnlyKeysForm, key_field
from conversations.admin.sites import ReadableJSON
from conversations.db import tenant
from conversations.models import Site, VoiceScene
from conversations.voice.scene_check import check_scene
from conversations.voice.scene_files import SceneFileRefused, export_scene, import_scene, read_scene_file
from conversations.voice.scenes import ensure_callback_key, replace_callback_key
from providers.errors import Misconfigured
from providers.fields import keep_secret
from providers.rtc.client import endpoint_url

JSON_WIDGET = UnfoldAdminTextareaWidget(attrs={"rows": 18, "spellcheck": "false", "class": "font-mono"})


class SceneForm(WriteOnlyKeysForm):
    """A scene."""

    keys = ("access_key_id", "secret_key", "app_key")
    access_key_id = key_field(_("Account: AccessKey ID"))
    secret_key = key_field(_("Account: SecretKey"))
    app_key = key_field(_("RTC AppKey"))
    new_callback_key = forms.BooleanField(
        label=_("Make a new callback key"),
        required=False,
        widget=UnfoldBooleanSwitchWidget(),
        help_text=_("Rooms that run keep the old one. The platform is told the key with every start."),
    )
    icon = forms.CharField(
        label=_("icon"), required=False, max_length=100_000, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2})
    )
    voice_chat = forms.JSONField(
        label=_("StartVoiceChat body"),
        required=False,
        encoder=ReadableJSON,
        widget=JSON_WIDGET,
        help_text=_(
            "Passed on as it is; AppId, RoomId, TaskId, users, callback URL and its key are added at each start."
        ),
    )
    scene_config = forms.JSONField(
        label=_("More for the front end"),
        required=False,
        encoder=ReadableJSON,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4, "spellcheck": "false", "class": "font-mono"}),
    )

    class Meta:
        model = VoiceScene
        fields: Sequence[str] = (
            "site",
            "key",
            "name",
            "icon",
            "is_active",
            "rtc_app_id",
            "base_url",
            "region",
            "version",
            "callback_base_url",
            "max_minutes",
            "voice_chat",
            "scene_config",
        )

    def clean_voice_chat(self) -> dict[str, Any]:
        """Return the body, an object that can be stored."""
        return _stored_object(self.cleaned_data["voice_chat"])

    def clean_scene_config(self) -> dict[str, Any]:
        """Return the further keys, an object that can be stored."""
        return _stored_object(self.cleaned_data["scene_config"])

    def clean_base_url(self) -> str:
        """Return the address of the OpenAPI: scheme, host and port."""
        url: str = self.cleaned_data["base_url"].strip().rstrip("/")
        try:
            endpoint_url(url)
        except Misconfigured:
            raise forms.ValidationError(_("Write https://host[:port] and nothing more.")) from None
        return url

    def clean_callback_base_url(self) -> str:
        """Return the public base URL, if one is given."""
        url: str = self.cleaned_data["callback_base_url"].strip().rstrip("/")
        if url and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
            raise forms.ValidationError(_("Write http(s)://host[:port][/path] without query or fragment."))
        return url

    def save(self, commit: bool = True) -> VoiceScene:
        """Return the scene with its new keys, or with those it had."""
        for name in self.keys:
            if self.cleaned_data.get(name):
                keep_secret(self.instance, name, self.cleaned_data[name])
        if self.cleaned_data.get("new_callback_key"):
            replace_callback_key(self.instance)
        ensure_callback_key(self.instance)
        saved: VoiceScene = super().save(commit)
        return saved


def _stored_object(value: Any) -> dict[str, Any]:
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise forms.ValidationError(_("Write a JSON object."))
    text = json.dumps(value, ensure_ascii=False)
    if re.search(r"[\ud800-\udfff]|(?<!\\)(\\\\)*\\u0000", text):
        raise forms.ValidationError(_("There are characters in it that cannot be stored."))
    return value


@admin.register(VoiceScene)
class VoiceSceneAdmin(SiteBoundAdmin):
    """The scenes of a site: managers keep their own."""

    form = SceneForm
    manager_may = frozenset({"view", "add", "change"})
    superuser_may = frozenset({"view", "add", "change"})
    list_display = ("header", "site", "state", "health", "updated_at")
    list_display_links = ("header",)
    list_filter = (SiteFilter,)
    list_select_related = ("site",)
    list_before_template = "admin/conversations/voicescene/import.html"
    search_fields = ("key", "name")
    ordering = ("site", "key")
    actions = ["export_files"]
    readonly_fields = ("findings", "callback_mask", "created_at", "updated_at")
    fieldsets = (
        (None, {"fields": ("site", "key", "name", "icon", "is_active", "findings")}),
        (_("Keys"), {"fields": ("rtc_app_id", "app_key", "access_key_id", "secret_key")}),
        (_("Callback"), {"fields": ("callback_base_url", "callback_mask", "new_callback_key")}),
        (_("Scene"), {"fields": ("voice_chat", "scene_config", "max_minutes")}),
        (_("Platform"), {"classes": ["collapse"], "fields": ("base_url", "region", "version")}),
        (_("Times"), {"classes": ["collapse"], "fields": ("created_at", "updated_at")}),
    )

    def get_urls(self) -> list[URLPattern]:
        """Return the addresses, with the one that takes a file."""
        upload = self.admin_site.admin_view(require_POST(self.import_file))
        return [path("import/", upload, name="conversations_voicescene_import"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Return the list under the form that takes a file."""
        sites = _sites_of(request) if self.has_add_permission(request) else Site.objects.none()
        context = {"import_sites": sites.order_by("slug"), **(extra_context or {})}
        response: HttpResponse = super().changelist_view(request, context)
        return response

    def import_file(self, request: HttpRequest) -> HttpResponse:
        """Make or change a scene by a file of the vendor's demo."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        chosen, file = request.POST.get("site", ""), request.FILES.get("file")
        is_number = chosen.isascii() and chosen.isdigit() and len(chosen) < 19
        site = _sites_of(request).filter(pk=int(chosen)).first() if is_number else None
        if site is None or file is None:
            self.message_user(request, gettext("Choose a site and a file."), messages.ERROR)
            return HttpResponseRedirect(reverse("admin:conversations_voicescene_changelist"))
        key = request.POST.get("key", "").strip() or re.sub(r"\.json\Z", "", file.name or "")
        try:
            with tenant(site.pk):
                done = import_scene(site, key, read_scene_file(file.read()))
        except SceneFileRefused as error:
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(reverse("admin:conversations_voicescene_changelist"))
        except Misconfigured:
            self.message_user(request, gettext("A stored key cannot be read: enter it again."), messages.ERROR)
            return HttpResponseRedirect(reverse("admin:conversations_voicescene_changelist"))
        said = gettext("Imported.") if done.is_new else gettext("Changed by a file.")
        (self.log_addition if done.is_new else self.log_change)(request, done.scene, said)
        self.message_user(request, f"{done.scene.key}: {said}", messages.SUCCESS)
        for note in done.notes:
            self.message_user(request, note, messages.WARNING)
        return HttpResponseRedirect(reverse("admin:conversations_voicescene_change", args=[done.scene.pk]))

    @admin.action(description=_("Export the selected scenes, without keys"), permissions=["view"])
    def export_files(self, request: HttpRequest, queryset: QuerySet[VoiceScene]) -> HttpResponse:
        """Return the scene's file, or an archive of several."""
        files = {
            f"{scene.site.slug}-{scene.key}.json": json.dumps(export_scene(scene), ensure_ascii=False, indent=2)
            for scene in queryset.select_related("site")
        }
        if len(files) == 1:
            ((name, text),) = files.items()
            response = HttpResponse(text, content_type="application/json; charset=utf-8")
        else:
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
                for name, text in files.items():
                    zipped.writestr(name, text)
            name = "scenes.zip"
            response = HttpResponse(archive.getvalue(), content_type="application/zip")
        response.headers["Content-Disposition"] = "attachment; " + _file_name(name)
        return response

    @display(description=_("scene"), ordering="key", header=True)
    def header(self, scene: VoiceScene) -> list[str]:
        """Return the name over the id."""
        return [scene.name, scene.key]

    @display(description=_("state"), ordering="is_active")
    def state(self, scene: VoiceScene) -> SafeString:
        """Return whether the scene is offered."""
        return (
            chip("on", _("on"), {"on": "success"}) if scene.is_active else chip("off", _("off"), {"off": "danger"})
        )

    @display(description=_("check"))
    def health(self, scene: VoiceScene) -> SafeString:
        """Return how the check went, in a word."""
        levels = {problem.level for problem in check_scene(scene)}
        worst = "error" if "error" in levels else "warning" if levels else "ok"
        words = {"error": _("incomplete"), "warning": _("with remarks"), "ok": _("in order")}
        return chip(worst, words[worst], {"error": "danger", "warning": "warning", "ok": "success"})

    @display(description=_("check"))
    def findings(self, scene: VoiceScene) -> SafeString | str:
        """Return what is missing, a line each."""
        if scene.pk is None:
            return gettext("Save first.")
        language = "en" if (get_language() or "").startswith("en") else "zh-hans"
        lines = [(problem.level, problem.text(language)) for problem in check_scene(scene)]  # type: ignore[arg-type]  # one of the two we have
        if not lines:
            return gettext("Nothing is missing.")
        colours = {"error": "danger", "warning": "warning"}
        rows = [
            (chip(level, {"error": _("error"), "warning": _("remark")}[level], colours), text)
            for level, text in lines
        ]
        return format_html("<ul>{}</ul>", format_html_join("", "<li>{} {}</li>", rows))

    @display(description=_("Callback key"), empty_value="–")
    def callback_mask(self, scene: VoiceScene) -> str:
        """Return the mask of the key that the platform shows."""
        return scene.callback_key_mask


def _sites_of(request: HttpRequest) -> QuerySet[Site]:
    rows = Site.objects.all()
    return rows if is_superuser(request) else rows.filter(pk__in=managed_site_ids(request))


def _file_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
