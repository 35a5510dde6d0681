"""In whose name a voice call is made: a member's own token, or a member whom an internal caller names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conversations.db import tenant
from conversations.errors import ChatError, NotAllowed, NotFound
from conversations.models import InternalCaller, Membership
from conversations.tenancy.access import row_id
from conversations.tenancy.resolve import approved_member_for, claims_from_headers
from conversations.voice.sessions import Caller

MEMBER_FIELD = "MemberId"


def caller_from_token(headers: Iterable[tuple[bytes, bytes]]) -> Caller:
    """Return the approved member whose bearer token is among the headers.

    Raises: NotSignedIn, NotAllowed not_approved.
    """
    claims = claims_from_headers(headers)
    with tenant(claims.site_id):
        return Caller(approved_member_for(claims))


def caller_from_server(internal: InternalCaller, body: Mapping[str, Any]) -> Caller:
    """Return the member for whom a server asks: `MemberId` in its body, or the one that stands for the server.

    A number is the id of a membership, a text a username; both mean members of the server's own site.
    Raises: ChatError member_missing, member_not_found, not_approved.
    """
    named = body.get(MEMBER_FIELD)
    with tenant(internal.site_id):
        rows = Membership.objects.for_site(internal.site_id).select_related("site", "user")
        if named is None:
            if internal.membership_id is None:
                raise ChatError("member_missing")
            member = rows.filter(pk=internal.membership_id).first()
        elif isinstance(named, str) and named and "\0" not in named:
            member = rows.filter(user__username=named).first()
        elif isinstance(named, int) and not isinstance(named, bool):
            try:
                member = rows.filter(pk=row_id(named)).first()
            except NotFound:
                member = None
        else:
            member = None
        if member is None:
            raise NotFound("member_not_found")
        if not member.is_approved:
            raise NotAllowed("not_approved")
        return Caller(member, internal)
