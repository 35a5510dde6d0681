"""Who may call what. Apart from the views, because DRF loads these while it loads its own."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from conversations.errors import NotAllowed, NotSignedIn
from conversations.models import Membership


class IsSignedIn(BasePermission):
    """Lets in every member with a good token, approved or not."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return True for a member; raise NotSignedIn otherwise."""
        if getattr(request, "membership", None) is None:
            raise NotSignedIn
        return True


class IsApproved(IsSignedIn):
    """Lets in members who may chat."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return True for an approved member; raise NotSignedIn or NotAllowed otherwise."""
        super().has_permission(request, view)
        if not request.membership.is_approved:  # type: ignore[attr-defined]  # set by authentication
            raise NotAllowed("not_approved")
        return True


class ManagesSite(IsApproved):
    """Lets in those who run the site: its managers, and superusers who belong to it."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return True for them; raise NotSignedIn or NotAllowed otherwise."""
        super().has_permission(request, view)
        membership = request.membership  # type: ignore[attr-defined]  # set by authentication
        if membership.role != Membership.Role.MANAGER and not membership.user.is_superuser:
            raise NotAllowed
        return True


class HoldsRights(BasePermission):
    """Lets in Django staff who hold the permissions that the view names in `rights`, by action."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return True for such staff; raise NotSignedIn or NotAllowed otherwise."""
        user = request.user
        if user is None or not user.is_authenticated:
            raise NotSignedIn
        if not (user.is_active and user.is_staff and user.has_perms(view.rights.get(view.action, ()))):
            raise NotAllowed
        return True
