"""Where one model goes on with a reply that another began: what it is asked, and how the two texts meet."""

from __future__ import annotations

from typing import Literal

from providers.registry import EndpointConfig
from providers.types import ChatMessage

Way = Literal["off", "on", "prefix", "instruction"]
"""What a site has chosen; the last two are preferences where an endpoint can do either."""
Asking = Literal["prefix", "instruction", "one message", "none"]
"""How one endpoint is asked for the rest."""

LOOK_BACK_CHARS = 2000
"""A run-up longer than this is known only when it is the whole text so far."""
RUN_UP_LEAST: dict[Asking, int] = {"prefix": 24, "instruction": 12, "one message": 12}
"""Shorter repetitions are left alone: they may well be what the model means to say. Counted as `weight` does; more
is asked of a model that was handed its own beginning, for it seldom takes a run-up."""
WHOLE_LEAST = 6
"""The same for a repetition of all that stands there, which hardly anybody means."""
ANEW_LEAST = 40
"""So much of the beginning, said again and then otherwise, is another answer and no continuation."""
MARKS = frozenset(" \t\r\n\u3000\"'“”‘’「」『』")
MARKS_MOST = 4
"""Blanks and quotes that may come before a run-up, and go with it."""
INSTRUCTION = "你的上一条回答中断了。请从中断处直接继续，不要重复已有内容，也不要任何说明。"
IN_ONE = "{question}\n\n（你对上面的问题已经回答了一部分，写在下面，到末尾中断了。请从中断处直接继续，不要重复已有内容，也不要任何说明。）\n\n{so_far}"  # noqa: E501  # one text, as the model reads it


def asking_of(endpoint: EndpointConfig, way: Way) -> Asking:
    """Return how this endpoint is asked to go on; `none`: it is not.

    What the endpoint says of itself counts first; the site's preference decides where it says nothing, or where
    it can be asked in words as well. Without either it is asked in words, which every chat model understands.
    """
    if endpoint.continues == "none" or endpoint.is_stand_in:
        return "none"
    if endpoint.reads_last_text_only:
        return "one message"
    if way != "instruction" and (endpoint.continues == "prefix" or (not endpoint.continues and way == "prefix")):
        return "prefix"
    return "instruction"


def continuation(prompt: tuple[ChatMessage, ...], so_far: str, asking: Asking) -> tuple[ChatMessage, ...]:
    """Return the prompt that asks for the rest of an answer; with no text yet, the prompt as it is."""
    if not so_far:
        return prompt
    if asking == "one message":
        question = next((message.content for message in reversed(prompt) if message.role == "user"), "")
        return (*prompt[:-1], ChatMessage("user", IN_ONE.format(question=question, so_far=so_far)))
    begun = (*prompt, ChatMessage("assistant", so_far))
    return begun if asking == "prefix" else (*begun, ChatMessage("user", INSTRUCTION))


class StartedAnew(Exception):
    """The model repeats the answer from its beginning in other words: nothing of it fits what stands there."""


class Seam:
    """Drops from the beginning of a continuation what the text so far already says.

    What comes first is held back for as long as it may still be a repetition: of the last LOOK_BACK_CHARS, or of
    the text from its beginning. Blanks and quotes before a repetition go with it. Not known, and left as they are:

    - repetitions that are too short, or only repeat one short thing (`----`, 哈哈哈): text does that by itself;
    - blanks or a quote before an exact continuation, which may belong to it; a closing quote at the end;
    - a run-up in other words, or a new answer that does not begin like the first one.

    And a model that goes on exactly, with the very words that stand at the end, loses them: nobody can tell it
    from one that takes a run-up.
    """

    def __init__(self, so_far: str, asking: Asking = "instruction") -> None:
        self.dropped = ""
        """What was said and is not shown: the repetition, or, while that is open, all that is held back."""
        self._so_far = so_far
        self._tail = so_far[-LOOK_BACK_CHARS:]
        self._least = RUN_UP_LEAST.get(asking, RUN_UP_LEAST["instruction"])
        self._is_open = bool(so_far)

    def feed(self, text: str) -> str:
        """Return what of the continuation may be shown now.

        Raises: StartedAnew.
        """
        if not self._is_open:
            return text
        self.dropped += text
        if any(self._may_repeat(self.dropped[start:]) for start in self._starts()):
            return ""
        return self.close()

    def close(self) -> str:
        """Return what was held back, without the repetition; from now on everything passes.

        Raises: StartedAnew.
        """
        if not self._is_open:
            return ""
        self._is_open = False
        held = self.dropped
        length = self._repeated()
        if not length and any(self._is_anew(held[start:]) for start in self._starts()):
            raise StartedAnew
        self.dropped = held[:length]
        return held[length:]

    def _starts(self) -> range:
        """Return where a repetition may begin in what is held back: after any of its leading marks."""
        marks = 0
        while marks < min(len(self.dropped), MARKS_MOST) and self.dropped[marks] in MARKS:
            marks += 1
        return range(marks + 1)

    def _may_repeat(self, held: str) -> bool:
        return held in self._tail or self._so_far.startswith(held)

    def _repeated(self) -> int:
        """Return how much of what is held back is a repetition with the marks before it: the longest one."""
        best = 0
        for start in self._starts():
            held = self.dropped[start:]
            if held.startswith(self._so_far) and _says_enough(self._so_far, WHOLE_LEAST):
                best = max(best, start + len(self._so_far))
            elif (length := _overlap(held, self._tail, self._least)) and start + length > best:
                best = start + length
        return best

    def _is_anew(self, held: str) -> bool:
        pairs = zip(held, self._so_far, strict=False)
        common = next((at for at, (one, other) in enumerate(pairs) if one != other), len(held))
        return common < len(self._so_far) and _says_enough(held[:common], ANEW_LEAST)


def weight(text: str) -> int:
    """Return how much a text says: two for a CJK character, one for any other."""
    return sum(2 if character >= "\u2e80" else 1 for character in text)


def _overlap(held: str, tail: str, least: int) -> int:
    """Return the longest beginning of one text that is the end of the other, and says enough."""
    held = held[: len(tail)]
    borders = _borders(f"{held}\0{tail}")  # neither text can hold a NUL
    length = borders[-1]
    while length and weight(held[: length - borders[length - 1]]) < least:
        length = borders[length - 1]
    return length


def _says_enough(text: str, least: int) -> bool:
    """Return whether a text says so much, not counting that it repeats itself."""
    text = text[:LOOK_BACK_CHARS]
    return bool(text) and weight(text[: len(text) - _borders(text)[-1]]) >= least


def _borders(text: str) -> list[int]:
    """Return for each beginning of the text how long its longest end is that it also begins with (KMP)."""
    borders = [0] * len(text)
    length = 0
    for position in range(1, len(text)):
        while length and text[position] != text[length]:
            length = borders[length - 1]
        length += text[position] == text[length]
        borders[position] = length
    return borders
