"""Who may use which endpoint, and with whose key: sites by grants, members by keys of their own."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models, router, transaction
from django.utils.translation import gettext_lazy as _

from conversations.models.scoping import ScopedManager, TenantModel
from conversations.models.sites import Membership, Site
from providers.models import Endpoint, KeyedModel, bump_revision


class OwnKey(TenantModel, KeyedModel):
    """A key of somebody's own for an endpoint, good for the place it was given for: it is sent nowhere else."""

    # Endpoint.key_target when the key was entered; staff may have moved the endpoint since.
    api_key_target = models.CharField(max_length=32, blank=True, default="", editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    class Meta(TenantModel.Meta):
        abstract = True

    def set_own_key(self, key: str, endpoint: Endpoint) -> None:
        """Take a new key for this endpoint as it stands, or none. Does not save."""
        self.set_api_key(key)
        self.api_key_target = endpoint.key_target if key else ""

    def is_stale_for(self, endpoint: Endpoint) -> bool:
        """Return whether the key was given for another place than the endpoint calls now: it is not sent there."""
        return bool(self.api_key_encrypted) and self.api_key_target != endpoint.key_target


class GrantQuerySet(models.QuerySet["EndpointGrant"]):
    """A queryset whose writes bump the revision too, so that none of them can be forgotten."""

    def update(self, **kwargs: Any) -> int:
        """Update the rows and return how many."""
        with transaction.atomic(using=self.db):
            count = super().update(**kwargs)
            bump_revision(self.db, are_endpoints_changed=False)
        return count

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the rows and return Django's counts."""
        with transaction.atomic(using=self.db):
            counts = super().delete()
            bump_revision(self.db, are_endpoints_changed=False)
        return counts

    def bulk_create(self, objs: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Insert the rows and return them."""
        with transaction.atomic(using=self.db):
            created = super().bulk_create(objs, *args, **kwargs)
            bump_revision(self.db, are_endpoints_changed=False)
        return created


class GrantManager(ScopedManager.from_queryset(GrantQuerySet)):  # type: ignore[misc]  # made at run time
    """The scoped door, over that queryset."""


class EndpointGrant(OwnKey):
    """A site's leave to use an endpoint that is not shared, and its own key there, or either.

    Workers hold these with the endpoints: a change is a new revision of the registry. Migration 0005 ties the
    rows to their endpoint, with which they go.
    """

    site = models.ForeignKey(
        Site, on_delete=models.CASCADE, related_name="grants", db_index=False, verbose_name=_("site")
    )
    # Indexed for the endpoint's page and its deletion.
    endpoint = models.ForeignKey(
        Endpoint, on_delete=models.CASCADE, related_name="grants", db_constraint=False, verbose_name=_("endpoint")
    )

    objects: ClassVar[GrantManager] = GrantManager()
    across_sites: ClassVar[models.Manager[Any]] = models.Manager.from_queryset(GrantQuerySet)()

    class Meta(OwnKey.Meta):
        db_table = "conversations_endpoint_grant"
        verbose_name = _("site with a grant")
        verbose_name_plural = _("sites that may use it, or have a key of their own")
        constraints = [
            # Also read by the site's page.
            models.UniqueConstraint(fields=["site", "endpoint"], name="endpoint_grant_once_per_site"),
        ]

    def __str__(self) -> str:
        return f"{self.site.slug} @ {self.endpoint}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the row and bump the revision in one transaction."""
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            super().save(*args, **kwargs)
            bump_revision(using, are_endpoints_changed=False)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Delete the row and bump the revision in one transaction."""
        using = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using=using):
            counts = super().delete(*args, **kwargs)
            bump_revision(using, are_endpoints_changed=False)
        return counts


class MemberKey(OwnKey):
    """A member's own key for an endpoint, used for their replies alone, while their site allows it.

    Read with each of these replies and never held by a worker: no revision. Migration 0005 ties the rows to the
    member and the endpoint, with whom they go.
    """

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+", db_index=False)
    membership = models.ForeignKey(
        Membership, on_delete=models.CASCADE, related_name="keys", db_constraint=False, db_index=False
    )
    # Indexed for the endpoint's deletion.
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="+", db_constraint=False)

    objects: ClassVar[ScopedManager] = ScopedManager(member_path="membership_id")

    class Meta(OwnKey.Meta):
        db_table = "conversations_member_key"
        verbose_name = _("member's key")
        verbose_name_plural = _("members' keys")
        constraints = [
            # Also read when a reply of that member begins.
            models.UniqueConstraint(fields=["site", "membership", "endpoint"], name="member_key_once"),
        ]

    def __str__(self) -> str:
        return f"#{self.membership_id} @ {self.endpoint_id}"
