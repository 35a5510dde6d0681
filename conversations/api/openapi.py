"""The OpenAPI document: what drf-spectacular cannot see by itself.

The streams are ASGI applications ahead of Django; here they are described by hand, and every operation
gets the errors that it may answer with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from drf_spectacular.extensions import OpenApiAuthenticationExtension

from conversations.api.serializers import MESSAGE_EXAMPLE, QUESTION_EXAMPLE, camel_case
from conversations.errors import CODES, ChatError, problem_document
from conversations.models.conversations import CONTENT_MAX_CHARS

CHAT = "/api/xcx/chat"
Endpoint = tuple[str, str, str, Callable[..., Any]]

_COMMON = ("not_signed_in", "token_invalid", "token_expired")
_MEMBER = (*_COMMON, "not_approved", "internal", "unavailable")
_STAFF = (*_COMMON, "not_allowed", "internal", "unavailable")
_BODY = ("malformed_json", "body_too_large", "unsupported_media_type", "invalid")
_MANAGER = (*_MEMBER, "not_allowed")
_FILE = (
    "file_too_large",
    "unsupported_file",
    "file_type_mismatch",
    "file_encrypted",
    "file_broken",
    "file_bomb",
    "file_has_no_text",
    "file_too_long",
)
_SEND = (
    "empty_content",
    "content_too_long",
    "idempotency_mismatch",
    "bad_idempotency_key",
    "generating",
    "throttled",
)

ERRORS_BY_OPERATION: dict[str, tuple[str, ...]] = {
    "signIn": (*_BODY, "bad_credentials", "throttled", "internal", "unavailable"),
    "refreshTokens": (*_BODY, "token_invalid", "token_expired", "internal", "unavailable"),
    "signOut": (*_BODY, "token_invalid", "token_expired", "internal", "unavailable"),
    "me": (*_COMMON, "internal", "unavailable"),
    "history": (*_MEMBER, "invalid", "bad_cursor"),
    "search": (*_MEMBER, "invalid"),
    "createConversation": (*_MEMBER, *_BODY, "bad_idempotency_key", "idempotency_mismatch", "not_found"),
    "readConversation": (*_MEMBER, "not_found"),
    "changeConversation": (*_MEMBER, *_BODY, "not_found"),
    "deleteConversation": (*_MEMBER, "not_found"),
    "messagesOfChat": (*_MEMBER, "invalid", "not_found"),
    "messagesOfContext": (*_MEMBER, "invalid"),
    "setFeedback": (*_MEMBER, *_BODY, "not_found", "not_a_reply"),
    "issueTicket": (*_MEMBER, *_BODY, "not_found"),
    "listDocuments": (*_MANAGER, "invalid"),
    "addDocument": (*_MANAGER, *_BODY, *_FILE),
    "readDocument": (*_MANAGER, "not_found"),
    "changeDocument": (*_MANAGER, *_BODY, *_FILE, "not_found"),
    "deleteDocument": (*_MANAGER, "not_found"),
    "searchKnowledge": (*_MANAGER, "invalid"),
    "sendMessage": (*_MEMBER, *_BODY, *_SEND, "not_your_chat", "provider_unavailable", "interrupted"),
    "streamReply": (*_MEMBER, *_BODY, *_SEND, "not_your_chat", "bad_event_id", "not_found"),
    "resumeStream": (*_MEMBER, "ticket_invalid", "bad_event_id", "not_found"),
    "streamMessage": (*_MEMBER, "ticket_invalid", "bad_event_id", "not_found"),
    "stopReply": (*_MEMBER, "not_found", "already_finished"),
    "regenerateReply": (
        *_MEMBER,
        *_BODY,
        "not_found",
        "not_a_reply",
        "generating",
        "bad_idempotency_key",
        "idempotency_mismatch",
        "throttled",
    ),
    "streamSelftest": _MEMBER,
    "listModels": _STAFF,
    "createModel": (*_STAFF, *_BODY),
    "readModel": (*_STAFF, "not_found"),
    "changeModel": (*_STAFF, *_BODY, "not_found"),
    "deleteModel": (*_STAFF, "not_found", "endpoint_in_use"),
    "activateModel": (*_STAFF, "not_found"),
    "deactivateModel": (*_STAFF, "not_found"),
    "testModel": (*_STAFF, *_BODY, "not_found"),
    "listModelSites": (*_STAFF, "not_found"),
    "readModelSite": (*_STAFF, "not_found"),
    "grantModel": (*_STAFF, *_BODY, "not_found"),
    "revokeModel": (*_STAFF, "not_found"),
    "myKeys": _MEMBER,
    "keepKey": (*_MEMBER, *_BODY, "member_keys_off", "not_found"),
    "removeKey": (*_MEMBER, "not_found"),
    "readRevision": _STAFF,
    "restoreRevision": (*_STAFF, *_BODY, "not_found"),
    # These answer in shapes of their own: openapi_rooms.py, openapi_callback.py.
    "chatCallback": (),
    "getScenes": (),
    "proxyVoiceChat": (),
}

EVENTS = (
    ": ok\n\n"
    'id: 812-2\nevent: message\ndata: {"token":"你好"}\n\n'
    "id: 812-7\nevent: done\n"
    'data: {"messageId":812,"createdAt":"2026-11-20T08:14:05.120+08:00","status":"complete",'
    '"finishReason":"stop","usage":{"inputTokens":31,"outputTokens":4},"referenceCard":null}\n\n'
)
FAILED_EVENTS = (
    ": ok\n\n"
    'id: 812-2\nevent: message\ndata: {"token":"你好"}\n\n'
    "id: 812-2\nevent: error\n"
    'data: {"message":"AI 服务暂时不可用","code":"provider_unavailable","retryable":true,'
    '"messageId":812,"status":"failed","savedChars":2}\n\n'
)
STREAM_TEXT = """\
Server-sent events, UTF-8. Exactly one `done` or `error` comes last; a stream that ends without one is not
an answer: resume it.

