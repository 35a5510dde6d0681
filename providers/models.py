"""The endpoints that staff register, and the revision that tells every worker of a change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import connections, models, router, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from providers.clients.dashscope_app import BASE_URL
from providers.credentials import Secret, decrypt, encrypt, mask

REGISTRY_CHANNEL = "providers_registry"  # NOTIFY carries the new revision
REVISIONS_KEPT = 20
WAYS_TO_CONTINUE = [
    ("prefix", _("handed the text as the beginning of its own answer")),
    ("instruction", _("asked in words")),
    ("none", _("not at all")),
]


class RegistryRevision(models.Model):
    """One row: a number that grows with every change of an endpoint, in the same transaction."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    revision = models.BigIntegerField(default=1)

    class Meta:
        db_table = "providers_registry_revision"
        constraints = [models.CheckConstraint(condition=Q(id=1), name="registry_revision_is_one_row")]

    def __str__(self) -> str:
        return str(self.revision)


def bump_revision(using: str = "default", *, are_endpoints_changed: bool = True) -> int:
    """Return the new revision, having told the listeners; both become visible with the caller's commit.

    The endpoints are kept with it, so that it can be brought back, unless it is not they that changed.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(
            "INSERT INTO providers_registry_revision (id, revision) VALUES (1, 1) "
            "ON CONFLICT (id) DO UPDATE SET revision = providers_registry_revision.revision + 1 RETURNING revision"
        )
        revision = int(cursor.fetchone()[0])
        if are_endpoints_changed:
            cursor.execute(
                "INSERT INTO providers_endpoint_revision (revision, endpoints, created_at)"
                " SELECT %s, coalesce(jsonb_agg(to_jsonb(endpoint) ORDER BY endpoint.id), '[]'), clock_timestamp()"
                "   FROM providers_endpoint endpoint"
                " ON CONFLICT (revision) DO UPDATE"
                "    SET endpoints = excluded.endpoints, created_at = excluded.created_at",
                [revision],
            )
            # By count: revisions at which something else changed are not among them.
            cursor.execute(
                "DELETE FROM providers_endpoint_revision WHERE revision <="
                " (SELECT revision FROM providers_endpoint_revision ORDER BY revision DESC OFFSET %s LIMIT 1)",
                [REVISIONS_KEPT],
            )
        cursor.execute("SELECT pg_notify(%s, %s)", [REGISTRY_CHANNEL, str(revision)])
    return revision


class KeyedModel(models.Model):
    """A row with one secret: its ciphertext, and the mask that may be shown. `rotate_keys` finds them all."""

    api_key_encrypted = models.TextField(blank=True, default="", editable=False)
    api_key_mask = models.CharField(_("API key"), max_length=20, blank=True, default="", editable=False)

    class Meta:
        abstract = True

    def set_api_key(self, key: str) -> None:
        """Take a new key: keep its ciphertext and its mask, nothing else. Does not save."""
        self.api_key_encrypted = encrypt(key)
        self.api_key_mask = mask(key)

    def api_key(self) -> Secret:
        """Return the key. Raises Misconfigured when it was encrypted with a key we do not have."""
        return decrypt(self.api_key_encrypted)


class EndpointRevision(models.Model):
    """All endpoints as they stood at one revision, so that it can be brought back; keys as ciphertext only."""

    revision = models.BigIntegerField(primary_key=True)
    endpoints = models.JSONField()
    created_at = models.DateTimeField()

    class Meta:
        db_table = "providers_endpoint_revision"
        ordering = ["-revision"]

    def __str__(self) -> str:
        return str(self.revision)


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


class Endpoint(KeyedModel):
    """One model behind one URL with one key of its own. Who else has a key for it is not known here."""

    class Dialect(models.TextChoices):
        """The language an endpoint speaks."""

        OPENAI = "openai", _("OpenAI compatible")
        DASHSCOPE_APP = "dashscope_app", _("DashScope application")
        DECLARATIVE = "declarative", _("any API, by configuration")
        SCRIPTED = "scripted", _("scripted (no model)")

    name = models.CharField(_("name"), max_length=100, unique=True)
    dialect = models.CharField(_("dialect"), max_length=16, choices=Dialect.choices, default=Dialect.OPENAI)
    base_url = models.CharField(
        _("base URL"),
        max_length=500,
        blank=True,
        help_text=_("With or without /v1, for example https://api.example.com/v1"),
    )
    # Of a DashScope application: its id.
    model = models.CharField(_("model"), max_length=200, blank=True)
    is_active = models.BooleanField(_("active"), default=True)
    is_shared = models.BooleanField(
        _("for every site"),
        default=True,
        db_default=True,
        help_text=_("Off: only the sites listed below may use it."),
    )
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
    # None is no limit; each worker takes its share (docs/providers.md).
    concurrency_max = models.PositiveIntegerField(
        _("replies at once"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(1_000_000)],
        help_text=_("At most so many replies at once, all workers together; empty: no limit."),
    )
    requests_per_minute = models.PositiveIntegerField(
        _("requests per minute"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(10_000_000)],
        help_text=_("At most so many requests in any minute, all workers together; empty: no limit."),
    )
    input_micros_per_million = models.PositiveBigIntegerField(
        _("price of a million input tokens, millionths"),
        null=True,
        blank=True,
        validators=[MaxValueValidator(10**15)],
        help_text=_("In millionths of your currency: 2.50 is 2500000. Empty: unknown."),
    )
    output_micros_per_million = models.PositiveBigIntegerField(
        _("price of a million output tokens, millionths"),
        null=True,
        blank=True,
        validators=[MaxValueValidator(10**15)],
    )
    params = models.JSONField(
        _("parameters"),
        default=dict,
        blank=True,
        help_text=_('Added to every request, for example {"temperature": 0.7, "max_tokens": 2000}'),
    )
    # Of a declarative endpoint: a configuration, {"config": {…}} or {"ready": name}; see declarative/stored.py.
    config = models.JSONField(
        _("configuration"),
        default=dict,
        blank=True,
        help_text=_('For “any API”: a configuration, or the name of a ready one: {"ready": "anthropic"}'),
    )
    # Empty: by dialect and configuration (docs/providers.md, "In mid-reply").
    continues = models.CharField(
        _("goes on with another's reply"),
        max_length=12,
        blank=True,
        default="",
        db_default="",
        choices=WAYS_TO_CONTINUE,
        help_text=_("When another endpoint fails in mid-reply; empty: as its dialect or configuration says."),
    )
    tools = models.CharField(
        _("tools"),
        max_length=8,
        choices=[("auto", _("as its dialect says")), ("yes", _("yes")), ("no", _("no"))],
        default="auto",
        db_default="auto",
        help_text=_("Whether the model may be offered tools. A DashScope application never is."),
    )
    # Seconds; empty means the PROVIDER_* setting.
    connect_seconds = models.FloatField(_("connect clock, seconds"), null=True, blank=True)
    first_seconds = models.FloatField(_("first payload clock, seconds"), null=True, blank=True)
    idle_seconds = models.FloatField(_("idle clock, seconds"), null=True, blank=True)
    total_seconds = models.FloatField(_("whole reply clock, seconds"), null=True, blank=True)
    # The last test of what stands here now; a change of what is called forgets it.
    tested_at = models.DateTimeField(_("tested"), null=True, blank=True, editable=False)
    test_ok = models.BooleanField(_("test passed"), null=True, blank=True, editable=False)
    # To be deleted as soon as no reply runs on it.
    is_draining = models.BooleanField(_("being removed"), default=False, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = EndpointQuerySet.as_manager()

    class Meta:
        db_table = "providers_endpoint"
        verbose_name = _("endpoint")
        verbose_name_plural = _("endpoints")
        ordering = ["priority", "id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(dialect__in=["openai", "dashscope_app", "declarative", "scripted"]),
                name="endpoint_dialect",
            ),
            models.CheckConstraint(
                condition=Q(continues__in=["", "prefix", "instruction", "none"]), name="endpoint_continues"
            ),
            models.CheckConstraint(condition=Q(weight__gte=1, weight__lte=1000), name="endpoint_weight"),
            models.CheckConstraint(condition=Q(priority__lte=1000), name="endpoint_priority"),
            models.CheckConstraint(
                condition=~Q(name="") & (~Q(dialect="openai") | (~Q(base_url="") & ~Q(model=""))),
                name="endpoint_openai_has_url_and_model",
            ),
            models.CheckConstraint(
                condition=~Q(dialect="dashscope_app") | ~Q(model=""), name="endpoint_application_has_id"
            ),
            *(
                models.CheckConstraint(
                    condition=Q(**{f"{field}__isnull": True}) | Q(**{f"{field}__gt": 0}), name=f"endpoint_{field}"
                )
                for field in (
                    "connect_seconds",
                    "first_seconds",
                    "idle_seconds",
                    "total_seconds",
                    "concurrency_max",
                    "requests_per_minute",
                )
            ),
            *(
                models.CheckConstraint(
                    condition=Q(**{f"{field}__isnull": True}) | Q(**{f"{field}__gte": 0}), name=f"endpoint_{field}"
                )
                for field in ("input_micros_per_million", "output_micros_per_million")
            ),
            models.CheckConstraint(
                condition=~Q(is_draining=True, is_active=True), name="endpoint_draining_is_inactive"
            ),
            models.CheckConstraint(condition=Q(tools__in=["auto", "yes", "no"]), name="endpoint_tools"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def key_target(self) -> str:
        """A word for where a key sent to this endpoint goes: keys of others are good for that place alone.

        The host; of a declarative endpoint all of its configuration, which may name hosts anywhere.
        """
        default = BASE_URL if self.dialect == Endpoint.Dialect.DASHSCOPE_APP else ""
        place: list[Any] = [*origin_of(self.base_url or default)]
        if self.dialect == Endpoint.Dialect.DECLARATIVE:
            place = [self.base_url, self.config]
        text = json.dumps(place, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def note_test(self, *, is_ok: bool) -> None:
        """Keep how a test went. No change of the endpoint: no new revision."""
        self.tested_at, self.test_ok = timezone.now(), is_ok
        models.QuerySet(Endpoint).filter(pk=self.pk).update(tested_at=self.tested_at, test_ok=is_ok)

    @property
    def was_never_well(self) -> bool:
        """Whether what stands here now has not passed a test."""
        return self.test_ok is not True and self.dialect != Endpoint.Dialect.SCRIPTED

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
            # Before what hangs on it, as whoever changes that does: two do not wait for each other.
            Endpoint.objects.using(using).select_for_update().filter(pk=self.pk).first()
            counts = super().delete(*args, **kwargs)
            bump_revision(using)
        return counts


def origin_of(url: str) -> tuple[str, str]:
    """Return scheme and host of a URL, empty when it is none."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return ("", "")
    return (parts.scheme, parts.netloc.lower())


