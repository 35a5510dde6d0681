from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import Http404
from django.test import RequestFactory
from rest_framework import exceptions
from rest_framework.response import Response

from conversations.api import errors
from conversations.api.scoped import ScopedRequest, ScopedViewSet
from conversations.errors import Conflict, Limited, NotFound
from conversations.models import Conversation
from tests.world import World, bearer, make_conversation


@pytest.mark.parametrize(
    ("exception", "code"),
    [
        (NotFound(), "not_found"),
        (Http404(), "not_found"),
        (exceptions.NotFound(), "not_found"),
        (exceptions.ParseError("secret"), "malformed_json"),
        (exceptions.UnsupportedMediaType("a/b"), "unsupported_media_type"),
        (exceptions.MethodNotAllowed("PUT"), "method_not_allowed"),
        (exceptions.NotAcceptable(), "not_acceptable"),
        (exceptions.Throttled(3), "throttled"),
        (exceptions.ValidationError({"page": ["bad"]}), "invalid"),
        (exceptions.NotAuthenticated(), "not_signed_in"),
        (exceptions.AuthenticationFailed(), "not_signed_in"),
        (exceptions.PermissionDenied(), "not_allowed"),
        (RequestDataTooBig(), "body_too_large"),
        (OperationalError("host=secret"), "unavailable"),
        (InterfaceError(), "unavailable"),
        (ZeroDivisionError("secret"), "internal"),
    ],
)
def test_every_exception_has_a_code(exception: Exception, code: str) -> None:
    assert errors.chat_error_of(exception).code == code


def test_nested_field_errors_become_plain_text() -> None:
    detail = {"a": {"b": ["不对"]}, "non_field_errors": ["整体"]}
    error = errors.chat_error_of(exceptions.ValidationError(detail))
    assert error.errors == {"a": {"b": ["不对"]}, "body": ["整体"]}


def test_a_problem_speaks_the_callers_language_and_names_its_request() -> None:
    error = Conflict("generating", extra={"messageId": 812})
    asgi = [(b"accept-language", b"en-GB,zh;q=0.5"), (b"x-request-id", b"req-12345678")]
    status, headers, body = errors.problem_response_parts(error, asgi)
    assert status == 409
    assert dict(headers) == {
        b"content-type": b"application/problem+json",
        b"content-length": str(len(body)).encode(),
        b"content-language": b"en",
        b"cache-control": b"no-store",
        b"x-request-id": b"req-12345678",
    }
    assert json.loads(body) == {
        "type": "/api/docs/errors#generating",
        "title": "Conflict",
        "status": 409,
        "detail": "A reply is still under way in this chat.",
        "code": "generating",
        "messageId": 812,
        "requestId": "req-12345678",
    }


def test_what_an_error_adds_never_replaces_a_member_of_the_problem() -> None:
    error = Conflict("already_finished", extra={"status": "complete", "replyStatus": "complete"})
    _, _, body = errors.problem_response_parts(error, {})
    assert (json.loads(body)["status"], json.loads(body)["replyStatus"]) == (409, "complete")


def test_a_limit_says_when_to_come_back() -> None:
    _, headers, body = errors.problem_response_parts(Limited(retry_after_seconds=7), {})
    assert dict(headers)[b"retry-after"] == b"7"
    assert json.loads(body)["retryAfter"] == 7


@pytest.mark.parametrize("given", ["", "short", "with space in it", "x" * 65, "断断断断断断断断", "a\nbcdefgh"])
def test_an_insane_request_id_is_replaced(given: str) -> None:
    answer = errors.request_id_of({"X-Request-Id": given})
    assert answer != given and len(answer) == 32


class Careless(ScopedViewSet):
    """Writes, and then fails."""

    def get(self, request: ScopedRequest, how: str) -> Response:
        Conversation.across_sites.update(title="改了")
        raise {"boom": ZeroDivisionError("secret"), "refused": NotFound(), "away": OperationalError("secret")}[how]


@pytest.mark.parametrize(("how", "status"), [("boom", 500), ("refused", 404), ("away", 503)])
def test_a_failure_takes_back_what_was_written_and_tells_nothing(
    world: World, caplog: Any, how: str, status: int
) -> None:
    make_conversation(world.alice, title="原来")
    caplog.set_level(logging.INFO)
    request = RequestFactory().get("/", headers=bearer(world.alice))
    response = Careless.as_view({"get": "get"})(request, how=how)
    assert response.status_code == status
    assert b"secret" not in response.content
    assert Conversation.across_sites.get().title == "原来"
    written = [record for record in caplog.records if record.name == "conversations.api.errors"]
    assert len(written) == (0 if how == "refused" else 1)


def test_closed_doors_cannot_be_opened_by_a_subclass() -> None:
    for name in ("get_queryset", "get_object", "get_permissions"):
        with pytest.raises(TypeError, match=name):
            type("Leaky", (ScopedViewSet,), {name: lambda self: None})


@pytest.mark.parametrize("handler", [errors.handler400, errors.handler403, errors.handler404])
def test_django_answers_below_the_api_as_the_api_does(handler: Any) -> None:
    inside = handler(RequestFactory().get("/api/x"), Exception("secret"))
    outside = handler(RequestFactory().get("/x"), Exception())
    assert inside["Content-Type"] == "application/problem+json"
    assert outside["Content-Type"].startswith("text/html")
    assert inside.status_code == outside.status_code


def test_a_failure_outside_of_our_views_is_a_problem_below_the_api() -> None:
    response = errors.handler500(RequestFactory().get("/api/x"))
    assert (response.status_code, json.loads(response.content)["code"]) == (500, "internal")
