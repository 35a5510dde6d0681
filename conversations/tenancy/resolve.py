"""From what a request carries to the member who sent it: headers, claims, stream tickets.

Plain functions, so that the ASGI streams and DRF share them (DESIGN 2).
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Iterable, Mapping
from datetime import timedelta

from django.db import connection
from django.db.models.functions import Now

from conversations.db import tenant
from conversations.errors import NotAllowed, NotSignedIn
from conversations.models import Membership, StreamTicket
from conversations.tenancy.tokens import Claims, read_access

TICKET_SECONDS = 60
TICKET_MAX_CHARS = 100


def claims_from_headers(headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]]) -> Claims:
    """Return the claims of the bearer token among the headers; Django's mapping or ASGI's pairs.

    Raises: NotSignedIn not_signed_in without a bearer token; token_invalid or token_expired with a bad one.
    """
    if isinstance(headers, Mapping):
        found = [value for name, value in headers.items() if name.lower() == "authorization"]
    else:
        found = [value.decode("latin-1") for name, value in headers if name.lower() == b"authorization"]
    if len(found) != 1:
        raise NotSignedIn("not_signed_in")
    scheme, _, token = found[0].strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotSignedIn("not_signed_in")
    return read_access(token.strip())


def member_for(claims: Claims) -> Membership:
    """Return the member whom the claims name, with site and user, in one query; approved or not.

    Call it inside `tenant(claims.site_id)`.
    Raises: NotSignedIn token_invalid, when the sign-in has ended or the account is closed.
    """
    membership = (
        Membership.objects.for_site(claims.site_id)
        .select_related("site", "user")
        .filter(
            pk=claims.membership_id,
            user__is_active=True,
            logins__pk=claims.login_id,
            logins__ended_at__isnull=True,
        )
        .first()
    )
    if membership is None:
        raise NotSignedIn("token_invalid")
    return membership


def approved_member_for(claims: Claims) -> Membership:
    """Return the member whom the claims name, when they may chat.

    Raises: NotSignedIn as `member_for`; NotAllowed not_approved.
    """
    membership = member_for(claims)
    if not membership.is_approved:
        raise NotAllowed("not_approved")
    return membership


def issue_ticket(membership: Membership, login_id: uuid.UUID, message_id: int | None) -> str:
    """Return the text of a new single-use ticket, good for 60 s; of one reply when `message_id` is given.

    The text begins with the site, since the database must know it before a row can be seen.
    """
    text = f"{membership.site_id}.{secrets.token_urlsafe(32)}"
    of_login = StreamTicket.objects.for_site(membership.site_id).filter(login_id=login_id)
    of_login.filter(expires_at__lte=Now()).delete()
    StreamTicket.across_sites.create(
        digest=_digest(text),
        site_id=membership.site_id,
        login_id=login_id,
        message_id=message_id,
        expires_at=Now() + timedelta(seconds=TICKET_SECONDS),
    )
    return text


def redeem_ticket(text: str) -> Claims:
    """Return the claims behind a ticket, which is used up by it: of two uses at the same time, one wins.

    Raises: NotSignedIn ticket_invalid.
    """
    site, _, _ = text.partition(".")
    if len(text) > TICKET_MAX_CHARS or not (site.isascii() and site.isdigit()) or len(site) > 18:
        raise NotSignedIn("ticket_invalid")
    digest = _digest(text)
    with tenant(int(site)), connection.cursor() as cursor:
        cursor.execute(
            """
            DELETE FROM conversations_stream_ticket AS ticket
            USING conversations_login AS login
            WHERE ticket.digest = %s AND ticket.site_id = %s AND login.id = ticket.login_id
            RETURNING ticket.expires_at > statement_timestamp(), login.membership_id, ticket.site_id,
                      login.id, ticket.message_id
            """,
            [digest, int(site)],
        )
        row = cursor.fetchone()
    if row is None or not row[0]:
        raise NotSignedIn("ticket_invalid")
    return Claims(membership_id=row[1], site_id=row[2], login_id=row[3], jti=digest, message_id=row[4])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