| event | data |
|---|---|
| `message` | `{"token"}`: the concatenated tokens are the stored content |
| `done` | `{"messageId","createdAt","status","finishReason","usage","referenceCard"}` |
| `error` | `{"message","code","retryable","messageId","status","savedChars"}` |
| `reasoning`, `title` | `{"token"}`, `{"title"}`; only when asked for by `include`, as the next two |
| `tool` | `{"callId","name","arguments"?,"status","ms"}`: `started`, then `done` or `failed`; no id |
| `reference` | the reference card, just before `done`; no id |

The status of `done` is `complete`, `truncated` or `stopped`; that of `error` is `failed` or `interrupted`.

`id` is `<messageId>-<offset>`, the Unicode code points of the reply up to and including the event (with
reasoning: `<messageId>-<offset>.<reasoningOffset>`). Send the last one back as `Last-Event-ID` to get exactly
the rest, at any time. A comment comes every 10 s without an event. `?ascii=1` escapes all non-ASCII.
"""


class TokenScheme(OpenApiAuthenticationExtension):
    """Describes the bearer token."""

    target_class = "conversations.api.authentication.TokenAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme's description."""
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}


class StaffTokenScheme(TokenScheme):
    """Describes the bearer token of staff; the session stands beside it."""

    target_class = "conversations.api.authentication.StaffTokenAuthentication"
    name = "staffBearer"


def one_path_each(endpoints: list[Endpoint]) -> list[tuple[Any, ...]]:
    """Return the endpoints without their twins that end in a slash, their parameters named as in API.md."""
    return [
        (re.sub(r"\{(\w+)\}", lambda match: "{" + camel_case(match[1]) + "}", path), *rest)
        for path, *rest in endpoints
        if not path.endswith("/")
    ]


def add_streams(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Return the document with the streams described, too."""
    result["components"]["schemas"].update(_schemas())
    for path, operations in _stream_paths().items():
        result["paths"].setdefault(path, {}).update(operations)
    result["paths"] = dict(sorted(result["paths"].items()))
    return result


def add_problems(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Return the document with the errors of each operation, by status, with an example of each code."""
    for operations in result["paths"].values():
        for operation in operations.values():
            by_status: dict[int, list[str]] = {}
            for code in dict.fromkeys(ERRORS_BY_OPERATION.get(operation["operationId"], ())):
                by_status.setdefault(CODES[code].status, []).append(code)
            for status, codes in sorted(by_status.items()):
                operation["responses"][str(status)] = _problem(codes)
    return result


def _problem(codes: list[str]) -> dict[str, Any]:
    examples = {}
    for code in codes:
        error = ChatError(
            code,
            errors={"pageSize": ["请确保该值小于或者等于 100。"]} if code == "invalid" else None,
            retry_after_seconds=30 if code == "throttled" else None,
            extra={"generating": {"messageId": 812}, "endpoint_in_use": {"liveReplies": 3}}.get(code),
        )
        examples[code] = {"value": problem_document(error, language="zh-hans", request_id="5c1f2a9e")}
    return {
        "description": f"{CODES[codes[0]].title}: " + ", ".join(f"`{code}`" for code in codes),
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}
        },
    }


