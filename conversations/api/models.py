"""The model registry as JSON, for staff (API.md 5). The rules of an endpoint are its form's, as in the admin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from asgiref.sync import async_to_sync
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.db import connection, transaction
from django.forms.models import model_to_dict
from django.utils.translation import gettext
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_field,
    extend_schema_serializer,
)
from rest_framework import serializers, status
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from conversations.api.authentication import StaffTokenAuthentication
from conversations.api.keys import key_field
from conversations.api.permissions import HoldsRights
from conversations.api.scoped import SpeakJson
from conversations.api.serializers import (
    ROW_ID_MAX,
    CamelCaseSerializer,
    Moment,
    OneOf,
    Switch,
    Text,
    Whole,
    camel_case,
)
from conversations.db import tenant
from conversations.errors import Conflict, NotFound, language_of
from conversations.generation.endpoints import live_replies_on, remove_endpoint, standing
from conversations.models import Site
from conversations.tenancy.grants import config_for_site
from providers.admin import EndpointForm
from providers.advice import advice
from providers.errors import Misconfigured
from providers.models import WAYS_TO_CONTINUE, Endpoint, EndpointRevision, restore_revision
from providers.pool import probe
from providers.registry import EndpointConfig, config_of

TEST_SECONDS = 20.0
MODEL_ID = OpenApiParameter("modelId", OpenApiTypes.INT64, OpenApiParameter.PATH, description="An endpoint.")
READ_ONLY = frozenset(
    {"id", "apiKeyMask", "testedAt", "testOk", "isDraining", "createdAt", "updatedAt", "warning"}
)
MODEL_EXAMPLE: dict[str, Any] = {
    "id": 3,
    "name": "主力",
    "dialect": "openai",
    "baseUrl": "https://api.example.com/v1",
    "model": "chat-large",
    "apiKeyMask": "sk-…7890",
    "isActive": True,
    "isShared": True,
    "priority": 10,
    "weight": 1,
    "concurrencyMax": 200,
    "requestsPerMinute": None,
    "inputMicrosPerMillion": 2_500_000,
    "outputMicrosPerMillion": 10_000_000,
    "params": {"temperature": 0.7},
    "config": {},
    "continues": "",
    "tools": "auto",
    "connectSeconds": None,
    "firstSeconds": 30.0,
    "idleSeconds": None,
    "totalSeconds": None,
    "testedAt": "2026-11-20T08:14:05.120+08:00",
    "testOk": True,
    "isDraining": False,
    "createdAt": "2026-11-20T08:10:00.000+08:00",
    "updatedAt": "2026-11-20T08:12:30.500+08:00",
}
GIVEN_EXAMPLE = {
    "name": "主力",
    "baseUrl": "https://api.example.com/v1",
    "model": "chat-large",
    "apiKey": "sk-…",
    "concurrencyMax": 200,
    "params": {"temperature": 0.7},
    "config": {},
}


class Seconds(serializers.FloatField):
    """A JSON number; neither a string nor true."""

    def to_internal_value(self, data: Any) -> float:
        """Return the number."""
        if type(data) not in (int, float):
            self.fail("invalid")
        return super().to_internal_value(data)


@extend_schema_field({"type": "object", "additionalProperties": True})
class Parameters(serializers.Field[Any, Any, Any, Any]):
    """A JSON object, kept as it is; the form says what may stand in it."""

    def to_internal_value(self, data: Any) -> Any:
        """Return the value."""
        return data

    def to_representation(self, value: Any) -> Any:
        """Return the value."""
        return value


class GivenSerializer(CamelCaseSerializer):
    """The base of what staff may send: what is only read is passed over, what nobody knows is refused."""

    passed_over: ClassVar[frozenset[str]] = frozenset()

    def to_internal_value(self, data: Any) -> Any:
        """Return the values; a field that nobody knows is refused by its name."""
        if isinstance(data, Mapping) and (unknown := set(data) - set(self.fields) - self.passed_over):
            raise ValidationError({name: [gettext("This field is not known.")] for name in sorted(unknown)})
        return super().to_internal_value(data)


@extend_schema_serializer(examples=[OpenApiExample("model", value=GIVEN_EXAMPLE, request_only=True)])
class ModelGivenSerializer(GivenSerializer):
    """What staff may set of an endpoint; what is not given stays as it is."""

    passed_over = READ_ONLY
    name = Text(max_length=100, required=False)
    dialect = OneOf(choices=Endpoint.Dialect.choices, required=False)
    base_url = Text(max_length=500, allow_blank=True, required=False)
    model = Text(max_length=200, allow_blank=True, required=False)
    api_key = key_field(
        allow_blank=True,
        allow_null=True,
        required=False,
        help_text="Write-only; null or empty removes the stored key.",
    )
    is_active = Switch(required=False)
    is_shared = Switch(required=False, help_text="false: only the sites with a grant may use it.")
    priority = Whole(required=False, help_text="0 to 1000; lower numbers are tried first.")
    weight = Whole(required=False, help_text="1 to 1000; the share among equals.")
    concurrency_max = Whole(required=False, allow_null=True, help_text="Replies at once; null: no limit.")
    requests_per_minute = Whole(required=False, allow_null=True, help_text="null: no limit.")
    input_micros_per_million = Whole(required=False, allow_null=True, help_text="Millionths of your currency.")
    output_micros_per_million = Whole(required=False, allow_null=True, help_text="Millionths of your currency.")
    params = Parameters(required=False)
    config = Parameters(required=False, help_text="Of a declarative endpoint; docs/declarative.md.")
    continues = OneOf(
        choices=[("", ""), *WAYS_TO_CONTINUE],
        required=False,
        help_text="How it goes on with a reply that another endpoint began; empty: by dialect and configuration.",
    )
    tools = OneOf(
        choices=("auto", "yes", "no"), required=False, help_text="Whether the model may be offered tools."
    )
    connect_seconds = Seconds(required=False, allow_null=True)
    first_seconds = Seconds(required=False, allow_null=True)
    idle_seconds = Seconds(required=False, allow_null=True)
    total_seconds = Seconds(required=False, allow_null=True)


@extend_schema_serializer(examples=[OpenApiExample("model", value=MODEL_EXAMPLE, response_only=True)])
class ModelSerializer(CamelCaseSerializer):
    """An endpoint; its key never comes back, only the mask."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    dialect = serializers.ChoiceField(choices=Endpoint.Dialect.choices)
    base_url = serializers.CharField()
    model = serializers.CharField()
    api_key_mask = serializers.CharField()
    is_active = serializers.BooleanField()
    is_shared = serializers.BooleanField(help_text="false: only the sites with a grant may use it.")
    priority = serializers.IntegerField()
    weight = serializers.IntegerField()
    concurrency_max = serializers.IntegerField(allow_null=True)
    requests_per_minute = serializers.IntegerField(allow_null=True)
    input_micros_per_million = serializers.IntegerField(allow_null=True)
    output_micros_per_million = serializers.IntegerField(allow_null=True)
    params = Parameters()
    config = Parameters()
    continues = serializers.CharField()
    tools = serializers.ChoiceField(choices=("auto", "yes", "no"))
    connect_seconds = serializers.FloatField(allow_null=True)
    first_seconds = serializers.FloatField(allow_null=True)
    idle_seconds = serializers.FloatField(allow_null=True)
    total_seconds = serializers.FloatField(allow_null=True)
    tested_at = Moment(allow_null=True)
    test_ok = serializers.BooleanField(allow_null=True)
    is_draining = serializers.BooleanField(help_text="Deleted when the last reply on it is over.")
    created_at = Moment()
    updated_at = Moment()
    warning = serializers.CharField(required=False, help_text="Active, and it has not passed a test as it stands.")


