"""Tool calls, which paths alone cannot put together: one reader for each vendor's shape, by name.

A reader turns one event into pieces in OpenAI's shape, which the reducer joins. It lives as long as one reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Piece = dict[str, Any]
"""`{"index", "id", "function": {"name", "arguments"}}`, with arguments as (a part of) JSON text."""

Reader = Callable[[dict[str, Any]], list[Any]]


def _openai() -> Reader:
    """Return a reader of `choices[0].delta.tool_calls`, or of a whole `message`."""

    def read(event: dict[str, Any]) -> list[Any]:
        choices = event.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        said = choice.get("delta") or choice.get("message") if type(choice) is dict else None
        calls = said.get("tool_calls") if type(said) is dict else None
        return calls if type(calls) is list else []

    return read


def _anthropic() -> Reader:
    """Return a reader of `tool_use` blocks: begun, filled by input_json_delta, ended; or whole.

    Blocks of text are counted with those of calls, so calls get numbers of their own. A block whose input is empty
    comes with no piece of JSON at all: at its end it gets the input that it began with.
    """
    numbers: dict[Any, int] = {}
    inputs: dict[int, Any] = {}

    def begin(block: Any) -> Piece | None:
        if type(block) is not dict or block.get("type") != "tool_use":
            return None
        number = len(inputs)
        inputs[number] = block.get("input")
        return {"index": number, "id": block.get("id"), "function": {"name": block.get("name")}}

    def read(event: dict[str, Any]) -> list[Any]:
        kind, place = event.get("type"), event.get("index")
        if kind == "content_block_start":
            piece = begin(event.get("content_block"))
            if piece is not None and type(place) is int:
                numbers[place] = piece["index"]
            return [piece] if piece else []
        if kind in ("content_block_delta", "content_block_stop"):
            number = numbers.get(place) if type(place) is int else None
            if number is None:
                return []
            delta = event.get("delta")
            arguments: Any = None
            if kind == "content_block_stop":
                arguments = _json(inputs[number])
            elif type(delta) is dict:
                arguments = delta.get("partial_json")
            if arguments:
                inputs[number] = ""  # it is said: the end of the block has nothing to add
            return [_piece(number, None, None, arguments)] if arguments else []
        content = event.get("content")
        pieces = [begin(block) for block in content] if type(content) is list else []
        return [
            {**piece, "function": {**piece["function"], "arguments": _json(inputs[piece["index"]])}}
            for piece in pieces
            if piece
        ]

    return read


def _gemini() -> Reader:
    """Return a reader of `candidates[0].content.parts[*].functionCall`; each comes whole."""
    count = 0

    def read(event: dict[str, Any]) -> list[Any]:
        nonlocal count
        candidates = event.get("candidates")
        candidate = candidates[0] if type(candidates) is list and candidates else None
        content = candidate.get("content") if type(candidate) is dict else None
        parts = content.get("parts") if type(content) is dict else None
        pieces: list[Any] = []
        for part in parts if type(parts) is list else ():
            call = part.get("functionCall") if type(part) is dict else None
            if type(call) is dict:
                pieces.append(_piece(count, call.get("id"), call.get("name"), _json(call.get("args"))))
                count += 1
        return pieces

    return read


def _ollama() -> Reader:
    """Return a reader of `message.tool_calls`; each comes whole, numbered anew in every line by older servers."""
    count = 0

    def read(event: dict[str, Any]) -> list[Any]:
        nonlocal count
        message = event.get("message")
        calls = message.get("tool_calls") if type(message) is dict else None
        pieces: list[Any] = []
        for call in calls if type(calls) is list else ():
            function = call.get("function") if type(call) is dict else None
            if type(function) is dict:
                arguments = _json(function.get("arguments"))
                pieces.append(_piece(count, call.get("id"), function.get("name"), arguments))
                count += 1
        return pieces

    return read


READERS: Mapping[str, Callable[[], Reader]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "ollama": _ollama,
}


def _piece(index: int, call_id: Any, name: Any, arguments: Any) -> Piece:
    return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}


def _json(arguments: Any) -> str:
    """Return arguments as JSON text: a text is such already, nothing means none."""
    if type(arguments) is str:
        return arguments
    return json.dumps(arguments or {}, ensure_ascii=False, separators=(",", ":"))
