"""Convertors of tools and their messages, from OpenAI's shape into those of Anthropic, Gemini and Ollama."""

from __future__ import annotations

from typing import Any

import orjson

from providers import errors

_GEMINI_SCHEMA = frozenset(
    {
        "type", "format", "title", "description", "nullable", "enum", "maxItems", "minItems", "properties",
        "required", "minProperties", "maxProperties", "minLength", "maxLength", "pattern", "example", "anyOf",
        "propertyOrdering", "default", "items", "minimum", "maximum",
    }
)  # fmt: skip


def arguments_of(call: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call as an object; what the model wrote wrongly is an empty one."""
    try:
        value = orjson.loads(call["function"]["arguments"] or "{}")
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def to_anthropic_messages(value: Any, _now: float) -> list[dict[str, Any]]:
    """Return the messages without the system's; calls and results as blocks, those of one turn together."""
    turns: list[dict[str, Any]] = []
    for message in _list_of(value, "messages", "role", "content"):
        if message["role"] == "system":
            continue
        if message["role"] == "tool":
            result = {
                "type": "tool_result",
                "tool_use_id": message.get("tool_call_id") or "",
                "content": message["content"],
            }
            if turns and turns[-1]["role"] == "user" and isinstance(turns[-1]["content"], list):
                turns[-1]["content"].append(result)
            else:
                turns.append({"role": "user", "content": [result]})
        elif calls := message.get("tool_calls"):
            said = [{"type": "text", "text": message["content"]}] if message["content"] else []
            asked = [
                {
                    "type": "tool_use",
                    "id": call["id"],
                    "name": call["function"]["name"],
                    "input": arguments_of(call),
                }
                for call in calls
            ]
            turns.append({"role": "assistant", "content": [*said, *asked]})
        else:
            turns.append({"role": message["role"], "content": message["content"]})
    return turns


def to_anthropic_tools(value: Any, _now: float) -> list[dict[str, Any]]:
    """Return Anthropic's tools."""
    return [
        {
            "name": tool["function"]["name"],
            "description": tool["function"].get("description", ""),
            "input_schema": tool["function"].get("parameters") or {"type": "object"},
        }
        for tool in _list_of(value, "tools", "function")
    ]


def to_anthropic_tool_choice(value: Any, _now: float) -> dict[str, Any] | None:
    """Return Anthropic's tool_choice, None for what it has no word for."""
    word = {"auto": "auto", "none": "none", "required": "any"}.get(str(value))
    return {"type": word} if word else None


def gemini_content(message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return one message as Gemini's content; names maps the ids of calls to the tools they asked for."""
    if message["role"] == "tool":
        name = names.get(message.get("tool_call_id") or "", "tool")
        part = {"functionResponse": {"name": name, "response": {"content": message["content"]}}}
        return {"parts": [part], "role": "user"}
    parts: list[dict[str, Any]] = []
    calls = message.get("tool_calls") or []
    if message["content"] or not calls:
        parts.append({"text": message["content"]})
    for call in calls:
        names[call["id"]] = call["function"]["name"]
        parts.append({"functionCall": {"name": call["function"]["name"], "args": arguments_of(call)}})
    return {"parts": parts, "role": "model" if message["role"] == "assistant" else "user"}


def to_gemini_tools(value: Any, _now: float) -> list[dict[str, Any]]:
    """Return Gemini's tools; of a schema only the keys that it knows, since it refuses all others."""
    declarations = [
        {
            "name": tool["function"]["name"],
            "description": tool["function"].get("description", ""),
            **({"parameters": schema} if (schema := _gemini_schema(tool["function"].get("parameters"))) else {}),
        }
        for tool in _list_of(value, "tools", "function")
    ]
    return [{"functionDeclarations": declarations}]


def to_gemini_tool_config(value: Any, _now: float) -> dict[str, Any] | None:
    """Return Gemini's toolConfig, None for what it has no word for."""
    mode = {"auto": "AUTO", "none": "NONE", "required": "ANY"}.get(str(value))
    return {"functionCallingConfig": {"mode": mode}} if mode else None


def to_ollama_messages(value: Any, _now: float) -> list[dict[str, Any]]:
    """Return the messages as Ollama's own API wants them: arguments as objects, results by the tool's name."""
    names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for message in _list_of(value, "messages", "role", "content"):
        turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
        if calls := message.get("tool_calls"):
            names.update((call["id"], call["function"]["name"]) for call in calls)
            turn["tool_calls"] = [
                {"function": {"name": call["function"]["name"], "arguments": arguments_of(call)}} for call in calls
            ]
        if message["role"] == "tool":
            turn["tool_name"] = names.get(message.get("tool_call_id") or "", "tool")
        turns.append(turn)
    return turns


def _gemini_schema(schema: Any) -> dict[str, Any]:
    """Return a schema without the keys that Gemini refuses; an object without properties is nothing at all."""
    if not isinstance(schema, dict):
        return {}
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            if value:
                kept[key] = {name: _gemini_schema(part) for name, part in value.items()}
        elif key == "items":
            kept[key] = _gemini_schema(value)
        elif key == "anyOf" and isinstance(value, list):
            kept[key] = [_gemini_schema(part) for part in value]
        elif key in _GEMINI_SCHEMA:
            kept[key] = value
    return {} if kept.get("type") == "object" and "properties" not in kept else kept


def _list_of(value: Any, what: str, *keys: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and all(key in item for key in keys) for item in value
    ):
        raise errors.Misconfigured(code="bad_convertor", vendor_code=what)
    return value
