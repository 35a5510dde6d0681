"""Sites, people, who belongs where, and their sign-ins."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.site_settings import setting_of, validate_site_settings


class Site(models.Model):
    """A tenant. Shared by nature: its row is what the others are scoped by."""

    slug = models.CharField(
        _("slug"), max_length=64, unique=True, validators=[RegexValidator(r"^[a-z0-9][a-z0-9-]*\Z")]
    )
    name = models.CharField(_("name"), max_length=200)
    locale = models.CharField(_("language"), max_length=10, choices=[("zh-hans", "简体中文"), ("en", "English")])
    is_active = models.BooleanField(_("active"), default=True)
    settings = models.JSONField(_("settings"), default=dict, blank=True, help_text="docs/settings.md")
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        db_table = "conversations_site"
        verbose_name = _("site")
        verbose_name_plural = _("sites")
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(condition=models.Q(locale__in=["zh-hans", "en"]), name="site_locale_is_known")
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Refuse settings that the product would not understand, naming the key."""
        try:
            validate_site_settings(self.settings)
        except ValueError as error:
            raise ValidationError({"settings": str(error)}) from error


class User(AbstractUser):
    """A person. What they may do in a site is said by their memberships."""

    class Meta:
        db_table = "conversations_user"
        verbose_name = _("user")
        verbose_name_plural = _("users")


class Membership(TenantModel):
    """A person in one site; the owner of conversations and the subject of access tokens."""

    class Status(models.TextChoices):
        """Whether the person may chat."""

        PENDING = "pending", _("pending")
        APPROVED = "approved", _("approved")
        REJECTED = "rejected", _("rejected")
        SUSPENDED = "suspended", _("suspended")

    class Role(models.TextChoices):
        """What the person may do in the site."""

        MEMBER = "member", _("member")
        ANALYST = "analyst", _("analyst")
        MANAGER = "manager", _("manager")

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="memberships", verbose_name=_("site"))
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships", verbose_name=_("user"))
    role = models.CharField(_("role"), max_length=16, choices=Role.choices, default=Role.MEMBER)
    nickname = models.CharField(_("nickname"), max_length=100, blank=True)
    status = models.CharField(_("status"), max_length=16, choices=Status.choices, default=Status.PENDING)
    decided_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", verbose_name=_("decided by")
    )
    decided_at = models.DateTimeField(_("decided"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="pk")

    class Meta(TenantModel.Meta):
        db_table = "conversations_membership"
        verbose_name = _("membership")
        verbose_name_plural = _("memberships")
        constraints = [
            models.UniqueConstraint(fields=["site", "user"], name="membership_once_per_site"),
            models.UniqueConstraint(fields=["site", "id"], name="membership_site_and_id"),  # for composite keys
            models.CheckConstraint(
                condition=models.Q(status__in=["pending", "approved", "rejected", "suspended"]),
                name="membership_status_is_known",
            ),
            models.CheckConstraint(
                condition=models.Q(role__in=["member", "analyst", "manager"]), name="membership_role_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.nickname or self.user} @ {self.site}"

    @property
    def is_approved(self) -> bool:
        """Whether this person may chat here now: approved, in an active site, with an active account."""
        return self.status == self.Status.APPROVED and self.site.is_active and self.user.is_active


class Login(TenantModel):
    """One sign-in of one membership: the family of its tokens. Ended, all of them are refused.

    Only the newest refresh token is good; using an older one ends the family (API.md 1).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+")
    membership = models.ForeignKey(Membership, on_delete=models.CASCADE, related_name="logins")
    refresh_jti = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_login"
        indexes = [
            # Read by the sweeper, which forgets sign-ins that ran out.
            models.Index(fields=["expires_at"], name="login_by_expiry"),
        ]

    def __str__(self) -> str:
        return f"login {self.pk}"


class StreamTicket(TenantModel):
    """A single-use pass for clients that cannot send headers; only the hash of its text is kept."""

    digest = models.CharField(max_length=64, unique=True)
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+")
    login = models.ForeignKey(Login, on_delete=models.CASCADE, related_name="+")
    message_id = models.BigIntegerField(null=True)
    expires_at = models.DateTimeField()

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="login__membership_id")

    class Meta(TenantModel.Meta):
        db_table = "conversations_stream_ticket"

    def __str__(self) -> str:
        return f"ticket {self.pk}"


class RateWindow(models.Model):
    """How often something was done in one minute; shared by all workers, worthless after that minute."""

    key = models.CharField(max_length=160)
    minute = models.BigIntegerField()
    uses = models.IntegerField()

    class Meta:
        db_table = "conversations_rate_window"
        constraints = [models.UniqueConstraint(fields=["key", "minute"], name="rate_window_once")]

    def __str__(self) -> str:
        return f"{self.key} {self.minute}"


def site_setting(site: Site, key: str) -> Any:
    """Return one validated setting of a site, or its default."""
    return setting_of(site.settings, key)
