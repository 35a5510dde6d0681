"""Managers that refuse to forget the site: a missing tenant filter is an exception, never a longer list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from django.db import models

if TYPE_CHECKING:
    from conversations.models.sites import Membership, Site


class UnscopedQuery(RuntimeError):
    """Raised when rows of a tenant table are asked for without saying whose."""


class ScopedManager(models.Manager[Any]):
    """The front door to a tenant table: opens for a site or for a membership, and not at all without.

    `member_path` is the lookup from a row to the membership that owns it; tables whose rows belong to
    the site as a whole have none, and `visible_to` then means the membership's site.
    """

    def __init__(self, *, member_path: str | None = None) -> None:
        super().__init__()
        self.member_path = member_path

    def get_queryset(self) -> NoReturn:
        """Raise UnscopedQuery; every public query method of a manager comes through here."""
        raise UnscopedQuery(
            f"{self.model.__name__}.objects needs for_site(site) or visible_to(membership); "
            "across_sites belongs in the admin, commands and migrations."
        )

    def for_site(self, site: Site | int) -> models.QuerySet[Any]:
        """Return the rows of one site, given as row or id."""
        site_id = site if isinstance(site, int) else site.pk
        return super().get_queryset().filter(site_id=site_id)

    def visible_to(self, membership: Membership) -> models.QuerySet[Any]:
        """Return the rows that one member may see: their own, in their own site."""
        rows = self.for_site(membership.site_id)
        return rows if self.member_path is None else rows.filter(**{self.member_path: membership.pk})


class TenantModel(models.Model):
    """A row that belongs to one site. `across_sites` is the default manager for Django's own needs."""

    objects: ClassVar[ScopedManager] = ScopedManager()
    across_sites: ClassVar[models.Manager[Any]] = models.Manager()

    class Meta:
        abstract = True
        default_manager_name = "across_sites"
        base_manager_name = "across_sites"
