"""Who is asking. Apart from the views, because DRF loads this while it loads its own."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from conversations.db import tenant
from conversations.models import User
from conversations.tenancy.resolve import claims_from_headers, member_for
from conversations.tenancy.tokens import Claims


class TokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer <access>`; the member is put on the request."""

    def authenticate(self, request: Request) -> tuple[User, Claims]:
        """Return user and claims of the member who sent the request.

        Raises: NotSignedIn; there are no anonymous requests to views that ask for this.
        """
        claims = claims_from_headers(request.headers)
        membership = member_for(claims)
        request.membership = membership  # type: ignore[attr-defined]  # ours, on DRF's request
        request.claims = claims  # type: ignore[attr-defined]  # ours, on DRF's request
        return membership.user, claims

    def authenticate_header(self, request: Request) -> str:
        """Return the scheme that a 401 asks for."""
        return "Bearer"


class StaffTokenAuthentication(TokenAuthentication):
    """The same token, where a session may stand instead of it."""

    def authenticate(self, request: Request) -> tuple[User, Claims] | None:  # type: ignore[override]  # the claims are our second
        """Return user and claims; None without an Authorization header, so that the session is asked.

        Raises: NotSignedIn.
        """
        if "Authorization" not in request.headers:
            return None
        with tenant(claims_from_headers(request.headers).site_id):
            return super().authenticate(request)