def _schemas() -> dict[str, Any]:
    integer = {"type": "integer"}
    return {
        "Problem": {
            "type": "object",
            "description": "RFC 9457; every `code` is explained in docs/errors.md.",
            "required": ["type", "title", "status", "detail", "code", "requestId"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": integer,
                "detail": {"type": "string", "description": "In the language of Accept-Language."},
                "code": {"type": "string", "enum": list(CODES)},
                "errors": {"type": "object", "description": "Field to sentences.", "additionalProperties": True},
                "retryAfter": {**integer, "description": "Seconds."},
                "messageId": {**integer, "description": "With `generating`: the reply that is under way."},
                "liveReplies": {**integer, "description": "With `endpoint_in_use`: how many."},
                "requestId": {"type": "string"},
            },
        },
        "SendRequest": {
            "type": "object",
            "required": ["content"],
            "properties": {
                "content": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": CONTENT_MAX_CHARS,
                    "description": "Counted after trimming. NUL and lone surrogates are refused.",
                },
                "sourcePage": {"type": "string", "maxLength": 200},
                "pageContext": {"type": ["object", "null"], "additionalProperties": True},
            },
        },
        "StreamRequest": {
            "allOf": [
                {"$ref": "#/components/schemas/SendRequest"},
                {
                    "type": "object",
                    "required": ["chatId"],
                    "properties": {
                        "chatId": integer,
                        "include": {
                            "type": "array",
                            "items": {"type": "string", "enum": ["reasoning", "tool", "reference", "title"]},
                        },
                    },
                },
            ]
        },
        "RegenerateRequest": {
            "type": "object",
            "properties": {
                "include": {
                    "type": "array",
                    "items": {"type": "string", "enum": ["reasoning", "tool", "reference", "title"]},
                }
            },
        },
        "Exchange": {
            "type": "object",
            "required": ["userMessage", "aiReply"],
            "properties": {
                "userMessage": {"$ref": "#/components/schemas/Message"},
                "aiReply": {"$ref": "#/components/schemas/Message"},
            },
        },
        "StopReceipt": {
            "type": "object",
            "required": ["messageId", "status", "savedChars", "upstreamClosedMs"],
            "properties": {
                "messageId": integer,
                "status": {"type": "string"},
                "savedChars": integer,
                "upstreamClosedMs": {"type": ["integer", "null"]},
            },
        },
    }


def _parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "schema": schema,
        "description": description,
        "required": where == "path",
    }


def _stream(description: str) -> dict[str, Any]:
    def header(text: str) -> dict[str, Any]:
        return {"schema": {"type": "string"}, "description": text}

    return {
        "200": {
            "description": description,
            "headers": {
                "Cache-Control": header("no-cache, no-transform"),
                "X-Accel-Buffering": header("no"),
                "X-Chat-Id": header("The conversation."),
                "X-User-Message-Id": header("The question."),
                "X-Message-Id": header("The reply."),
                "X-Request-Id": header("The caller's, or ours."),
            },
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string", "description": STREAM_TEXT},
                    "examples": {"complete": {"value": EVENTS}, "failed": {"value": FAILED_EVENTS}},
                }
            },
        }
    }


def _body(schema: str, example: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {
        "required": required,
        "content": {
            "application/json": {
                "schema": {"$ref": f"#/components/schemas/{schema}"},
                "examples": {"example": {"value": example}},
            }
        },
    }


def _operation(operation_id: str, summary: str, **rest: Any) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "summary": summary,
        "tags": ["stream"],
        "security": [{"bearer": []}],
        **rest,
    }


