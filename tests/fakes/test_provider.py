"""The fake provider goes on with an answer that somebody else began, and misbehaves only where it is told to."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from conversations.generation.seam import INSTRUCTION
from tests.fakes.provider import expected_text, start_fake_provider

WHOLE = expected_text(3, 12)


def said(base_url: str, question: str, begun: str = "", then: str = "") -> tuple[int, str]:
    """Return the status and the text of a reply; `then` is what the user says to the answer that was begun."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    messages += [{"role": "assistant", "content": begun}] if begun else []
    messages += [{"role": "user", "content": then}] if then else []
    body = {"model": "m", "stream": True, "messages": messages}
    answer = httpx.post(f"{base_url}/chat/completions", json=body, trust_env=False)
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return answer.status_code, "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("chars", [0, 1, 7, len(WHOLE) - 1, len(WHOLE)])
def test_a_begun_answer_goes_on_without_a_seam_wherever_it_was_cut(chars: int) -> None:
    with start_fake_provider() as fake:
        assert said(fake.base_url, "讲[[n=12 seed=3]]", WHOLE[:chars]) == (200, WHOLE[chars:])
        assert said(fake.base_url, "讲[[n=12 seed=3]]", "别人的话")[0] == 400


def test_an_answer_goes_on_when_it_is_told_to_and_says_again_what_it_likes() -> None:
    with start_fake_provider() as fake:
        asked = "讲[[n=12 seed=3 runup=4]]"
        assert said(fake.base_url, asked, WHOLE[:20], INSTRUCTION) == (200, WHOLE[16:])
        assert said(fake.base_url, asked, "从前", "还有呢[[n=12 seed=3 runup=4]]") == (200, WHOLE)
        assert said(fake.base_url, asked) == (200, WHOLE)


def test_a_fault_strikes_only_at_the_provider_it_names() -> None:
    with start_fake_provider("--name", "A") as fake:
        assert said(fake.base_url, "讲[[n=12 seed=3 fault=500 at=A]]")[0] == 500
        assert said(fake.base_url, "讲[[n=12 seed=3 fault=500 at=B]]") == (200, WHOLE)
