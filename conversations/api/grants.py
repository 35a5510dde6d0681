"""Which sites may use an endpoint, and their own keys there, as JSON for staff."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.models import CHANGE
from django.db import transaction
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_serializer,
)
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from conversations.api.keys import key_field
from conversations.api.models import MODEL_ID, GivenSerializer, StaffViewSet, access_model, note, read_given
from conversations.api.serializers import CamelCaseSerializer, Moment
from conversations.db import tenant
from conversations.errors import NotFound
from conversations.models import EndpointGrant, Site
from providers.models import Endpoint

SLUG = OpenApiParameter("slug", OpenApiTypes.STR, OpenApiParameter.PATH, description="A site's slug.")
GRANT_EXAMPLE = {
    "site": "acorn",
    "apiKeyMask": "sk-…7890",
    "isStale": False,
    "createdAt": "2026-11-20T08:10:00.000+08:00",
    "updatedAt": "2026-11-20T08:12:30.500+08:00",
}


@extend_schema_serializer(examples=[OpenApiExample("own key", value={"apiKey": "sk-…"}, request_only=True)])
class GrantGivenSerializer(GivenSerializer):
    """A site's own key; not given, the one it has stays."""

    passed_over = frozenset(GRANT_EXAMPLE)
    api_key = key_field(
        allow_blank=True,
        allow_null=True,
        required=False,
        help_text="Write-only; null or empty removes the site's own key, and the endpoint's is used.",
    )


@extend_schema_serializer(examples=[OpenApiExample("grant", value=GRANT_EXAMPLE, response_only=True)])
class GrantSerializer(CamelCaseSerializer):
    """A site that may use the endpoint, and the mask of its own key."""

    site = serializers.CharField(source="site.slug")
    api_key_mask = serializers.CharField(help_text="Empty: it uses the endpoint's key.")
    is_stale = serializers.BooleanField(help_text="The endpoint has moved: enter the key again.")
    created_at = Moment()
    updated_at = Moment()


class GrantsSerializer(CamelCaseSerializer):
    """The sites with a grant."""

    items = GrantSerializer(many=True)
    total = serializers.IntegerField()


def grant_document(row: EndpointGrant, endpoint: Endpoint) -> dict[str, Any]:
    """Return one grant as JSON."""
    row.is_stale = row.is_stale_for(endpoint)  # type: ignore[attr-defined]  # read by the serializer
    return dict(GrantSerializer(row).data)


def access_site(slug: str) -> Site:
    """Return the site of this slug.

    Raises: NotFound.
    """
    site = Site.objects.filter(slug=slug).first() if slug.isascii() and "\0" not in slug else None
    if site is None:
        raise NotFound
    return site


class GrantViewSet(StaffViewSet):
    """The sites of one endpoint."""

    rights = {
        "list": ("providers.view_endpoint",),
        "read": ("providers.view_endpoint",),
        "keep": ("providers.change_endpoint",),
        "remove": ("providers.change_endpoint",),
    }

    @extend_schema(
        operation_id="listModelSites",
        tags=["models"],
        summary="The sites that may use an endpoint that is not shared, or have a key of their own there",
        parameters=[MODEL_ID],
        responses={200: GrantsSerializer},
        examples=[OpenApiExample("sites", response_only=True, value={"items": [GRANT_EXAMPLE], "total": 1})],
    )
    def list(self, request: Request, model_id: str) -> Response:
        """Return the grants, by slug."""
        endpoint = access_model(model_id)
        rows = EndpointGrant.across_sites.filter(endpoint=endpoint).select_related("site").order_by("site__slug")
        items = [grant_document(row, endpoint) for row in rows]
        return Response({"items": items, "total": len(items)})

    @extend_schema(
        operation_id="readModelSite",
        tags=["models"],
        summary="One site at an endpoint",
        parameters=[MODEL_ID, SLUG],
        responses={200: GrantSerializer},
    )
    def read(self, request: Request, model_id: str, slug: str) -> Response:
        """Return one grant.

        Raises: NotFound.
        """
        endpoint, site = access_model(model_id), access_site(slug)
        with tenant(site.pk):
            return Response(grant_document(_found(endpoint, site), endpoint))

    @extend_schema(
        operation_id="grantModel",
        tags=["models"],
        summary="Let a site use an endpoint, with its own key perhaps; every worker knows within a second",
        parameters=[MODEL_ID, SLUG],
        request=GrantGivenSerializer,
        responses={200: GrantSerializer},
    )
    def keep(self, request: Request, model_id: str, slug: str) -> Response:
        """Return the grant, made or changed."""
        site = access_site(slug)
        given = read_given(GrantGivenSerializer, request)
        with tenant(site.pk):
            # Locked, so that it is there when this transaction ends.
            endpoint = access_model(model_id, to_change=True)
            row = EndpointGrant.objects.for_site(site).filter(endpoint=endpoint).first()
            row = row or EndpointGrant(site=site, endpoint=endpoint)
            if "api_key" in given:
                row.set_own_key(given["api_key"] or "", endpoint)
            row.save()
            note(request, endpoint, CHANGE, f"granted to {slug}" + (" with a key" if given.get("api_key") else ""))
            return Response(grant_document(row, endpoint))

    @extend_schema(
        operation_id="revokeModel",
        tags=["models"],
        summary="Take a site's grant and its own key away; running replies keep what they have",
        parameters=[MODEL_ID, SLUG],
        responses={204: OpenApiResponse(description="It is gone.")},
    )
    def remove(self, request: Request, model_id: str, slug: str) -> Response:
        """Return nothing.

        Raises: NotFound.
        """
        site = access_site(slug)
        with transaction.atomic(), tenant(site.pk):
            endpoint = access_model(model_id, to_change=True)
            _found(endpoint, site).delete()
            note(request, endpoint, CHANGE, f"taken from {slug}")
        return Response(status=status.HTTP_204_NO_CONTENT)


def _found(endpoint: Endpoint, site: Site) -> EndpointGrant:
    row: EndpointGrant | None = EndpointGrant.objects.for_site(site).filter(endpoint=endpoint).first()
    if row is None:
        raise NotFound
    return row
