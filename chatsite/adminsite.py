"""The admin site itself: what it shows outside the lists of one model."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet, TextField
from django.db.models.functions import Cast
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import URLPattern
from django.utils.translation import gettext
from unfold.forms import AuthenticationForm
from unfold.sites import UnfoldAdminSite

from conversations.errors import Limited
from conversations.tenancy.throttle import spend_sign_in


class SignInForm(AuthenticationForm):
    """Signs staff in; guesses count together with those at the API."""

    def clean(self) -> dict[str, Any]:
        """Return the cleaned data, unless somebody tries too many passwords."""
        address = self.request.META.get("REMOTE_ADDR", "") if self.request else ""
        try:
            spend_sign_in(self.cleaned_data.get("username", ""), address)
        except Limited as error:
            raise ValidationError(gettext("Too many attempts. Wait a minute and try again.")) from error
        data: dict[str, Any] = super().clean()
        return data


class ChatAdminSite(UnfoldAdminSite):
    """Shows a person only traces of rows that they may still see."""

    login_form = SignInForm

    def get_urls(self) -> list[URLPattern]:
        """Return Django's addresses without "view on site", which would tell existing rows from missing ones."""
        return [url for url in super().get_urls() if getattr(url, "name", None) != "view_on_site"]

    def get_log_entries(self, request: HttpRequest) -> QuerySet[LogEntry]:
        """Return the log of rows that this person may see: having done something once is no right to its name."""
        entries = LogEntry.objects.select_related("content_type", "user")
        if request.user.is_active and getattr(request.user, "is_superuser", False):
            return entries
        visible = Q(pk__in=[])
        for model, model_admin in self._registry.items():
            if model_admin.has_view_permission(request):
                rows = model_admin.get_queryset(request).order_by()
                visible |= Q(
                    content_type=ContentType.objects.get_for_model(model),
                    object_id__in=rows.annotate(pk_text=Cast("pk", TextField())).values("pk_text"),
                )
        return entries.filter(visible)


ICONS = {
    "conversations.site": "storefront",
    "conversations.membership": "group",
    "conversations.conversation": "chat",
    "conversations.document": "menu_book",
    "conversations.pagesource": "web",
    "conversations.sitetool": "build",
    "conversations.generation": "receipt_long",
    "conversations.voicescene": "record_voice_over",
    "conversations.voicesession": "graphic_eq",
    "conversations.user": "person",
    "conversations.internalcaller": "key",
    "conversations.worker": "dns",
    "providers.endpoint": "smart_toy",
}
"""The icon and the order of each model in the sidebar; others come after them."""


def title(request: HttpRequest) -> str:
    """Return the name over the sidebar."""
    return gettext("Chat administration")


def favicon(request: HttpRequest) -> str:
    """Return the address of the icon, the chat page's own."""
    return static("chat/mark.svg")


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the sidebar: what this person may see, in the order of the work rather than of the alphabet."""
    order = list(ICONS)
    entries = [
        (model["model"]._meta.label_lower, model)
        for app in admin.site.get_app_list(request)
        for model in app["models"]
        if model["admin_url"]
    ]
    entries.sort(key=lambda entry: order.index(entry[0]) if entry[0] in order else len(order))
    items = []
    for label, model in entries:
        item = {"title": model["name"], "link": model["admin_url"], "icon": ICONS.get(label, "database")}
        count_waiting = getattr(admin.site.get_model_admin(model["model"]), "count_waiting", None)
        if count_waiting is not None and (waiting := count_waiting(request)):
            item |= {"badge": str(waiting), "badge_variant": "warning"}
        items.append(item)
    return [{"title": "", "items": items}] if items else []
