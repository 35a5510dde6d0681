"""A member's own keys for endpoints, as JSON; keys go in and never come out."""

from __future__ import annotations

from typing import Any

from django.core.validators import RegexValidator
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_serializer,
)
from rest_framework import serializers, status
from rest_framework.response import Response

from conversations.api.chat import read_body
from conversations.api.scoped import ScopedRequest, ScopedViewSet
from conversations.api.serializers import CamelCaseSerializer, Text
from conversations.tenancy.member_keys import allows_keys, keep_key, key_places, remove_key

ENDPOINT_ID = OpenApiParameter("endpointId", OpenApiTypes.INT64, OpenApiParameter.PATH, description="An endpoint.")
PLACE_EXAMPLE = {"id": 3, "name": "主力", "apiKeyMask": "sk-…7890", "isStale": False, "isUsable": True}


def key_field(**kwargs: Any) -> Text:
    """Return the field that takes a key: it could stand in a header, and never comes back."""
    return Text(
        max_length=4096,
        trim_whitespace=False,
        write_only=True,
        validators=[RegexValidator(r"\A[\x21-\x7e]*\Z", "密钥只含可见 ASCII 字符，没有空格和换行。")],
        **kwargs,
    )


@extend_schema_serializer(examples=[OpenApiExample("key", value={"apiKey": "sk-…"}, request_only=True)])
class KeyGivenSerializer(CamelCaseSerializer):
    """A member's own key."""

    api_key = key_field(help_text="Write-only: reads show the mask.")


@extend_schema_serializer(examples=[OpenApiExample("place", value=PLACE_EXAMPLE, response_only=True)])
class KeyPlaceSerializer(CamelCaseSerializer):
    """An endpoint at which the member may have, or has, a key of their own."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    api_key_mask = serializers.CharField(allow_null=True, help_text="null: none is kept.")
    is_stale = serializers.BooleanField(help_text="The endpoint has moved: enter the key again.")
    is_usable = serializers.BooleanField(help_text="false: a key is kept, and not used here any more.")


class KeyPlacesSerializer(CamelCaseSerializer):
    """Where the member may have keys."""

    is_allowed = serializers.BooleanField(help_text="Whether the site lets members use keys of their own.")
    items = KeyPlaceSerializer(many=True)


class KeyViewSet(ScopedViewSet):
    """The keys of the member who asks."""

    @extend_schema(
        operation_id="myKeys",
        tags=["keys"],
        summary="Endpoints at which I may use a key of my own",
        responses={200: KeyPlacesSerializer},
        examples=[
            OpenApiExample("keys", response_only=True, value={"isAllowed": True, "items": [PLACE_EXAMPLE]}),
        ],
    )
    def list(self, request: ScopedRequest) -> Response:
        """Return the places."""
        member = request.membership
        found = {"is_allowed": allows_keys(member), "items": key_places(member)}
        return Response(KeyPlacesSerializer(found).data)

    @extend_schema(
        operation_id="keepKey",
        tags=["keys"],
        summary="Use a key of my own at an endpoint, from the next reply on",
        parameters=[ENDPOINT_ID],
        request=KeyGivenSerializer,
        responses={200: KeyPlaceSerializer},
    )
    def keep(self, request: ScopedRequest, endpoint_id: str) -> Response:
        """Return the place with its mask.

        Raises: NotAllowed member_keys_off, NotFound.
        """
        given = read_body(KeyGivenSerializer, request)
        return Response(KeyPlaceSerializer(keep_key(request.membership, endpoint_id, given["api_key"])).data)

    @extend_schema(
        operation_id="removeKey",
        tags=["keys"],
        summary="Forget my key; also where the site does not allow keys any more",
        parameters=[ENDPOINT_ID],
        responses={204: OpenApiResponse(description="It is gone.")},
    )
    def remove(self, request: ScopedRequest, endpoint_id: str) -> Response:
        """Return nothing.

        Raises: NotFound.
        """
        remove_key(request.membership, endpoint_id)
        return Response(status=status.HTTP_204_NO_CONTENT)
