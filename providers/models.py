"""The endpoints that staff register, and the revision that tells every worker of a change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import connections, models, router, transaction
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from providers.credentials import Secret, decrypt, encrypt, mask

REGISTRY_CHANNEL = "providers_registry"  # NOTIFY carries the new revision


class RegistryRevision(models.Model):
    """One row: a number that grows with every change of an endpoint, in the same transaction."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    revision = models.BigIntegerField(default=1)

    class Meta:
        db_table = "providers_registry_revision"
        constraints = [models.CheckConstraint(condition=Q(id=1), name="registry_revision_is_one_row")]

    def __str__(self) -> str:
        return str(self.revision)


def bump_revision(using: str = "default") -> int:
    """Return the new revision, having told the listeners; both become visible with the caller's commit."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            "INSERT INTO providers_registry_revision (id, revision) VALUES (1, 1) "
            "ON CONFLICT (id) DO UPDATE SET revision = providers_registry_revision.revision + 1 RETURNING revision"
        )
        revision = int(cursor.fetchone()[0])
        cursor.execute("SELECT pg_notify(%s, %s)", [REGISTRY_CHANNEL, str(revision)])
    return revision


class EndpointQuerySet(models.QuerySet["Endpoint"]):
    """A queryset whose writes bump the revision too, so that none of them can be forgotten."""

    def update(self, **kwargs: Any) -> int:
        """Update the rows and return how many."""
        with transaction.atomic(using=self.db):
            count = super().update(**kwargs)
            bump_revision(self.db)
        return count

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the rows and return Django's counts."""
        with transaction.atomic(using=self.db):
            counts = super().delete()
            bump_revision(self.db)
        return counts

    def bulk_create(self, objs: Iterable[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Insert the rows and return them."""
        with transaction.atomic(using=self.db):
            created = super().bulk_create(objs, *args, **kwargs)
            bump_revision(self.db)
        return created


class Endpoint(models.Model):
    """One model behind one URL with one key. Shared by all sites: only superusers see it."""

    class Dialect(models.TextChoices):
        """The language an endpoint speaks."""

        OPENAI = "openai", _("OpenAI compatible")
        SCRIPTED = "scripted", _("scripted (no model)")

    name = models.CharField(_("name"), max_length=100, unique=True)
    dialect = models.CharField(_("dialect"), max_length=16, choices=Dialect.choices, default=Dialect.OPENAI)
    base_url = models.CharField(
        _("base URL"),
        max_length=500,
        blank=True,
        help_text=_("With or without /v1, for example https://api.example.com/v1"),
    )
    model = models.CharField(_("model"), max_length=200, blank=True)
    api_key_encrypted = models.TextField(blank=True, default="", editable=False)
    api_key_mask = models.CharField(_("API key"), max_length=20, blank=True, default="", editable=False)
    is_active = models.BooleanField(_("active"), default=True)
    priority = models.PositiveSmallIntegerField(
        _("priority"),
        default=10,
        validators=[MaxValueValidator(1000)],
        help_text=_("Lower numbers are tried first; higher ones are the reserve."),
    )
    weight = models.PositiveSmallIntegerField(
        _("weight"),
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text=_("The share of the work among endpoints of one priority."),
    )
    params = models.JSONField(
        _("parameters"),
        default=dict,
        blank=True,
        help_text=_('Added to every request, for example {"temperature": 0.7, "max_tokens": 2000}'),
    )
    # Seconds; empty means the PROVIDER_* setting.
    connect_seconds = models.FloatField(_("connect clock, seconds"), null=True, blank=True)
    first_seconds = models.FloatField(_("first payload clock, seconds"), null=True, blank=True)
    idle_seconds = models.FloatField(_("idle clock, seconds"), null=True, blank=True)
    total_seconds = models.FloatField(_("whole reply clock, seconds"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = EndpointQuerySet.as_manager()

    class Meta:
        db_table = "providers_endpoint"
        verbose_name = _("endpoint")
        verbose_name_plural = _("endpoints")
        ordering = ["priority", "id"]
        constraints = [
            models.CheckConstraint(condition=Q(dialect__in=["openai", "scripted"]), name="endpoint_dialect"),
            models.CheckConstraint(condition=Q(weight__gte=1, weight__lte=1000), name="endpoint_weight"),
            models.CheckConstraint(condition=Q(priority__lte=1000), name="endpoint_priority"),
            models.CheckConstraint(
                condition=~Q(name="") & (~Q(dialect="openai") | (~Q(base_url="") & ~Q(model=""))),
                name="endpoint_openai_has_url_and_model",
            ),
            *(
                models.CheckConstraint(
                    condition=Q(**{f"{field}__isnull": True}) | Q(**{f"{field}__gt": 0}), name=f"endpoint_{field}"
                )
                for field in ("connect_seconds", "first_seconds", "idle_seconds", "total_seconds")
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def set_api_key(self, key: str) -> None:
        """Take a new key: keep its ciphertext and its mask, nothing else. Does not save."""
        self.api_key_encrypted = encrypt(key)
        self.api_key_mask = mask(key)

    def api_key(self) -> Secret:
        """Return the key. Raises Misconfigured when it was encrypted with a key we do not have."""
        return decrypt(self.api_key_encrypted)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the row and bump the revision in one transaction."""
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            super().save(*args, **kwargs)
            bump_revision(using)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Delete the row and bump the revision in one transaction."""
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            counts = super().delete(*args, **kwargs)
            bump_revision(using)
        return counts
