"""Whose endpoint and whose key, where staff look: on the endpoint's page, the site's, and the member's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.db.models import Q
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.admin import TabularInline
from unfold.widgets import UnfoldBooleanSwitchWidget

from conversations.models import EndpointGrant, MemberKey, Membership, Site
from conversations.models.grants import OwnKey
from providers.admin import KeyField
from providers.models import Endpoint


def key_words(row: OwnKey | None, endpoint: Endpoint) -> str:
    """Return what may be said of somebody's own key: its mask, and whether it is good for this endpoint."""
    if row is None or not row.api_key_encrypted:
        return gettext("the endpoint's key")
    if row.is_stale_for(endpoint):
        return gettext("%(mask)s, entered for another host: not used") % {"mask": row.api_key_mask}
    return row.api_key_mask


class GrantForm(forms.ModelForm):
    """A site, and a key field that only takes."""

    api_key = KeyField(label=_("own key"))
    clear_api_key = forms.BooleanField(
        label=_("Remove the stored key"), required=False, widget=UnfoldBooleanSwitchWidget()
    )

    class Meta:
        model = EndpointGrant
        fields = ["site"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.fields["site"].disabled = True

    def clean(self) -> dict[str, Any]:
        """Return the data; a new key and none at once is neither."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if data.get("api_key") and data.get("clear_api_key"):
            self.add_error("clear_api_key", _("Either a new key or none."))
        return data

    def save(self, commit: bool = True) -> EndpointGrant:
        """Return the grant with its new key, or with the one it had."""
        if self.cleaned_data.get("api_key"):
            self.instance.set_own_key(self.cleaned_data["api_key"], self.instance.endpoint)
        elif self.cleaned_data.get("clear_api_key"):
            self.instance.set_own_key("", self.instance.endpoint)
        saved: EndpointGrant = super().save(commit)
        return saved


class GrantInline(TabularInline):
    """The sites of an endpoint, for whoever may see or change the endpoint itself."""

    model = EndpointGrant
    form = GrantForm
    extra = 0
    readonly_fields = ("key_in_use", "updated_at")
    ordering = ("site__slug",)

    def get_fields(self, request: HttpRequest, obj: Endpoint | None = None) -> Sequence[str]:
        """Return the columns; a field that takes keys is for those who may change them."""
        entry = ("api_key", "clear_api_key") if self.has_change_permission(request, obj) else ()
        return ("site", "key_in_use", *entry, "updated_at")

    def key_in_use(self, grant: EndpointGrant) -> str:
        """Return the mask of the site's own key, or that it has none."""
        return key_words(grant, grant.endpoint) if grant.pk else "–"

    key_in_use.short_description = _("key in use")  # type: ignore[attr-defined]  # how the admin names a column

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the person may see endpoints."""
        return request.user.has_perm("providers.view_endpoint") or self.has_change_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the person may change endpoints."""
        return request.user.has_perm("providers.change_endpoint")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the person may change, or make, endpoints."""
        return self.has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the person may change endpoints."""
        return self.has_change_permission(request, obj)


def endpoints_of_site(site: Site) -> SafeString:
    """Return the active endpoints that a site may use, each with whose key is used there."""
    if not site.pk:
        return _lines([])
    grants = {row.endpoint_id: row for row in EndpointGrant.objects.for_site(site)}
    usable = Endpoint.objects.filter(Q(is_shared=True) | Q(pk__in=grants), is_active=True)
    return _lines([(row.name, key_words(grants.get(row.pk), row)) for row in usable])


def keys_of_member(membership: Membership) -> SafeString:
    """Return where a member has a key of their own, as masks."""
    if not membership.pk:
        return _lines([])
    rows = MemberKey.objects.visible_to(membership).select_related("endpoint").order_by("endpoint__priority", "pk")
    return _lines([(row.endpoint.name, key_words(row, row.endpoint)) for row in rows])


def _lines(rows: list[tuple[str, str]]) -> SafeString:
    return format_html_join("", "<div>{}: {}</div>", rows) if rows else SafeString("–")
