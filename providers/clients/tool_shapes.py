"""Messages and tools as OpenAI's API writes them: what most vendors take, and what convertors begin from."""

from __future__ import annotations

from typing import Any

from providers.types import ChatMessage, ToolSpec, storable


def message_json(message: ChatMessage) -> dict[str, Any]:
    """Return one message; a tool's names the call it answers."""
    said: dict[str, Any] = {"role": message.role, "content": storable(message.content)}
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id or f"call_{call.index}",
                "type": "function",
                "function": {"name": call.name or "", "arguments": storable(call.arguments) or "{}"},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def tool_json(tool: ToolSpec) -> dict[str, Any]:
    """Return one tool."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }
