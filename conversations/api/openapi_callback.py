"""The OpenAPI document of the callback, an ASGI application that speaks as OpenAI's servers do."""

from __future__ import annotations

from typing import Any

from conversations.voice.callback import not_let_in, not_now

_ROOM = "1-7f3c2d1e3f5b4a539d3c1f2e3d4c5b6a"
_HEAD = '{"id":"chatcmpl-7f3c","object":"chat.completion.chunk","created":1763600000,"model":"ep-1","choices":'
_CHUNKS = (
    f'data: {_HEAD}[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n'
    f'data: {_HEAD}[{{"index":0,"delta":{{"content":"你好"}},"finish_reason":null}}]}}\n\n'
    f'data: {_HEAD}[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\n\n'
    "data: [DONE]\n\n"
)


def add_callback(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Return the document with the callback described, too."""
    result["components"]["schemas"].update(_schemas())
    result["components"].setdefault("securitySchemes", {})["callbackKey"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "The callback key of the scene, which the platform was told with StartVoiceChat.",
    }
    result["paths"]["/api/chat_callback"] = {"post": _operation()}
    result["paths"] = dict(sorted(result["paths"].items()))
    return result


def _operation() -> dict[str, Any]:
    ask = {"messages": [{"role": "user", "content": "今天天气怎么样"}], "stream": True, "model": "ep-1"}
    whole = {
        "id": "chatcmpl-7f3c",
        "object": "chat.completion",
        "created": 1763600000,
        "model": "ep-1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "你好"}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
    return {
        "operationId": "chatCallback",
        "summary": "The voice platform's call for a reply (CustomLLM)",
        "description": (
            "Also at `/api/chat_callback/chat/completions`, for OpenAI's clients. Unknown fields are welcome. The "
            "same turn may come several times, and longer: it is one question and one reply; see docs/voice.md."
        ),
        "tags": ["voice"],
        "security": [{"callbackKey": []}],
        "parameters": [
            {
                "name": "room_id",
                "in": "query",
                "required": True,
                "schema": {"type": "string", "maxLength": 128},
                "description": "The room, as getScenes gave it.",
                "example": _ROOM,
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/CallbackRequest"},
                    "examples": {"turn": {"value": ask}},
                }
            },
        },
        "responses": {
            "200": {
                "description": "Chunks that end with `data: [DONE]`; with `stream: false` one completion.",
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}, "examples": {"turn": {"value": _CHUNKS}}},
                    "application/json": {
                        "schema": {"type": "object", "additionalProperties": True},
                        "examples": {"whole": {"value": whole}},
                    },
                },
            },
            "400": _failure("Nothing to answer.", "BadRequest", "messages 不能为空"),
            "401": _failure("Unknown room or wrong key: alike.", not_let_in().code, not_let_in().message),
            "503": _failure("Draining, or the database is away.", not_now().code, not_now().message),
        },
    }


def _failure(description: str, code: str, message: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/CallbackFailure"},
                "examples": {"failure": {"value": {"Error": {"Code": code, "Message": message}}}},
            }
        },
    }


def _schemas() -> dict[str, Any]:
    number = {"type": "number"}
    return {
        "CallbackRequest": {
            "type": "object",
            "required": ["messages"],
            "additionalProperties": True,
            "properties": {
                "messages": {
                    "type": "array",
                    "minItems": 1,
                    "description": "The last one is the person's; 欢迎语 alone is left out, wherever it stands.",
                    "items": {
                        "type": "object",
                        "required": ["role", "content"],
                        "additionalProperties": True,
                        "properties": {
                            "role": {"type": "string"},
                            "content": {
                                "description": "A text, or parts, of which those of type text count.",
                                "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
                            },
                        },
                    },
                },
                "stream": {"type": "boolean", "default": True},
                "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
                "model": {"type": "string", "description": "Comes back in the chunks; our models are our own."},
                "temperature": {**number, "minimum": 0, "maximum": 2},
                "top_p": {**number, "exclusiveMinimum": 0, "maximum": 1},
                "max_tokens": {"type": "integer", "minimum": 1, "description": "Also spelled maxTokens."},
                "round_id": {"description": "Holds the calls of one turn together; any name that begins so."},
                "custom": {"description": "An object, or a text that holds one."},
            },
        },
        "CallbackFailure": {
            "type": "object",
            "required": ["Error"],
            "properties": {
                "Error": {
                    "type": "object",
                    "required": ["Code", "Message"],
                    "properties": {
                        "Code": {"type": "string", "enum": ["AuthenticationError", "BadRequest", "InternalError"]},
                        "Message": {"type": "string"},
                    },
                }
            },
        },
    }