def restore_revision(revision: int) -> int:
    """Return the new revision, at which all endpoints are what they were at this earlier one.

    What others hang on endpoints (who may use them, with which key) is no part of it: it goes with rows that go,
    stays with rows that stay, and does not come back with rows that do.
    Rows that were added since go, rows that were deleted come back with their ids and keys. Replies under way
    keep what they have.
    Raises: EndpointRevision.DoesNotExist, when it is not kept any more.
    """
    with transaction.atomic():
        # In the order of every change, lest two wait for each other: the endpoints, then the row that all lock.
        list(Endpoint.objects.select_for_update(no_key=True).order_by("pk"))
        RegistryRevision.objects.select_for_update().filter(pk=1).first()
        stored = EndpointRevision.objects.get(pk=revision).endpoints
        # Not the queryset of `objects`, whose every write is a revision of its own: this is one change.
        rows: models.QuerySet[Endpoint] = models.QuerySet(Endpoint)
        rows.exclude(pk__in=[values["id"] for values in stored]).delete()
        for row in rows.all():
            rows.filter(pk=row.pk).update(name=f"~{row.pk}")  # names may have been exchanged since
        for values in stored:
            row = Endpoint()
            for field in Endpoint._meta.concrete_fields:
                if field.attname in values:
                    setattr(row, field.attname, field.to_python(values[field.attname]))
            row.is_draining = False
            models.Model.save(row)
        return bump_revision()
