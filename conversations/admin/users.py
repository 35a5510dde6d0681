"""People across all sites: superusers alone. What somebody may do in a site is said by their memberships."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission
from django.db.models import ManyToManyField, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from conversations.admin.base import SuperuserAdmin, chip
from conversations.models import User

KIND_COLOURS = {"superuser": "danger", "staff": "primary"}

if admin.site.is_registered(Group):
    # Rights follow the role in a site; groups would promise what nothing keeps.
    admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(SuperuserAdmin, DjangoUserAdmin):  # type: ignore[misc]  # both bases are ModelAdmins
    """Accounts: names, passwords, and whether somebody is staff."""

    superuser_may = frozenset({"view", "add", "change"})
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("header", "kind", "sites", "is_active", "last_login", "date_joined")
    list_display_links = ("header",)
    list_filter = ("is_active", "is_staff", "is_superuser")
    search_fields = ("username", "first_name", "last_name", "email")
    ordering = ("-date_joined", "-pk")
    filter_horizontal = ()
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        (_("Personal info"), {"fields": ("first_name", "last_name", "email")}),
        (_("Permissions"), {"fields": ("is_active", "is_staff", "is_superuser", "user_permissions")}),
        (_("Important dates"), {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"classes": ("wide",), "fields": ("username", "password1", "password2")}),)

    def formfield_for_manytomany(
        self, db_field: ManyToManyField[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> Any:
        """Return a field that offers the permissions that mean something: those on endpoints."""
        if db_field.name == "user_permissions":
            kwargs["queryset"] = Permission.objects.filter(
                content_type__app_label="providers", content_type__model="endpoint"
            ).select_related("content_type")
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """Return the users with the sites they belong to."""
        return super().get_queryset(request).prefetch_related("memberships__site")

    @display(description=_("user"), ordering="username", header=True)
    def header(self, user: User) -> list[str]:
        """Return the name over the user name, with an initial."""
        name = user.get_full_name() or user.get_username()
        return [name, user.get_username(), name[:1]]

    @display(description=_("kind"), ordering="is_superuser")
    def kind(self, user: User) -> SafeString:
        """Return what the account is, as a coloured word."""
        if user.is_superuser:
            return chip("superuser", _("superuser"), KIND_COLOURS)
        return chip("staff", _("staff"), KIND_COLOURS) if user.is_staff else chip("user", _("user"), KIND_COLOURS)

    @display(description=_("sites"), empty_value="–")
    def sites(self, user: User) -> str | None:
        """Return the names of the sites the person belongs to."""
        return ", ".join(membership.site.name for membership in user.memberships.all()) or None
