"""What people can meet is explained: every error code, every setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chatsite import env
from conversations.errors import CODES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def documented(page: str) -> list[str]:
    """Names in the first column of the page's tables."""
    return re.findall(r"^\| `(\w+)` \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_error_code_is_documented_once_with_its_status() -> None:
    assert sorted(documented("errors.md")) == sorted(CODES)
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    for code, error in CODES.items():
        assert f"| `{code}` | {error.status} |" in text, code


def test_every_setting_is_documented_once() -> None:
    assert sorted(documented("settings.md")) == sorted(env.names)


@pytest.mark.parametrize("language", ["zh-hans", "en"])
def test_every_code_has_a_sentence_in_each_language(language: str) -> None:
    assert all(text.detail(language) for text in CODES.values())  # type: ignore[arg-type]
