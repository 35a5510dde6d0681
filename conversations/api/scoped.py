"""The base of our views: every handler runs inside `tenant(site)`, for a member whom the token names.

A view that needs a row takes it from `tenancy/access.py` with `request.membership`; DRF's own ways to a
queryset are shut, so that nobody forgets (STYLE 3, lock 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import InterfaceError, OperationalError, transaction
from django.http import HttpRequest, HttpResponseBase
from rest_framework.negotiation import BaseContentNegotiation, DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from conversations.api.authentication import TokenAuthentication
from conversations.api.errors import log_unexpected, problem_response
from conversations.api.permissions import IsApproved
from conversations.db import tenant
from conversations.errors import NotSignedIn, Unavailable
from conversations.models import Membership
from conversations.tenancy.resolve import claims_from_headers
from conversations.tenancy.tokens import Claims

CLOSED_DOORS = ("get_queryset", "get_object", "get_permissions", "filter_queryset", "dispatch")


class ScopedRequest(Request):
    """What handlers get: DRF's request, with the member who sent it."""

    membership: Membership
    claims: Claims


class SpeakJson(BaseContentNegotiation):
    """JSON for everyone. A client that sends `Accept: text/event-stream` with all its calls means no harm."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        """Return the parser for the body's type, if there is one."""
        return DefaultContentNegotiation().select_parser(request, parsers)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the only renderer; `?format=` is an unknown parameter, and ignored like all of them."""
        only = next(iter(renderers))
        return only, only.media_type


class OpenView(APIView):
    """The base of views that need no member: sign-in and health."""

    content_negotiation_class = SpeakJson
    authentication_classes = ()
    permission_classes = ()
    metadata_class = None


class ScopedViewSet(ViewSet):
    """The base of views for members: authenticated, approved, one transaction in the member's site."""

    content_negotiation_class = SpeakJson
    authentication_classes = (TokenAuthentication,)
    permission_classes: Sequence[type[BasePermission]] = (IsApproved,)
    metadata_class = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in CLOSED_DOORS:
            if name in cls.__dict__:
                raise TypeError(
                    f"{cls.__name__} overrides {name}: rows come from tenancy/access.py, "
                    "permissions are declared in permission_classes."
                )

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Return the handler's response; what it wrote is kept only when it raised nothing."""
        try:
            site_id = claims_from_headers(request.headers).site_id
        except NotSignedIn:
            # The authentication will say the same, as a response.
            return super().dispatch(request, *args, **kwargs)
        request.site_id = site_id  # type: ignore[attr-defined]  # ours, on DRF's request
        try:
            with tenant(site_id):
                response = super().dispatch(request, *args, **kwargs)
                if response.status_code >= 400:
                    transaction.set_rollback(True)
        except (OperationalError, InterfaceError) as error:
            # No connection to begin with, or none any more to commit with.
            log_unexpected(error, request.headers, path=request.path)
            return problem_response(Unavailable(), request)
        return response