def _stream_paths() -> dict[str, dict[str, Any]]:
    text, integer = {"type": "string"}, {"type": "integer", "format": "int64"}
    last_event_id = _parameter("Last-Event-ID", "header", text, "Resume after this event; nothing is sent again.")
    last_event_id_query = _parameter("lastEventId", "query", text, "The same, where headers cannot be set.")
    ascii_only = _parameter("ascii", "query", {"type": "string", "enum": ["1"]}, "Escape all non-ASCII.")
    ticket = _parameter("ticket", "query", text, "A single-use ticket, instead of the bearer token.")
    key = _parameter(
        "Idempotency-Key",
        "header",
        {"type": "string", "minLength": 8, "maxLength": 128},
        "Kept for 24 hours: the same key and body replay what exists and go on live.",
    )
    message_id = _parameter("messageId", "path", integer, "A reply.")
    include = _parameter(
        "include", "query", text, "Extra events, comma-separated: reasoning, tool, reference, title."
    )
    send_example = {"content": "今天天气如何？", "sourcePage": "pages/index"}
    return {
        f"{CHAT}/{{chatId}}/messages": {
            "post": _operation(
                "sendMessage",
                "CHAT-3: send, and wait for the whole reply",
                parameters=[_parameter("chatId", "path", integer, "A conversation."), key],
                requestBody=_body("SendRequest", send_example),
                responses={
                    "200": {
                        "description": "Question and reply, when the reply is finished.",
                        "content": {
                            "application/json": {
                                "schema": {"$ref": "#/components/schemas/Exchange"},
                                "examples": {
                                    "exchange": {
                                        "value": {"userMessage": QUESTION_EXAMPLE, "aiReply": MESSAGE_EXAMPLE}
                                    }
                                },
                            }
                        },
                    }
                },
            )
        },
        f"{CHAT}/stream": {
            "post": _operation(
                "streamReply",
                "CHAT-4: send, and stream the reply",
                description="With `Last-Event-ID` nothing is sent: the reply is resumed.",
                parameters=[key, last_event_id, ascii_only],
                requestBody=_body("StreamRequest", {"chatId": 42, **send_example}),
                responses=_stream("The reply as it is made."),
            ),
            "get": _operation(
                "resumeStream",
                "Resume a stream after its last event",
                parameters=[last_event_id, last_event_id_query, ticket, include, ascii_only],
                responses=_stream("The rest of the reply."),
            ),
        },
        f"{CHAT}/stream/selftest": {
            "get": {
                "operationId": "streamSelftest",
                "summary": "Ten numbered events, 100 ms apart: finds a buffering proxy",
                "tags": ["stream"],
                "security": [{"bearer": []}],
                "responses": {
                    "200": {
                        "description": "When they arrive together, something on the way buffers.",
                        "content": {
                            "text/event-stream": {
                                "schema": {"type": "string"},
                                "examples": {
                                    "first": {
                                        "value": 'id: selftest-1\nevent: message\ndata: {"token":"1","n":1}\n\n'
                                    }
                                },
                            }
                        },
                    }
                },
            }
        },
        f"{CHAT}/messages/{{messageId}}/stream": {
            "get": _operation(
                "streamMessage",
                "Stream a reply from its beginning, or after Last-Event-ID",
                parameters=[message_id, last_event_id, last_event_id_query, ticket, include, ascii_only],
                responses=_stream("The reply."),
            )
        },
        f"{CHAT}/messages/{{messageId}}/stop": {
            "post": _operation(
                "stopReply",
                "Stop a reply; what was generated is kept",
                parameters=[message_id],
                responses={
                    "200": {
                        "description": "A receipt.",
                        "content": {
                            "application/json": {
                                "schema": {"$ref": "#/components/schemas/StopReceipt"},
                                "examples": {
                                    "stopped": {
                                        "value": {
                                            "messageId": 812,
                                            "status": "stopped",
                                            "savedChars": 128,
                                            "upstreamClosedMs": 12,
                                        }
                                    }
                                },
                            }
                        },
                    }
                },
            )
        },
        f"{CHAT}/messages/{{messageId}}/regenerate": {
            "post": _operation(
                "regenerateReply",
                "Make another version of a reply; the earlier one stays",
                parameters=[message_id, key, ascii_only],
                requestBody=_body("RegenerateRequest", {"include": ["reasoning"]}, required=False),
                responses=_stream("The new version as it is made."),
            )
        },
    }


@require_safe
def error_page(request: HttpRequest) -> HttpResponse:
    """Return a page on which every error's `type` finds its code explained."""
    rows = "".join(
        f'<tr id="{code}"><td><code>{code}</code><td>{text.status}<td>{escape(text.zh)}<td>{escape(text.en)}'
        for code, text in CODES.items()
    )
    return HttpResponse(
        '<!doctype html><html lang="zh-Hans"><meta charset="utf-8"><title>错误代码 · Error codes</title>'
        '<meta name="viewport" content="width=device-width"><h1>错误代码 · Error codes</h1>'
        f"<table><tr><th>code<th>status<th>中文<th>English{rows}</table>"
    )
