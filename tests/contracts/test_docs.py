"""What people can meet is explained: errors, settings, log events, metrics; and every link leads somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram

from chatsite import env
from conversations.errors import CODES
from conversations.generation import metrics
from conversations.voice import metrics as voice_metrics

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LOG_METHODS = {"debug", "info", "warning", "error", "exception"}


def documented(page: str) -> list[str]:
    """Names in the first column of the page's tables."""
    return re.findall(r"^\| `(\w+)` \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


def logged_events(room: str) -> Iterator[str]:
    """Yield the first words of every log call in a room."""
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOG_METHODS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in {"log", "logger"}
            ):
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: an event is a constant"
                yield node.args[0].value


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


@pytest.mark.parametrize("room", ["chatsite", "conversations", "providers"])
def test_every_log_event_is_documented(room: str) -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert [event for event in sorted(set(logged_events(room))) if f"`{event}`" not in text] == []


def test_every_metric_is_documented() -> None:
    names = {
        f"{metric._name}_total" if isinstance(metric, Counter) else metric._name
        for metric in (*vars(metrics).values(), *vars(voice_metrics).values())
        if isinstance(metric, Counter | Gauge | Histogram)
    }
    assert len(names) > 10
    assert sorted(name for name in documented("operations.md") if name.startswith("chat_")) == sorted(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    near = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in near if not (page.parent / link).exists()] == []


def test_the_house_names_files_that_exist() -> None:
    rooms = ("chatsite", "conversations", "providers", "tests", "bin", "templates", "benchmarks")
    files = {str(path.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*")}
    named = re.findall(r"`([\w/]+(?:\.py|/))`", (DOCS / "house.md").read_text(encoding="utf-8"))
    assert len(named) > 50
    missing = [name for name in named if not any(f"/{path}".endswith(f"/{name.rstrip('/')}") for path in files)]
    assert [name for name in missing if name.rstrip("/") not in rooms] == []


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [text.index(f"\n    ./bin/{name}\n") for name in ("run", "test")]
    assert commands == sorted(commands)
    assert all((ROOT / "bin" / name).stat().st_mode & 0o111 for name in ("run", "test"))


def test_every_decision_has_a_number_of_its_own_and_is_short() -> None:
    records = sorted((DOCS / "decisions").glob("*.md"))
    numbers = [re.match(r"\d{4}(?=-\w)", record.name) for record in records]
    assert all(numbers) and len({number[0] for number in numbers if number}) == len(records) > 0
    words = {record.name: len(record.read_text(encoding="utf-8").split()) for record in records}
    assert {name: count for name, count in words.items() if not 100 <= count <= 400} == {}
