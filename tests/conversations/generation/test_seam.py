"""Two texts meet without a seam: nothing twice, nothing missing, and what cannot be known is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conversations.generation.seam import (
    ANEW_LEAST,
    INSTRUCTION,
    LOOK_BACK_CHARS,
    MARKS,
    MARKS_MOST,
    RUN_UP_LEAST,
    WHOLE_LEAST,
    Asking,
    Seam,
    StartedAnew,
    Way,
    asking_of,
    continuation,
    weight,
)
from providers.registry import EndpointConfig
from providers.types import ChatMessage

PROMPT = (ChatMessage("system", "你是说书人"), ChatMessage("user", "讲个故事"))
STORY = "从前有座山，山里有座庙，庙里有个老和尚在给小和尚讲故事。他讲的是什么故事呢？\n"
MODEL = EndpointConfig(id=1, name="甲", dialect="openai", model="m")


def test_the_continuation_shows_the_text_so_far() -> None:
    begun = (*PROMPT, ChatMessage("assistant", "从前"))
    assert continuation(PROMPT, "", "prefix") == PROMPT
    assert continuation(PROMPT, "从前", "prefix") == begun
    assert continuation(PROMPT, "从前", "instruction") == (*begun, ChatMessage("user", INSTRUCTION))


def test_who_reads_one_message_only_gets_question_instruction_and_text_in_one() -> None:
    system, asked = continuation(PROMPT, "从前有座山，", "one message")
    assert (system, asked.role) == (PROMPT[0], "user")
    assert asked.content.startswith("讲个故事\n\n")
    assert asked.content.endswith("\n\n从前有座山，")
    assert "不要重复" in asked.content


@pytest.mark.parametrize(
    ("continues", "way", "asking"),
    [
        ("", "on", "instruction"),
        ("", "prefix", "prefix"),
        ("", "instruction", "instruction"),
        ("prefix", "on", "prefix"),
        ("prefix", "instruction", "instruction"),
        ("instruction", "prefix", "instruction"),
        ("none", "prefix", "none"),
    ],
)
def test_an_endpoint_is_asked_as_it_can_and_then_as_the_site_prefers(
    continues: str, way: Way, asking: Asking
) -> None:
    endpoint = replace(MODEL, continues=continues)  # type: ignore[arg-type]
    assert asking_of(endpoint, way) == asking
    if asking != "none":
        assert asking_of(replace(endpoint, reads_last_text_only=True), way) == "one message"


def shown(seam: Seam, pieces: list[str]) -> str:
    return "".join([seam.feed(piece) for piece in pieces] + [seam.close()])


@pytest.mark.parametrize(
    ("so_far", "pieces", "text"),
    [
        ("从前有座山，山里有座庙", ["，庙里", "有个和尚"], "，庙里有个和尚"),
        ("从前有座山，山里有座庙", ["前有座山，山里", "有座庙，庙里", "有个和尚"], "，庙里有个和尚"),
        ("从前有座山，山里有座庙", ["\n“从前有座山，", "山里有座庙，庙里"], "，庙里"),
        ("好的，", ["好的，", "我来讲。"], "我来讲。"),
        ("哈哈", ["哈", "哈！"], "哈哈！"),
        ("一行\n" + "-" * 40, ["-" * 40, "\n下一行"], "-" * 40 + "\n下一行"),
        ("一二三四五六七八九十", ["一二三四五六七八九十"], ""),
        ("从前有座山", [" ", "里有庙"], " 里有庙"),
        ("", ["开头"], "开头"),
    ],
)
def test_a_run_up_is_dropped_and_nothing_else(so_far: str, pieces: list[str], text: str) -> None:
    assert shown(Seam(so_far), pieces) == text


def test_a_text_of_any_length_said_again_from_its_beginning_is_dropped() -> None:
    so_far = "".join(f"第{number}句：{STORY}" for number in range(400))
    assert len(so_far) > 5 * LOOK_BACK_CHARS
    pieces = [so_far[at : at + 50] for at in range(0, len(so_far), 50)]
    assert shown(Seam(so_far, "prefix"), [*pieces, "完。"]) == "完。"


@pytest.mark.parametrize("ends", [False, True])
def test_another_answer_that_begins_alike_is_no_continuation(ends: bool) -> None:
    seam = Seam(STORY * 2)
    with pytest.raises(StartedAnew):
        shown(seam, [STORY[:30]] if ends else [STORY[:30], "原来如此"])
    assert seam.dropped == STORY[:30] + ("" if ends else "原来如此")
    assert seam.feed("还有") == "还有", "nobody asks it any more"


def says(text: str) -> int:
    """Return the weight of the shortest beginning that the text only repeats, found by trying all."""
    period = next((p for p in range(1, len(text)) if text[p:] == text[:-p]), len(text))
    return weight(text[:period])


def known(so_far: str, said: str, asking: Asking) -> int:
    """Return how long the longest recognisable repetition is, found by trying all."""
    best = 0
    for start in range(MARKS_MOST + 1):
        if not set(said[:start]) <= MARKS:
            break
        rest = said[start:]
        if rest.startswith(so_far) and says(so_far) >= WHOLE_LEAST:
            best = max(best, start + len(so_far))
        for length in range(1, min(len(rest), len(so_far), LOOK_BACK_CHARS) + 1):
            if so_far.endswith(rest[:length]) and says(rest[:length]) >= RUN_UP_LEAST[asking]:
                best = max(best, start + length)
    return best


def begins_alike(so_far: str, said: str) -> int:
    """Return the weight of what is said first and stands first, too."""
    said = said.lstrip("".join(MARKS))
    alike = next((at for at, (a, b) in enumerate(zip(so_far, said, strict=False)) if a != b), len(said))
    return weight(so_far[:alike])


TEXT = st.text(alphabet="从前有座山里庙老和尚，。啊 ab\n\"“'", min_size=1, max_size=60)


@settings(max_examples=400, deadline=None)
@given(
    so_far=TEXT,
    rest=TEXT,
    manner=st.sampled_from(["exact", "tail", "whole"]),
    mark=st.sampled_from(["", " ", "\n", "\n\n", "“", '"', " \n"]),
    share=st.floats(0, 1),
    asking=st.sampled_from(["prefix", "instruction"]),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
def test_no_character_comes_twice_and_none_is_lost(
    so_far: str, rest: str, manner: str, mark: str, share: float, asking: Asking, cuts: list[int]
) -> None:
    again = {"exact": "", "tail": so_far[-max(1, round(len(so_far) * share)) :], "whole": so_far}[manner]
    said = (mark if again else "") + again + rest
    # What nobody could know: too short a repetition, or an exact continuation that looks like one.
    assume(known(so_far, said, asking) == len(said) - len(rest))
    assume(again or begins_alike(so_far, said) < ANEW_LEAST)
    pieces, at = [], 0
    while at < len(said):
        step = cuts[len(pieces) % len(cuts)]
        pieces.append(said[at : at + step])
        at += step
    seam = Seam(so_far, asking)
    assert shown(seam, pieces) == rest
    assert seam.dropped == said[: len(said) - len(rest)]
