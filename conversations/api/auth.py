"""Sign-in: the views that hand tokens out, rotate and end them, and say who is asking."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from conversations.api.permissions import IsSignedIn
from conversations.api.scoped import OpenView, ScopedRequest, ScopedViewSet
from conversations.api.serializers import (
    CredentialsSerializer,
    MembershipSerializer,
    RefreshSerializer,
    TokenPairSerializer,
)
from conversations.tenancy import tokens
from conversations.tenancy.throttle import spend_sign_in

NO_STORE = {"Cache-Control": "no-store"}


class TokenView(OpenView):
    """Sign-in with a password."""

    @extend_schema(
        operation_id="signIn",
        tags=["sign-in"],
        summary="Sign in with username, password and site",
        request=CredentialsSerializer,
        responses={200: TokenPairSerializer},
        auth=[],
    )
    def post(self, request: Request) -> Response:
        """Return the first pair of tokens; members who wait for approval get one, too."""
        body = CredentialsSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data
        spend_sign_in(given["username"], request.META.get("REMOTE_ADDR", ""))
        pair = tokens.sign_in(given["username"], given["password"], given["site"])
        return Response(TokenPairSerializer(pair).data, headers=NO_STORE)


class RefreshView(OpenView):
    """The next pair of tokens."""

    @extend_schema(
        operation_id="refreshTokens",
        tags=["sign-in"],
        summary="Rotate the pair; a used refresh token ends its family",
        request=RefreshSerializer,
        responses={200: TokenPairSerializer},
        auth=[],
    )
    def post(self, request: Request) -> Response:
        """Return the next pair; the refresh token given is used up."""
        body = RefreshSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        pair = tokens.refresh(body.validated_data["refresh"])
        return Response(TokenPairSerializer(pair).data, headers=NO_STORE)


class LogoutView(OpenView):
    """The end of a sign-in."""

    @extend_schema(
        operation_id="signOut",
        tags=["sign-in"],
        summary="Sign out: all tokens of this sign-in die",
        request=RefreshSerializer,
        responses={204: None},
        auth=[],
    )
    def post(self, request: Request) -> Response:
        """Return nothing, when the sign-in has ended."""
        body = RefreshSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        tokens.sign_out(body.validated_data["refresh"])
        return Response(status=status.HTTP_204_NO_CONTENT)


class MeViewSet(ScopedViewSet):
    """The member who asks."""

    permission_classes = (IsSignedIn,)

    @extend_schema(
        operation_id="me",
        tags=["sign-in"],
        summary="Who I am here; also for members who wait for approval",
        responses={200: MembershipSerializer},
        examples=[
            OpenApiExample(
                "waiting",
                response_only=True,
                value={
                    "id": 4,
                    "user": {"id": 4, "username": "dave"},
                    "site": {"slug": "demo", "name": "演示", "locale": "zh-hans"},
                    "role": "member",
                    "nickname": "",
                    "status": "pending",
                },
            )
        ],
    )
    def me(self, request: ScopedRequest) -> Response:
        """Return the member with user and site."""
        return Response(MembershipSerializer(request.membership).data)