class ModelsSerializer(CamelCaseSerializer):
    """All endpoints, in the order in which they are tried."""

    items = ModelSerializer(many=True)
    total = serializers.IntegerField()


class ModelTestGivenSerializer(GivenSerializer):
    """Whose key to test with; nothing is needed for the endpoint's own."""

    site = Text(max_length=64, required=False, allow_null=True, help_text="A site's slug: test as it calls.")


class ModelTestSerializer(CamelCaseSerializer):
    """How a real, small, streamed call went."""

    ok = serializers.BooleanField()
    latency_ms = serializers.IntegerField()
    first_token_ms = serializers.IntegerField(allow_null=True)
    sample = serializers.CharField()
    error = serializers.DictField(
        required=False, help_text="`code`, `message` to act on, and `vendorMessage`, what the provider said."
    )


class WorkerSerializer(CamelCaseSerializer):
    """A live worker."""

    id = serializers.IntegerField()
    host = serializers.CharField()
    revision = serializers.IntegerField(source="registry_revision")
    seen_at = Moment()
    live_replies = serializers.IntegerField()


class RevisionSerializer(CamelCaseSerializer):
    """The revision of the endpoints, and how far each worker is."""

    revision = serializers.IntegerField()
    workers = WorkerSerializer(many=True)
    kept = serializers.ListField(
        child=serializers.IntegerField(), help_text="Those that can be brought back, newest first."
    )


