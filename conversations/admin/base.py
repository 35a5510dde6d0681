"""Who sees which rows in the admin, and may do what: decided here, for every ModelAdmin of this room.

A staff member sees the rows of the sites they manage (an approved `manager` membership of an active site), and
those alone; a superuser sees all. Rights follow the role: permission rows given by hand mean nothing here.
Every list, detail page, search, autocomplete, popup, action and history goes through `get_queryset`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal

from django.contrib import admin
from django.db import models
from django.forms import ModelChoiceField
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin
from unfold.decorators import display

from conversations.models import Membership, Site, User

Right = Literal["view", "add", "change"]


def managed_site_ids(request: HttpRequest) -> frozenset[int]:
    """Return the ids of the sites this staff member manages now; looked up once per request."""
    known: frozenset[int] | None = getattr(request, "_managed_site_ids", None)
    if known is None:
        user = request.user
        known = frozenset(
            Membership.across_sites.filter(
                user_id=user.pk,
                role=Membership.Role.MANAGER,
                status=Membership.Status.APPROVED,
                site__is_active=True,
            ).values_list("site_id", flat=True)
            if isinstance(user, User) and user.is_active and user.is_staff
            else ()
        )
        request._managed_site_ids = known  # type: ignore[attr-defined]  # kept with its request
    return known


def is_superuser(request: HttpRequest) -> bool:
    """Return whether the person sees every site."""
    user = request.user
    return isinstance(user, User) and user.is_active and user.is_superuser


def column(field: str, label: Any) -> Callable[[Any, Any], Any]:
    """Return a column that shows a field under a label of its own, sorted as the field is; times to the ms."""

    @display(description=label, ordering=field)
    def show(model_admin: Any, row: Any) -> Any:
        value = getattr(row, field)
        if isinstance(value, datetime):
            return timezone.localtime(value).isoformat(" ", "milliseconds")[:23]
        return value

    show.__name__ = f"{field}_column"
    return show


def chip(value: str, text: Any, colours: Mapping[str, str]) -> SafeString:
    """Return a word on a coloured ground, for a closed set of values."""
    return mark_safe(  # noqa: S308  # rendered with escaping
        render_to_string("unfold/helpers/label.html", {"type": colours.get(value, ""), "text": text})
    )


class SiteFilter(admin.SimpleListFilter):
    """Offers the sites this person may see; absent when that is only one."""

    title = _("site")
    parameter_name = "site"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choices."""
        sites = (
            Site.objects.all() if is_superuser(request) else Site.objects.filter(pk__in=managed_site_ids(request))
        )
        return [(str(pk), name) for pk, name in sites.values_list("pk", "name")]

    def has_output(self) -> bool:
        """Return whether there is something to choose."""
        return len(self.lookup_choices) > 1

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        """Return the rows of the chosen site; a site that was not offered has none."""
        value = self.value()
        if value is None:
            return queryset
        offered = {str(pk) for pk, _name in self.lookup_choices}
        return queryset.filter(site_id=int(value)) if value in offered else queryset.none()


class ScopedAdmin(ModelAdmin):
    """Base of every admin whose rows belong to a site.

    `site_path` is the field that holds the site's id. What a manager and a superuser may do with a row they see
    is in `manager_may` and `superuser_may`. Nothing is deleted here
    unless an admin says otherwise: accounts and sites are switched off instead.
    """

    site_path: ClassVar[str] = "site_id"
    manager_may: ClassVar[frozenset[Right]] = frozenset({"view"})
    superuser_may: ClassVar[frozenset[Right]] = frozenset({"view"})
    list_per_page = 50
    warn_unsaved_form = True

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        """Return the rows this person may see."""
        rows = super().get_queryset(request)
        if is_superuser(request):
            return rows
        return rows.filter(**{f"{self.site_path}__in": managed_site_ids(request)})

    def _may(self, request: HttpRequest, right: Right, row: models.Model | None = None) -> bool:
        if is_superuser(request):
            return right in self.superuser_may
        sites = managed_site_ids(request)
        if right not in self.manager_may or not sites:
            return False
        return not isinstance(row, self.model) or row.serializable_value(self.site_path) in sites

    def has_view_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Return whether this person may see the row, or any row."""
        return self._may(request, "view", obj)

    def has_add_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Return whether this person may add a row."""
        return self._may(request, "add")

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Return whether this person may change the row, or any row."""
        return self._may(request, "change", obj)

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        """Return no."""
        return False

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Return whether this person sees the app at all."""
        return self._may(request, "view")

    def get_list_display(self, request: HttpRequest) -> Sequence[Any]:
        """Return the columns; the site is one of them for whoever sees several."""
        columns = list(super().get_list_display(request))
        several = is_superuser(request) or len(managed_site_ids(request)) > 1
        return columns if several else [column for column in columns if column != "site"]

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> ModelChoiceField | None:
        """Return a field that offers, and accepts, only rows this person may see."""
        if "queryset" not in kwargs:
            related = db_field.remote_field.model
            target = self.admin_site._registry.get(related)
            if target is not None and target.has_view_permission(request):
                kwargs["queryset"] = target.get_queryset(request)
            else:
                kwargs["queryset"] = related._default_manager.none()
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


class SuperuserAdmin(ScopedAdmin):
    """Base of every admin whose rows belong to no site: superusers alone see them."""

    manager_may = frozenset()

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        """Return all rows, or none."""
        rows = super(ScopedAdmin, self).get_queryset(request)
        return rows if is_superuser(request) else rows.none()
