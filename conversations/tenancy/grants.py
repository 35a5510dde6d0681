"""What a site may use, and with whose key: read with the registry's snapshot, or with a member's reply.

Precedence: the member's own key, where the site allows it; then the site's; then the endpoint's. A key that cannot
be read, or was given for another host, is replaced by nobody else's: that endpoint is left out.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from conversations.models import EndpointGrant, MemberKey, Site
from conversations.models.grants import OwnKey
from providers.errors import Misconfigured
from providers.models import Endpoint
from providers.registry import EndpointConfig, Grant, Grants, Snapshot, config_of

log = logging.getLogger(__name__)


def load_grants(endpoints: Sequence[Endpoint]) -> Grants:
    """Return, by site, what it has at these endpoints. Blocking; every site's, because a worker serves all."""
    by_id = {endpoint.pk: endpoint for endpoint in endpoints}
    found: dict[int, dict[int, Grant]] = defaultdict(dict)
    for row in EndpointGrant.across_sites.filter(endpoint_id__in=by_id).order_by("pk"):
        endpoint = by_id[row.endpoint_id]
        found[row.site_id][endpoint.pk] = grant_of(row, f"site:{row.site_id}", is_stale=row.is_stale_for(endpoint))
    return dict(found)


def grant_of(row: OwnKey, credential: str, *, is_stale: bool) -> Grant:
    """Return one row as a worker uses it; logged when its key cannot be used."""
    try:
        key = row.api_key()
    except Misconfigured as error:
        log.error("own_key_left_out", extra={"credential": credential, "error_code": error.code})
        return Grant(credential, is_usable=False)
    if is_stale:
        log.warning("own_key_left_out", extra={"credential": credential, "error_code": "key_for_another_host"})
        return Grant(credential, is_usable=False)
    return Grant(credential, key) if key else Grant()


@dataclass(frozen=True, slots=True)
class KeysOfMember:
    """A member's own keys as they are stored: nothing is decrypted before it is used.

    Each with its endpoint and the place it was given for. Whether that is where the endpoint calls is asked of the
    snapshot that is used, not of the rows: a worker may be a moment behind them, or ahead.
    """

    membership_id: int
    rows: tuple[tuple[int, str, str], ...] = field(repr=False)


def read_keys(site_id: int, membership_id: int) -> KeysOfMember | None:
    """Return a member's own keys, None without any; only for a site that allows them, inside its `tenant`."""
    rows = MemberKey.objects.for_site(site_id).filter(membership_id=membership_id)
    kept = tuple(rows.values_list("endpoint_id", "api_key_encrypted", "api_key_target"))
    return KeysOfMember(membership_id, kept) if kept else None


def usable_by(snapshot: Snapshot, site_id: int, keys: KeysOfMember | None = None) -> Snapshot:
    """Return what a reply in this site may use, with the keys it is to be called with."""
    usable = snapshot.of(site_id)
    if keys is None:
        return usable
    credential = f"member:{keys.membership_id}"
    places = {endpoint.id: endpoint.key_target for endpoint in usable.endpoints}
    return usable.with_keys(
        {
            endpoint_id: grant_of(
                MemberKey(api_key_encrypted=ciphertext), credential, is_stale=places[endpoint_id] != given_for
            )
            for endpoint_id, ciphertext, given_for in keys.rows
            if endpoint_id in places
        }
    )


def kind_of(credential: str) -> str:
    """Return whose key it was, as the ledger says it: `endpoint`, `site` or `member`."""
    return credential.partition(":")[0] or "endpoint"


def config_for_site(endpoint: Endpoint, site: Site) -> EndpointConfig | None:
    """Return the endpoint as this site calls it, None when it may not; for a test, before anybody chats.

    Raises: Misconfigured, when a key cannot be used.
    """
    row = EndpointGrant.objects.for_site(site).filter(endpoint=endpoint).first()
    if row is None and not endpoint.is_shared:
        return None
    if row is None or not row.api_key_encrypted:
        return config_of(endpoint)
    if row.is_stale_for(endpoint):
        raise Misconfigured(code="key_for_another_host")
    return replace(config_of(endpoint), api_key=row.api_key(), credential=f"site:{site.pk}")
