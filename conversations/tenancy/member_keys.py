"""A member's own keys: at which endpoints they may have one, and the only ways to keep and remove it."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Q, QuerySet

from conversations.errors import NotAllowed, NotFound
from conversations.models import EndpointGrant, MemberKey, Membership, site_setting
from conversations.tenancy.access import row_id
from providers.models import Endpoint


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """An endpoint, with the mask of the member's own key there."""

    id: int
    name: str
    api_key_mask: str | None
    is_stale: bool
    is_usable: bool


def allows_keys(membership: Membership) -> bool:
    """Return whether the member's site lets members use keys of their own."""
    return bool(site_setting(membership.site, "member_keys"))


def key_places(membership: Membership) -> list[KeyPlace]:
    """Return where the member may have a key of their own, and where they have one, in the order of choice."""
    kept = {row.endpoint_id: row for row in MemberKey.objects.visible_to(membership).select_related("endpoint")}
    usable = {row.pk: row for row in _usable(membership)} if allows_keys(membership) else {}
    rows = {**{pk: row.endpoint for pk, row in kept.items()}, **usable}
    in_order = sorted(rows.values(), key=lambda row: (row.priority, row.pk))
    return [_place(row, kept.get(row.pk), is_usable=row.pk in usable) for row in in_order]


def keep_key(membership: Membership, endpoint_id: int | str, key: str) -> KeyPlace:
    """Keep the member's key for an endpoint, in place of an earlier one; return where.

    Raises: NotAllowed member_keys_off; NotFound for an endpoint that the site may not use, or that is not there.
    """
    if not allows_keys(membership):
        raise NotAllowed("member_keys_off")
    # Locked, so that it is there when this transaction ends.
    endpoint = _usable(membership).select_for_update(no_key=True).filter(pk=row_id(endpoint_id)).first()
    if endpoint is None:
        raise NotFound
    whose = {"site_id": membership.site_id, "membership": membership, "endpoint": endpoint}
    row = MemberKey.objects.visible_to(membership).filter(endpoint=endpoint).first() or MemberKey(**whose)
    row.set_own_key(key, endpoint)
    row.save()
    return _place(endpoint, row, is_usable=True)


def remove_key(membership: Membership, endpoint_id: int | str) -> None:
    """Forget the member's key for an endpoint; also where the site does not allow keys any more.

    Raises: NotFound.
    """
    removed, _ = MemberKey.objects.visible_to(membership).filter(endpoint_id=row_id(endpoint_id)).delete()
    if not removed:
        raise NotFound


def _usable(membership: Membership) -> QuerySet[Endpoint]:
    granted = EndpointGrant.objects.for_site(membership.site_id).values("endpoint_id")
    rows = Endpoint.objects.filter(Q(is_shared=True) | Q(pk__in=granted), is_active=True)
    return rows.exclude(dialect=Endpoint.Dialect.SCRIPTED)


def _place(endpoint: Endpoint, row: MemberKey | None, *, is_usable: bool) -> KeyPlace:
    return KeyPlace(
        id=endpoint.pk,
        name=endpoint.name,
        api_key_mask=row.api_key_mask if row is not None else None,
        is_stale=row is not None and row.is_stale_for(endpoint),
        is_usable=is_usable,
    )
