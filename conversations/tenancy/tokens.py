"""Access and refresh tokens: how a member proves who they are, and how a sign-in begins, rotates and ends.

An access token is checked in process, without the database; whether its sign-in still stands is asked
by `resolve.py`. A refresh token is good for one use: used again, it ends its whole family (API.md 1).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

from django.conf import settings
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now
from django.utils import timezone
from rest_framework_simplejwt.backends import TokenBackend
from rest_framework_simplejwt.exceptions import TokenBackendError, TokenBackendExpiredToken

from conversations.db import tenant
from conversations.errors import NotSignedIn
from conversations.events import is_storable
from conversations.models import Login, Membership, Site, User

ALGORITHM = "HS256"
TOKEN_MAX_CHARS = 4096
_BIGINT_MAX = 2**63 - 1

TokenType = Literal["access", "refresh"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says. `message_id` is set by a stream ticket that opens one reply only."""

    membership_id: int
    site_id: int
    login_id: uuid.UUID
    jti: str
    message_id: int | None = None


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a sign-in hands out; the texts are secrets and stay out of repr."""

    access: str
    refresh: str
    expires_in_seconds: int
    membership: Membership

    def __repr__(self) -> str:
        return f"TokenPair(membership={self.membership.pk})"


def read_access(token: str) -> Claims:
    """Return what an access token says; in process, without the database.

    Raises: NotSignedIn, token_invalid or token_expired.
    """
    return _read(token, "access")


def sign_in(username: str, password: str, site_slug: str) -> TokenPair:
    """Return the first pair of a new sign-in; members who wait for approval may sign in, too.

    Raises: NotSignedIn bad_credentials, alike and after about the same time, whatever was wrong.
    """
    user = User.objects.filter(username=username).first() if is_storable(username) else None
    if user is None or not is_storable(password):
        # Hash all the same: the time of an answer must not tell which names exist.
        User().set_password("".join(char for char in password if is_storable(char)))
        raise NotSignedIn("bad_credentials")
    if not user.check_password(password) or not user.is_active or not is_storable(site_slug):
        raise NotSignedIn("bad_credentials")
    site = Site.objects.filter(slug=site_slug, is_active=True).first()
    if site is None:
        raise NotSignedIn("bad_credentials")
    with tenant(site.pk):
        membership = Membership.objects.for_site(site).select_related("site", "user").filter(user=user).first()
        if membership is None:
            raise NotSignedIn("bad_credentials")
        return start_login(membership)


def start_login(membership: Membership) -> TokenPair:
    """Return the first pair of a new family of tokens; whoever calls has checked who the person is."""
    jti = uuid.uuid4().hex
    login = Login.across_sites.create(
        site_id=membership.site_id,
        membership=membership,
        refresh_jti=jti,
        expires_at=timezone.now() + _refresh_lifetime(),
    )
    return _pair(membership, login.pk, jti)


def refresh(refresh_token: str) -> TokenPair:
    """Return the next pair of a sign-in; the refresh token given is used up by it.

    Raises: NotSignedIn; when the token had been used before, the whole family is ended first.
    """
    claims = _read(refresh_token, "refresh")
    jti = uuid.uuid4().hex
    with tenant(claims.site_id):
        family = Login.objects.for_site(claims.site_id).filter(pk=claims.login_id, ended_at__isnull=True)
        # One UPDATE that counts rows: of two uses at the same time, one wins. EXISTS, not a join: Django puts a
        # join below `id IN (...)`, which PostgreSQL does not ask again after it waited for the other use.
        is_active = Membership.objects.for_site(claims.site_id).filter(
            pk=OuterRef("membership_id"), user__is_active=True
        )
        rotated = family.filter(
            Exists(is_active), membership_id=claims.membership_id, refresh_jti=claims.jti
        ).update(refresh_jti=jti, expires_at=timezone.now() + _refresh_lifetime())
        if rotated:
            membership = (
                Membership.objects.for_site(claims.site_id)
                .select_related("site", "user")
                .get(pk=claims.membership_id)
            )
            return _pair(membership, claims.login_id, jti)
        family.update(ended_at=Now())
    # Raised out here, so that the end of the family is committed.
    raise NotSignedIn("token_invalid")


def sign_out(refresh_token: str) -> None:
    """End the sign-in of a refresh token; its access tokens die with it.

    Raises: NotSignedIn, when it is no refresh token of ours.
    """
    claims = _read(refresh_token, "refresh")
    with tenant(claims.site_id):
        Login.objects.for_site(claims.site_id).filter(
            pk=claims.login_id, membership_id=claims.membership_id, ended_at__isnull=True
        ).update(ended_at=Now())


def _backend() -> TokenBackend:
    return TokenBackend(ALGORITHM, signing_key=settings.SECRET_KEY)


def _refresh_lifetime() -> timedelta:
    return timedelta(days=settings.REFRESH_TOKEN_DAYS)


def _pair(membership: Membership, login_id: uuid.UUID, refresh_jti: str) -> TokenPair:
    access_lifetime = timedelta(seconds=settings.ACCESS_TOKEN_SECONDS)
    return TokenPair(
        access=_write(membership, login_id, "access", uuid.uuid4().hex, access_lifetime),
        refresh=_write(membership, login_id, "refresh", refresh_jti, _refresh_lifetime()),
        expires_in_seconds=settings.ACCESS_TOKEN_SECONDS,
        membership=membership,
    )


def _write(
    membership: Membership, login_id: uuid.UUID, token_type: TokenType, jti: str, lifetime: timedelta
) -> str:
    now = timezone.now()
    return _backend().encode(
        {
            "typ": token_type,
            "mid": membership.pk,
            "sid": membership.site_id,
            "lid": login_id.hex,
            "jti": jti,
            "iat": now,
            "exp": now + lifetime,
        }
    )


def _read(token: str, token_type: TokenType) -> Claims:
    if not token.isascii() or len(token) > TOKEN_MAX_CHARS:
        raise NotSignedIn("token_invalid")
    try:
        payload = _backend().decode(cast(Any, token))
    except TokenBackendExpiredToken as error:
        raise NotSignedIn("token_expired") from error
    except TokenBackendError as error:
        raise NotSignedIn("token_invalid") from error
    if payload.get("typ") != token_type or "exp" not in payload:
        raise NotSignedIn("token_invalid")
    try:
        jti = payload["jti"]
        login_id = uuid.UUID(hex=payload["lid"])
        ids = (payload["mid"], payload["sid"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise NotSignedIn("token_invalid") from error
    if not isinstance(jti, str) or not all(type(value) is int and 0 < value <= _BIGINT_MAX for value in ids):
        raise NotSignedIn("token_invalid")
    return Claims(membership_id=ids[0], site_id=ids[1], login_id=login_id, jti=jti)
