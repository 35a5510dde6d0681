"""One history out of two: what we have stored, and what the platform says went before.

Ours is the truth. The platform sends its last turns with each call (HistoryLength); those that we have are
dropped, and what only it knows (its welcome message, prompts from outside) stays where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence

from providers.types import ChatMessage

SYSTEM_MAX_CHARS = 8192
"""What a scene may add to the site's own instructions."""
FOREIGN_MAX_CHARS = 8192
"""What the platform may add to the conversation; the newest counts."""
AT_LEAST_CHARS = 6
"""A shorter beginning of a reply is not taken for that reply."""


def weave(
    ours: Sequence[ChatMessage], theirs: Sequence[ChatMessage], *, apology: str = ""
) -> tuple[ChatMessage, ...]:
    """Return the prompt: all instructions, the history with what only the platform has, the question.

    `ours` is what `build_prompt` gave, the question last; `theirs` is what the platform sent before its last
    message. The apology for a failed reply was ours to say, and is no model's word.
    """
    head = [message for message in ours[:-1] if message.role == "system"]
    history = [message for message in ours[:-1] if message.role != "system"]
    theirs = _without(theirs, apology)
    instructions = _leading(theirs)
    rest = theirs[len(instructions) :]
    foreign = _foreign(rest, _matches(history, rest), len(history))
    woven: list[ChatMessage] = []
    for position, message in enumerate(history):
        woven += foreign.get(position, ())
        woven.append(message)
    woven += foreign.get(len(history), ())
    return (*head, *_cut(instructions), *woven, ours[-1])


def _without(theirs: Sequence[ChatMessage], apology: str) -> list[ChatMessage]:
    """Return what the platform says was said, less what we said for the model."""
    if not apology:
        return list(theirs)
    kept = (
        ChatMessage(message.role, message.content.rstrip().removesuffix(apology))
        if message.role == "assistant"
        else message
        for message in theirs
    )
    return [message for message in kept if message.content.strip()]


def _leading(theirs: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the instructions that stand before everything else."""
    found: list[ChatMessage] = []
    for message in theirs:
        if message.role != "system":
            break
        found.append(message)
    return found


def _cut(instructions: Sequence[ChatMessage]) -> list[ChatMessage]:
    left, kept = SYSTEM_MAX_CHARS, []
    for message in instructions:
        if left <= 0:
            break
        kept.append(ChatMessage("system", message.content[:left]))
        left -= len(message.content)
    return kept


def _matches(history: Sequence[ChatMessage], theirs: Sequence[ChatMessage]) -> list[int | None]:
    """Return for each of their messages the place in our history where the same was said, None for what is new.

    As many as can be in order (a longest common subsequence), the newest of several: the same words said twice
    match twice, and one that was never stored does not drag the others along.
    """
    ours = [(message.role, words(message.content)) for message in history]
    told = [(message.role, words(message.content)) for message in theirs]
    table = [[0] * (len(told) + 1) for _ in range(len(ours) + 1)]
    for i, one in enumerate(ours):
        for j, other in enumerate(told):
            is_same = _is_same(one, other)
            table[i + 1][j + 1] = table[i][j] + 1 if is_same else max(table[i][j + 1], table[i + 1][j])
    places: list[int | None] = [None] * len(told)
    i, j = len(ours), len(told)
    while i and j:
        if _is_same(ours[i - 1], told[j - 1]):
            places[j - 1] = i - 1
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return places


def _is_same(ours: tuple[str, str], theirs: tuple[str, str]) -> bool:
    """Return whether the platform means this message: the same words, or of a reply the part that was spoken."""
    if ours[0] != theirs[0]:
        return False
    kept, told = ours[1], theirs[1]
    if kept == told:
        return True
    if ours[0] != "assistant" or min(len(kept), len(told)) < AT_LEAST_CHARS:
        return False
    return kept.startswith(told) or told.startswith(kept)


def words(text: str) -> str:
    """Return what of a text can be heard: letters and digits, without case, blanks and signs."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _foreign(
    theirs: Sequence[ChatMessage], places: Sequence[int | None], end: int
) -> dict[int, list[ChatMessage]]:
    """Return what only the platform has, by the place in our history before which it stands; as much as fits."""
    before: dict[int, list[ChatMessage]] = {}
    left = FOREIGN_MAX_CHARS
    target = end
    for message, place in zip(reversed(theirs), reversed(places), strict=True):
        if place is not None:
            target = place
        elif len(message.content) <= left:
            left -= len(message.content)
            before.setdefault(target, []).insert(0, message)
    return before
