"""What the platform reads: chunks and completions in OpenAI's shape, ours from first byte to last (WIRE 2.7).

A vendor's chunk is never passed on: the platform is strict about ids and objects, and would speak too much.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from conversations.events import to_json

DONE = b"data: [DONE]\n\n"
DEFAULT_MODEL = "assistant"
_HERE = f"here-{uuid.uuid4().hex}"
_SHORT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_FILTERED = frozenset({"content_filter", "sensitive", "safety"})


class Chunks:
    """One response: all its chunks carry the same id, time and model."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model or DEFAULT_MODEL
        # A text stands a thousand times in the same place: the rest of its chunk is written once.
        self._before, _, self._after = self._chunk({"content": _HERE}).partition(to_json(_HERE))

    def opening(self) -> bytes:
        """Return the chunk that says who speaks; sent at once, the platform waits for ten seconds at most."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, content: str) -> bytes:
        """Return a chunk of text; an empty one only shows that we are still there."""
        return self._before + to_json(content) + self._after

    def closing(self, finish_reason: str, usage: dict[str, int] | None = None) -> bytes:
        """Return the last chunk, and the end of the stream."""
        return self._chunk({}, finish_reason, usage) + DONE

    def whole(self, content: str, finish_reason: str, usage: dict[str, int]) -> dict[str, Any]:
        """Return the answer for a caller that does not stream."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content},
                    "finish_reason": finish_reason,
                }
            ],
            "usage": usage,
        }

    def _chunk(
        self, delta: dict[str, str], finish_reason: str | None = None, usage: dict[str, int] | None = None
    ) -> bytes:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        }
        if usage is not None:
            chunk["usage"] = usage
        return b"data: %b\n\n" % to_json(chunk)


def finish_reason_of(reason: str | None) -> str:
    """Return OpenAI's word for why a reply ended; everything that is no cut is `stop`."""
    word = (reason or "").lower()
    return "length" if word in _SHORT else "content_filter" if word in _FILTERED else "stop"


def usage_of(input_tokens: int, output_tokens: int) -> dict[str, int]:
    """Return the tokens of a reply in OpenAI's words."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
