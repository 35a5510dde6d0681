"""One history out of ours and the platform's, with nothing twice."""

from __future__ import annotations

import pytest

from conversations.voice.weave import FOREIGN_MAX_CHARS, SYSTEM_MAX_CHARS, weave
from providers.types import ChatMessage, Role

ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant"}


def lines(*texts: str) -> list[ChatMessage]:
    """Return messages from texts such as `u 你好`."""
    return [ChatMessage(ROLES[text[0]], text[2:]) for text in texts]


WELCOME = "a 您好，我是小助手，请讲。"
CASES = {
    "nothing of theirs": (["s 站点", "u 一", "a 答一", "u 二"], [], ["s 站点", "u 一", "a 答一", "u 二"]),
    "all of theirs is ours": (
        ["u 一", "a 回答第一个问题", "u 二"],
        ["u 一", "a 回答第一个问题"],
        ["u 一", "a 回答第一个问题", "u 二"],
    ),
    "blanks and signs do not count": (
        ["u 今天天气怎么样", "a 晴，二十度。", "u 好"],
        ["u 今天，天气怎么样？ ", "a 晴二十度"],
        ["u 今天天气怎么样", "a 晴，二十度。", "u 好"],
    ),
    "their window is shorter": (
        ["u 一", "a 回答第一个问题", "u 二", "a 回答第二个问题", "u 三"],
        ["u 二", "a 回答第二个问题"],
        ["u 一", "a 回答第一个问题", "u 二", "a 回答第二个问题", "u 三"],
    ),
    "a welcome stays before what it opened": (
        ["u 一", "a 回答第一个问题", "u 二"],
        [WELCOME, "u 一", "a 回答第一个问题"],
        [WELCOME, "u 一", "a 回答第一个问题", "u 二"],
    ),
    "a welcome after a chat stays behind it": (
        ["u 打字", "a 打字的回答", "u 说话"],
        [WELCOME],
        ["u 打字", "a 打字的回答", WELCOME, "u 说话"],
    ),
    "a prompt from outside stays where it stood": (
        ["u 一", "a 回答第一个问题", "u 二", "a 回答第二个问题", "u 三"],
        ["u 一", "a 回答第一个问题", "u 提示：客户已付款", "u 二", "a 回答第二个问题"],
        ["u 一", "a 回答第一个问题", "u 提示：客户已付款", "u 二", "a 回答第二个问题", "u 三"],
    ),
    "instructions of the scene follow those of the site": (
        ["s 站点", "u 一", "a 回答第一个问题", "u 二"],
        ["s 场景", "s 口语化", "u 一", "a 回答第一个问题"],
        ["s 站点", "s 场景", "s 口语化", "u 一", "a 回答第一个问题", "u 二"],
    ),
    "what was cut short is ours, not theirs": (
        ["u 讲故事", "a 从前有座山，山里", "u 停"],
        ["u 讲故事", "a 从前有座山，山里有座庙，庙里有个老和尚。"],
        ["u 讲故事", "a 从前有座山，山里", "u 停"],
    ),
    "they may have less of it": (
        ["u 讲故事", "a 从前有座山，山里有座庙。", "u 停"],
        ["u 讲故事", "a 从前有座山，山"],
        ["u 讲故事", "a 从前有座山，山里有座庙。", "u 停"],
    ),
    "the same words twice match twice": (
        ["u 继续", "a 回答第一个问题", "u 继续", "a 回答第二个问题", "u 继续"],
        ["u 继续", "a 回答第一个问题", "u 继续", "a 回答第二个问题"],
        ["u 继续", "a 回答第一个问题", "u 继续", "a 回答第二个问题", "u 继续"],
    ),
    "one that was never stored does not drag the others along": (
        ["u 好", "a 最早的回答在此", "u 一", "a 回答第一个问题", "u 二"],
        ["u 一", "a 回答第一个问题", "u 好"],
        ["u 好", "a 最早的回答在此", "u 一", "a 回答第一个问题", "u 好", "u 二"],
    ),
    "short replies must be equal": (
        ["u 一", "a 好", "u 二"],
        ["u 一", "a 好的呀"],
        ["u 一", "a 好", "a 好的呀", "u 二"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_doubled_and_nothing_lost(name: str) -> None:
    ours, theirs, woven = CASES[name]
    # Where what is new has no neighbour before it, either place before the next match is right.
    assert weave(lines(*ours), lines(*theirs)) == tuple(lines(*woven))


def test_our_apology_is_no_word_of_the_model() -> None:
    ours = lines("u 一", "a 只说了一半的话", "u 二")
    theirs = lines("u 一", "a 只说了一半的话抱歉，请再说一遍。", "a 抱歉，请再说一遍。")
    assert weave(ours, theirs, apology="抱歉，请再说一遍。") == tuple(ours)


def test_what_the_platform_adds_is_bounded() -> None:
    theirs = lines(f"s {'规' * 2 * SYSTEM_MAX_CHARS}", "s 再", f"u {'旧' * FOREIGN_MAX_CHARS}", "u 新")
    system, *rest = weave(lines("u 问"), theirs)
    assert (system.role, len(system.content)) == ("system", SYSTEM_MAX_CHARS)
    assert [message.content for message in rest] == ["新", "问"]
