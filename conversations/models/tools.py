"""Tools of a site's own: HTTP calls that a model may ask for, described by their row."""

from __future__ import annotations

from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.sites import Site
from providers.fields import EncryptedField

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class SiteTool(TenantModel):
    """One HTTP call to a server that the site names, put together from what the model asks.

    With a secret the request is signed, and says who the member is (providers.calls). The secret is written
    through `providers.fields.keep_secret(tool, "secret", …)` and never shown.
    """

    site = models.ForeignKey(
        Site, on_delete=models.CASCADE, related_name="+", db_index=False, verbose_name=_("site")
    )
    name = models.CharField(
        _("tool name"), max_length=64, help_text=_("Letters, digits, _ and -; the model calls it by this name.")
    )
    description = models.TextField(
        _("description"),
        max_length=2000,
        help_text=_("Tells the model what the tool gives and when to use it."),
    )
    parameters = models.JSONField(
        _("arguments"), default=dict, blank=True, help_text=_("A JSON schema of an object; empty: no arguments.")
    )
    method = models.CharField(_("method"), max_length=8, choices=[(word, word) for word in METHODS], default="GET")
    url = models.CharField(
        _("address"),
        max_length=1000,
        help_text=_("For example https://api.example.com/orders/${args.order_id}"),
    )
    # Query and headers: name → template. The body: JSON with templates in it, None for none.
    query = models.JSONField(_("query"), default=dict, blank=True)
    headers = models.JSONField(_("headers"), default=dict, blank=True)
    body = models.JSONField(_("body"), null=True, blank=True)
    secret_encrypted = EncryptedField()
    secret_mask = models.CharField(_("secret"), max_length=16, blank=True, default="", editable=False)
    timeout_seconds = models.FloatField(
        _("seconds at most"), default=5.0, validators=[MinValueValidator(0.1), MaxValueValidator(10.0)]
    )
    is_active = models.BooleanField(_("active"), default=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects: ClassVar[ScopedManager] = ScopedManager()

    class Meta(TenantModel.Meta):
        db_table = "conversations_site_tool"
        verbose_name = _("tool")
        verbose_name_plural = _("tools")
        constraints = [
            # Also read when a reply begins on a site that offers tools of its own.
            models.UniqueConstraint(fields=["site", "name"], name="site_tool_once_per_site"),
            models.CheckConstraint(condition=Q(method__in=METHODS), name="site_tool_method"),
            models.CheckConstraint(
                condition=Q(timeout_seconds__gt=0, timeout_seconds__lte=10), name="site_tool_timeout"
            ),
        ]

    def __str__(self) -> str:
        return self.name
