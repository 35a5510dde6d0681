"""Where one model goes on with a reply that another began: what it is asked, and how the two texts meet."""

from __future__ import annotations

from typing import Literal

from providers.types import ChatMessage

Way = Literal["off", "prefix", "instruction"]

OVERLAP_LEAST_CHARS = 8
"""Shorter repetitions are left alone: they may well be what the model means to say."""
OVERLAP_MOST_CHARS = 400
INSTRUCTION = "你的上一条回答中断了。请从中断处直接继续，不要重复已有内容，也不要任何说明。"


def continuation(prompt: tuple[ChatMessage, ...], so_far: str, way: Way) -> tuple[ChatMessage, ...]:
    """Return the prompt that asks for the rest of an answer; with no text yet, the prompt as it is."""
    if not so_far:
        return prompt
    begun = (*prompt, ChatMessage("assistant", so_far))
    return begun if way == "prefix" else (*begun, ChatMessage("user", INSTRUCTION))


class Seam:
    """Drops from the beginning of a continuation what the text so far already ends with.

    Only for models that were asked in words: they like to take a run-up. What comes first is held back for as
    long as it may still be a repetition.
    """

    def __init__(self, so_far: str) -> None:
        self._tail = so_far[-OVERLAP_MOST_CHARS:]
        self._held = ""
        self._is_open = bool(so_far)

    def feed(self, text: str) -> str:
        """Return what of the continuation may be shown now."""
        if not self._is_open:
            return text
        self._held += text
        if self._held in self._tail:
            return ""
        return self.close()

    def close(self) -> str:
        """Return what was held back, without the repetition; from now on everything passes."""
        held, self._held, self._is_open = self._held, "", False
        for length in range(min(len(held), len(self._tail)), OVERLAP_LEAST_CHARS - 1, -1):
            if self._tail.endswith(held[:length]):
                return held[length:]
        return held