class RevisionGivenSerializer(CamelCaseSerializer):
    """Which revision to bring back."""

    revision = Whole(min_value=0, max_value=ROW_ID_MAX)


class StaffViewSet(ViewSet):
    """The base of views for Django staff: by session with CSRF, or by token; `rights` says who may do what."""

    content_negotiation_class = SpeakJson
    authentication_classes = (StaffTokenAuthentication, SessionAuthentication)
    permission_classes = (HoldsRights,)
    metadata_class = None
    rights: ClassVar[Mapping[str, tuple[str, ...]]] = {}


def model_document(endpoint: Endpoint, *, is_written: bool = False) -> dict[str, Any]:
    """Return one endpoint as JSON; after a write, with a warning when it is active and nobody saw it well."""
    document = dict(ModelSerializer(endpoint).data)
    if is_written and endpoint.is_active and endpoint.was_never_well:
        document["warning"] = gettext("%(name)s has not passed a test as it stands.") % {"name": endpoint.name}
    return document


def access_model(model_id: str, *, to_change: bool = False) -> Endpoint:
    """Return the endpoint of this id; `to_change` it is locked, so that of two changes neither undoes the other.

    The ledger may refer to it all the while: replies under way do not wait.
    Raises: NotFound.
    """
    is_id = model_id.isascii() and model_id.isdigit() and len(model_id) < 19
    rows = Endpoint.objects.select_for_update(no_key=True) if to_change else Endpoint.objects.all()
    endpoint = rows.filter(pk=int(model_id)).first() if is_id else None
    if endpoint is None:
        raise NotFound
    return endpoint


