"""The OpenAPI document of getScenes and proxy, which are ASGI applications and answer in the platform's shape."""

from __future__ import annotations

from typing import Any

_ROOM = "1-7f3c2d1e3f5b4a539d3c1f2e3d4c5b6a"
_MEMBER_ID = {
    "oneOf": [{"type": "integer", "format": "int64"}, {"type": "string"}],
    "description": "Internal callers alone: the member they act for, by membership id or username.",
}


def add_rooms(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Return the document with the voice calls described, too."""
    result["components"]["schemas"].update(_schemas())
    result["components"].setdefault("securitySchemes", {})["internalSignature"] = {
        "type": "apiKey",
        "in": "header",
        "name": "X-Internal-Signature",
        "description": "With X-Internal-Key-Id, X-Internal-Timestamp and X-Internal-Nonce; see docs/voice.md.",
    }
    result["paths"].update(_paths())
    result["paths"] = dict(sorted(result["paths"].items()))
    return result


def _paths() -> dict[str, Any]:
    version = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}
    return {
        "/getScenes": {
            "post": _operation(
                "getScenes",
                "The site's voice scenes, with a fresh room, user and token in each",
                parameters=[_query("Action", {"type": "string", "enum": ["getScenes"]}, is_required=False)],
                request="GetScenesRequest",
                example={"chatId": 42},
                answer="ScenesAnswer",
                answers={
                    "scenes": {
                        "ResponseMetadata": {"Action": "getScenes"},
                        "Result": {
                            "scenes": [
                                {
                                    "scene": {
                                        "id": "Custom",
                                        "name": "自定义助手",
                                        "icon": "",
                                        "botName": "ChatBot01",
                                        "isInterruptMode": True,
                                        "isScreenMode": False,
                                    },
                                    "rtc": {
                                        "AppId": "661e0000000000000000543c",
                                        "RoomId": _ROOM,
                                        "UserId": "user-b3d2c1a000004000800000000000000a",
                                        "Token": "001661e0000000000000000543c…",
                                    },
                                }
                            ]
                        },
                    }
                },
                call="getScenes",
            )
        },
        "/proxy": {
            "post": _operation(
                "proxyVoiceChat",
                "Start or stop the platform's task in a room; its answer, byte for byte",
                parameters=[
                    _query("Action", {"type": "string", "enum": ["StartVoiceChat", "StopVoiceChat"]}),
                    _query("Version", version, is_required=False),
                ],
                request="ProxyRequest",
                example={"SceneID": "Custom", "RoomID": _ROOM},
                answer="PlatformAnswer",
                answers={
                    "started": {
                        "Result": "ok",
                        "ResponseMetadata": {
                            "RequestId": "20261120…",
                            "Action": "StartVoiceChat",
                            "Version": "2024-12-01",
                            "Service": "rtc",
                            "Region": "cn-north-1",
                        },
                    }
                },
                call="proxy",
            )
        },
    }


def _operation(
    operation_id: str,
    summary: str,
    *,
    parameters: list[dict[str, Any]],
    request: str,
    example: Any,
    answer: str,
    answers: dict[str, Any],
    call: str,
) -> dict[str, Any]:
    failed = {
        "ResponseMetadata": {
            "Action": call,
            "RequestId": "5c1f2a9e",
            "Error": {
                "Code": -1,
                "Message": "Error: 没有这个语音房间，请先调用 getScenes。",
                "Reason": "room_not_found",
            },
        }
    }
    refused = {"signature": {"value": {"code": 401, "message": "鉴权失败"}}}
    examples = {name: {"value": value} for name, value in answers.items()}
    return {
        "operationId": operation_id,
        "summary": summary,
        "description": (
            "Failures of ours have the shape of the platform's. Members get them with 200 (401, 403 and 429 keep "
            "their status), internal callers with the status that fits."
        ),
        "tags": ["voice"],
        "security": [{"bearer": []}, {"internalSignature": []}],
        "parameters": parameters,
        "requestBody": {
            "required": request == "ProxyRequest",
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{request}"},
                    "examples": {"example": {"value": example}},
                }
            },
        },
        "responses": {
            "200": _answer("The answer, or a failure.", answer, {**examples, "failed": {"value": failed}}),
            "401": _answer("Nothing to show, or not good.", "VoiceFailure", refused),
            "default": _answer(
                "A failure, for an internal caller.", "VoiceFailure", {"failed": {"value": failed}}
            ),
        },
    }


def _answer(description: str, schema: str, examples: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": examples}
        },
    }


def _query(name: str, schema: dict[str, Any], *, is_required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": is_required, "schema": schema}


def _schemas() -> dict[str, Any]:
    text, anything = {"type": "string"}, {"type": "object", "additionalProperties": True}
    error = {
        "type": "object",
        "properties": {
            "Code": {
                "oneOf": [{"type": "integer"}, text],
                "description": "-1 for ours, a word of the platform's.",
            },
            "Message": text,
            "Reason": {**text, "description": "Ours: a code of docs/errors.md."},
        },
    }
    metadata = {
        "type": "object",
        "properties": {"Action": text, "RequestId": text, "Error": error},
        "additionalProperties": True,
    }
    return {
        "GetScenesRequest": {
            "type": "object",
            "properties": {
                "chatId": {"type": "integer", "format": "int64", "description": "Go on in this conversation."},
                "contextType": {**text, "maxLength": 64},
                "contextId": {**text, "maxLength": 200},
                "MemberId": _MEMBER_ID,
            },
        },
        "ProxyRequest": {
            "type": "object",
            "required": ["SceneID"],
            "properties": {
                "SceneID": text,
                "RoomID": {**text, "description": "Without it, the caller's latest room of the scene."},
                "MemberId": _MEMBER_ID,
            },
        },
        "ScenesAnswer": {
            "type": "object",
            "required": ["ResponseMetadata"],
            "properties": {
                "ResponseMetadata": metadata,
                "Result": {
                    "type": "object",
                    "properties": {
                        "scenes": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["scene", "rtc"],
                                "properties": {
                                    "scene": anything,
                                    "rtc": {
                                        "type": "object",
                                        "required": ["AppId", "RoomId", "UserId", "Token"],
                                        "properties": {
                                            name: text for name in ("AppId", "RoomId", "UserId", "Token")
                                        },
                                    },
                                },
                            },
                        }
                    },
                },
            },
        },
        "PlatformAnswer": {
            "type": "object",
            "required": ["ResponseMetadata"],
            "properties": {"ResponseMetadata": metadata, "Result": {"description": "Of any type."}},
            "additionalProperties": True,
        },
        "VoiceFailure": {
            "description": "The platform's shape; for a call that is not signed as it must be, code and message.",
            "type": "object",
            "properties": {"ResponseMetadata": metadata, "code": {"type": "integer"}, "message": text},
        },
    }
