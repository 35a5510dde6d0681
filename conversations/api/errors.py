"""From any exception to what a client sees: RFC 9457, one shape for DRF, Django and the ASGI streams."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.views import defaults
from rest_framework import exceptions

from conversations.errors import (
    BadRequest,
    ChatError,
    Invalid,
    Limited,
    NotAllowed,
    NotFound,
    NotSignedIn,
    Unavailable,
    language_of,
    problem_document,
)

log = logging.getLogger(__name__)

Headers = Mapping[str, str] | Iterable[tuple[bytes, bytes]]
PROBLEM_TYPE = "application/problem+json"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}\Z")


def header_of(headers: Headers, name: str) -> str | None:
    """Return one header, by its name in lower case, of Django's mapping or ASGI's pairs; the first one given."""
    if isinstance(headers, Mapping):
        return next((value for key, value in headers.items() if key.lower() == name), None)
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in headers if key.lower() == wanted), None)


def request_id_of(headers: Headers) -> str:
    """Return the request id that the outermost layer (`edge.py`) set, or a new one where that is not in place."""
    given = header_of(headers, "x-request-id")
    return given if given is not None and _SANE_REQUEST_ID.match(given) else uuid.uuid4().hex


def chat_error_of(exception: BaseException) -> ChatError:
    """Return what a client is told about an exception; `internal` for whatever nobody expected."""
    match exception:
        case ChatError():
            return exception
        case exceptions.ParseError():
            return BadRequest("malformed_json")
        case exceptions.ValidationError():
            return Invalid("invalid", errors=_field_errors(exception.detail))
        case exceptions.UnsupportedMediaType():
            return ChatError("unsupported_media_type")
        case exceptions.MethodNotAllowed():
            return ChatError("method_not_allowed")
        case exceptions.NotAcceptable():
            return ChatError("not_acceptable")
        case exceptions.Throttled():
            return Limited(retry_after_seconds=max(1, int(getattr(exception, "wait", None) or 1)))
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return NotSignedIn()
        case exceptions.PermissionDenied():
            return NotAllowed()
        case exceptions.NotFound() | Http404():
            return NotFound()
        case RequestDataTooBig():
            return ChatError("body_too_large")
        case OperationalError() | InterfaceError():
            return Unavailable()
        case _:
            return ChatError("internal")


def problem_response_parts(error: ChatError, headers: Headers) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body that tell of an error, in the language and with the id of a request."""
    headers = headers if isinstance(headers, Mapping) else list(headers)
    request_id = request_id_of(headers)
    language = language_of(header_of(headers, "accept-language"))
    body = orjson.dumps(problem_document(error, language=language, request_id=request_id))
    answer = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"content-language", b"en" if language == "en" else b"zh-Hans"),
        (b"cache-control", b"no-store"),
        (b"x-request-id", request_id.encode()),
    ]
    if error.status == 401:
        answer.append((b"www-authenticate", b"Bearer"))
    if error.retry_after_seconds is not None:
        answer.append((b"retry-after", str(error.retry_after_seconds).encode()))
    return error.status, answer, body


def problem_response(error: ChatError, request: HttpRequest) -> HttpResponse:
    """Return the same as Django's response."""
    status, headers, body = problem_response_parts(error, request.headers)
    response = HttpResponse(body, status=status)
    for name, value in headers:
        response[name.decode()] = value.decode()
    return response


def log_unexpected(exception: BaseException, headers: Headers, *, path: str) -> None:
    """Write down that something went wrong on our side: its type and where, never its text."""
    log.error(
        "unexpected exception",
        exc_info=exception,
        extra={"request_id": request_id_of(headers), "path": path, "kind": type(exception).__name__},
    )


def handle_exception(exception: Exception, context: dict[str, Any]) -> HttpResponse:
    """Return the response for an exception in one of our DRF views (settings.REST_FRAMEWORK)."""
    request = context["request"]
    error = chat_error_of(exception)
    if error.code in {"internal", "unavailable"}:
        log_unexpected(exception, request.headers, path=request.path)
    response = problem_response(error, request._request)
    if isinstance(exception, exceptions.MethodNotAllowed):
        response["Allow"] = ", ".join(context["view"].allowed_methods)
    return response


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return Django's answer to a bad request; a problem document below /api/."""
    if not _is_api(request):
        return defaults.bad_request(request, exception)
    too_big = isinstance(exception, RequestDataTooBig)
    return problem_response(chat_error_of(exception) if too_big else BadRequest(), request)


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return Django's answer to a refusal; a problem document below /api/."""
    return (
        problem_response(NotAllowed(), request)
        if _is_api(request)
        else defaults.permission_denied(request, exception)
    )


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return Django's answer to an unknown path; a problem document below /api/."""
    return (
        problem_response(NotFound(), request) if _is_api(request) else defaults.page_not_found(request, exception)
    )


def handler500(request: HttpRequest) -> HttpResponse:
    """Return Django's answer to a failure, which it has logged; a problem document below /api/."""
    return problem_response(ChatError("internal"), request) if _is_api(request) else defaults.server_error(request)


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/")


def _field_errors(detail: Any) -> dict[str, Any]:
    """Return field → sentences as plain text; what is wrong with the body as a whole stands under `body`."""
    if not isinstance(detail, dict):
        return {"body": [str(item) for item in detail]}
    return {("body" if name == "non_field_errors" else str(name)): _plain(value) for name, value in detail.items()}


def _plain(detail: Any) -> Any:
    if isinstance(detail, dict):
        return {str(name): _plain(value) for name, value in detail.items()}
    return [_plain(item) if isinstance(item, (dict, list)) else str(item) for item in detail]