def save_model(endpoint: Endpoint, given: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint with what was given, saved.

    Raises: ValidationError with sentences by field, and then nothing was changed.
    """
    values = {**model_to_dict(endpoint), **given}
    key = values.pop("api_key", None)
    for name in ("params", "config"):
        values[name] = json.dumps(values[name], ensure_ascii=False)
    values["api_key"], values["clear_api_key"] = key or "", "api_key" in given and not key
    form = EndpointForm(values, instance=endpoint)
    if not form.is_valid():
        names = {"__all__": "body", "clear_api_key": "apiKey"}
        said: dict[str, Any] = {
            names.get(name, camel_case(name)): [str(text) for text in texts] for name, texts in form.errors.items()
        }
        raise ValidationError(said)
    saved: Endpoint = form.save()
    return saved


def note(request: Request, endpoint: Endpoint, flag: int, message: str) -> None:
    """Leave a trace in the history that the admin shows."""
    assert request.user.pk is not None
    LogEntry.objects.log_actions(request.user.pk, [endpoint], flag, f"API: {message}", single_object=True)


class ModelViewSet(StaffViewSet):
    """Endpoints: listed, made, changed, switched, tested, removed."""

    rights = {
        "list": ("providers.view_endpoint",),
        "read": ("providers.view_endpoint",),
        "create": ("providers.add_endpoint",),
        "change": ("providers.change_endpoint",),
        "activate": ("providers.change_endpoint",),
        "deactivate": ("providers.change_endpoint",),
        "test": ("providers.change_endpoint",),
        "delete": ("providers.delete_endpoint",),
    }

    @extend_schema(
        operation_id="listModels",
        tags=["models"],
        summary="All endpoints, in the order in which they are tried",
        responses={200: ModelsSerializer},
        examples=[OpenApiExample("models", response_only=True, value={"items": [MODEL_EXAMPLE], "total": 1})],
    )
    def list(self, request: Request) -> Response:
        """Return all endpoints."""
        items = [model_document(endpoint) for endpoint in Endpoint.objects.order_by("priority", "pk")]
        return Response({"items": items, "total": len(items)})

    @extend_schema(
        operation_id="createModel",
        tags=["models"],
        summary="Register an endpoint",
        request=ModelGivenSerializer,
        responses={201: ModelSerializer},
    )
    def create(self, request: Request) -> Response:
        """Return the new endpoint."""
        given = read_given(ModelGivenSerializer, request)
        with transaction.atomic():
            endpoint = save_model(Endpoint(), given)
            note(request, endpoint, ADDITION, "created")
        return Response(model_document(endpoint, is_written=True), status=status.HTTP_201_CREATED)

    @extend_schema(
        operation_id="readModel",
        tags=["models"],
        summary="One endpoint",
        parameters=[MODEL_ID],
        responses={200: ModelSerializer},
    )
    def read(self, request: Request, model_id: str) -> Response:
        """Return one endpoint."""
        return Response(model_document(access_model(model_id)))

    @extend_schema(
        operation_id="changeModel",
        tags=["models"],
        summary="Change an endpoint while replies run; they keep what they have",
        parameters=[MODEL_ID],
        request=ModelGivenSerializer,
        responses={200: ModelSerializer},
    )
    def change(self, request: Request, model_id: str) -> Response:
        """Return the changed endpoint."""
        access_model(model_id)
        given = read_given(ModelGivenSerializer, request)
        with transaction.atomic():
            endpoint = save_model(access_model(model_id, to_change=True), given)
            note(request, endpoint, CHANGE, "changed " + ", ".join(sorted(given)))
        return Response(model_document(endpoint, is_written=True))

    @extend_schema(
        operation_id="deleteModel",
        tags=["models"],
        summary="Delete an endpoint on which no reply runs",
        parameters=[
            MODEL_ID,
            OpenApiParameter(
                "drain",
                OpenApiTypes.STR,
                enum=["1"],
                description="One in use gets no new replies, and is deleted when the last is over (202).",
            ),
        ],
        responses={
            202: OpenApiResponse(ModelSerializer, description="It drains."),
            204: OpenApiResponse(description="It is gone."),
        },
        examples=[
            OpenApiExample(
                "draining",
                response_only=True,
                status_codes=["202"],
                value={**MODEL_EXAMPLE, "isActive": False, "isDraining": True},
            )
        ],
    )
    def delete(self, request: Request, model_id: str) -> Response:
        """Return nothing when it is gone, or the endpoint as it drains.

        Raises: Conflict endpoint_in_use.
        """
        endpoint = access_model(model_id)
        with transaction.atomic():
            note(request, endpoint, DELETION, "deleted")
            done = remove_endpoint(endpoint, drain=request.query_params.get("drain") == "1")
            if done == "in use":
                transaction.set_rollback(True)
        if done == "in use":
            raise Conflict("endpoint_in_use", extra={"liveReplies": live_replies_on(endpoint.pk)})
        if done == "draining":
            return Response(model_document(endpoint), status=status.HTTP_202_ACCEPTED)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        operation_id="activateModel",
        tags=["models"],
        summary="Let an endpoint answer; with a `warning` when it has not passed a test as it stands",
        parameters=[MODEL_ID],
        request=None,
        responses={200: ModelSerializer},
    )
    def activate(self, request: Request, model_id: str) -> Response:
        """Return the endpoint, active."""
        return self._switch(request, model_id, is_active=True)

    @extend_schema(
        operation_id="deactivateModel",
        tags=["models"],
        summary="Give an endpoint no new replies",
        parameters=[MODEL_ID],
        request=None,
        responses={200: ModelSerializer},
    )
    def deactivate(self, request: Request, model_id: str) -> Response:
        """Return the endpoint, inactive."""
        return self._switch(request, model_id, is_active=False)

    def _switch(self, request: Request, model_id: str, *, is_active: bool) -> Response:
        with transaction.atomic():
            endpoint = access_model(model_id, to_change=True)
            if endpoint.is_active != is_active:
                endpoint.is_active = is_active
                endpoint.is_draining = endpoint.is_draining and not is_active
                endpoint.save(update_fields=["is_active", "is_draining", "updated_at"])
                note(request, endpoint, CHANGE, "activated" if is_active else "deactivated")
        return Response(model_document(endpoint, is_written=True))

    @extend_schema(
        operation_id="testModel",
        tags=["models"],
        summary="Make a real, small, streamed call; with a site's own key, when one is named",
        parameters=[MODEL_ID],
        request=ModelTestGivenSerializer,
        responses={200: ModelTestSerializer},
        examples=[
            OpenApiExample("a site's own key", request_only=True, value={"site": "acorn"}),
            OpenApiExample(
                "well",
                response_only=True,
                value={"ok": True, "latencyMs": 812, "firstTokenMs": 240, "sample": "你好"},
            ),
            OpenApiExample(
                "refused",
                response_only=True,
                value={
                    "ok": False,
                    "latencyMs": 95,
                    "firstTokenMs": None,
                    "sample": "",
                    "error": {
                        "code": "unauthorized",
                        "message": "密钥缺失、错误或没有权限，请重新填写密钥。",
                        "vendorMessage": "Incorrect API key provided.",
                    },
                },
            ),
        ],
    )
    def test(self, request: Request, model_id: str) -> Response:
        """Return how the call went; also an inactive endpoint can be tested."""
        endpoint = access_model(model_id)
        slug = read_given(ModelTestGivenSerializer, request).get("site")
        language = language_of(request.headers.get("Accept-Language"))
        try:
            config = _as_called(endpoint, slug)
        except Misconfigured as error:
            if not slug:
                endpoint.note_test(is_ok=False)
            return Response(_failed_test(error.code, language))
        if not connection.in_atomic_block:
            connection.close()  # It may take long, and others need the connection.
        result = async_to_sync(probe)(config, seconds=TEST_SECONDS)
        if not slug:  # Of a site's key it says nothing about the endpoint's.
            endpoint.note_test(is_ok=result.is_ok)
        document: dict[str, Any] = {
            "ok": result.is_ok,
            "latencyMs": result.latency_ms,
            "firstTokenMs": result.first_token_ms,
            "sample": result.sample,
        }
        if not result.is_ok:
            failed = _failed_test(result.error_code or "", language, result.vendor_message)
            document["error"] = failed["error"]
        return Response(document)


def _as_called(endpoint: Endpoint, slug: str | None) -> EndpointConfig:
    """Return the endpoint with its own key, or as this site calls it.

    Raises: Misconfigured; ValidationError for a site that is not there or may not use it.
    """
    if not slug:
        return config_of(endpoint)
    site = Site.objects.filter(slug=slug).first()
    if site is None:
        raise ValidationError({"site": [gettext("There is no such site.")]})
    with tenant(site.pk):
        config = config_for_site(endpoint, site)
    if config is None:
        raise ValidationError({"site": [gettext("This site may not use the endpoint.")]})
    return config


class RevisionViewSet(StaffViewSet):
    """The registry as a whole."""

    rights = {
        "read": ("providers.view_endpoint",),
        "restore": ("providers.add_endpoint", "providers.change_endpoint", "providers.delete_endpoint"),
    }
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "revision": 42,
        "workers": [
            {
                "id": 7,
                "host": "chat-01",
                "revision": 42,
                "seenAt": "2026-11-20T08:14:05.120+08:00",
                "liveReplies": 130,
            }
        ],
        "kept": [42, 41, 40],
    }

    @extend_schema(
        operation_id="readRevision",
        tags=["models"],
        summary="The revision of the endpoints, and how far each worker is",
        responses={200: RevisionSerializer},
        examples=[OpenApiExample("revision", response_only=True, value=EXAMPLE)],
    )
    def read(self, request: Request) -> Response:
        """Return the revision and the live workers."""
        return Response(_revision_document())

    @extend_schema(
        operation_id="restoreRevision",
        tags=["models"],
        summary="Bring back all endpoints as they were at an earlier revision",
        description="Keys included. That is a new revision, and can be undone in the same way.",
        request=RevisionGivenSerializer,
        responses={200: RevisionSerializer},
        examples=[
            OpenApiExample("earlier", request_only=True, value={"revision": 41}),
            OpenApiExample("restored", response_only=True, value=EXAMPLE),
        ],
    )
    def restore(self, request: Request) -> Response:
        """Return the new revision.

        Raises: NotFound, when it is not kept.
        """
        given = read_given(RevisionGivenSerializer, request)
        try:
            restore_revision(given["revision"])
        except EndpointRevision.DoesNotExist:
            raise NotFound from None
        return Response(_revision_document())


def _revision_document() -> dict[str, Any]:
    now = standing()
    kept = list(EndpointRevision.objects.values_list("revision", flat=True))
    return dict(RevisionSerializer({"revision": now.revision, "workers": now.workers, "kept": kept}).data)


def _failed_test(code: str, language: Any, vendor_message: str | None = None) -> dict[str, Any]:
    error = {"code": code, "message": advice(code, language)}
    if vendor_message:
        error["vendorMessage"] = vendor_message
    return {"ok": False, "latencyMs": 0, "firstTokenMs": None, "sample": "", "error": error}


def read_given(serializer: type[Any], request: Request) -> dict[str, Any]:
    """Return the values of the JSON body.

    Raises: ValidationError, which becomes 422 `invalid`.
    """
    body = serializer(data=request.data)
    body.is_valid(raise_exception=True)
    return dict(body.validated_data)
