"""Who is asking. Apart from the views, because DRF loads this while it loads its own."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

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
        request.membership = membership  # type: ignore[attr-defined]
        request.claims = claims  # type: ignore[attr-defined]
        return membership.user, claims

    def authenticate_header(self, request: Request) -> str:
        """Return the scheme that a 401 asks for."""
        return "Bearer"
