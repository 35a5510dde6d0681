"""Settings that are wrong are told by name, and never stop the import."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatsite import checks, env


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "problems", [])
    monkeypatch.setattr(env, "names", {})


@pytest.mark.parametrize(
    ("value", "read", "default"),
    [
        ("zwei", lambda: env.env_int("X_SETTING", 2, least=1, most=9), 2),
        ("2.5", lambda: env.env_int("X_SETTING", 2, least=1, most=9), 2),
        ("0", lambda: env.env_int("X_SETTING", 2, least=1, most=9), 2),
        ("nan", lambda: env.env_float("X_SETTING", 1.5, least=0, most=9), 1.5),
        ("maybe", lambda: env.env_bool("X_SETTING", True), True),
        ("blue", lambda: env.env_choice("X_SETTING", ("red", "green"), "red"), "red"),
    ],
)
def test_a_value_that_cannot_be_used_is_reported_and_the_default_stands(
    monkeypatch: pytest.MonkeyPatch, value: str, read: object, default: object
) -> None:
    monkeypatch.setenv("X_SETTING", value)
    assert read() == default  # type: ignore[operator]
    [message] = checks.check_environment(None)
    assert (message.id, "X_SETTING" in message.msg, "X_SETTING" in (message.hint or "")) == (
        "chatsite.E001",
        True,
        True,
    )


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("秘密\n", encoding="utf-8")
    monkeypatch.setenv("X_SETTING_FILE", str(secret))
    assert env.env_str("X_SETTING") == "秘密"
    monkeypatch.setenv("X_SETTING_FILE", str(tmp_path / "missing"))
    assert env.env_str("X_SETTING", "default") == "default"
    assert [problem.name for problem in env.problems] == ["X_SETTING"]


def test_blank_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_SETTING", "  ")
    assert env.env_list("X_SETTING", "a, b,,") == ["a", "b"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgres://chat:p%40ss@db.example:6543/site?sslmode=require",
            ("site", "chat", "p@ss", "db.example", "6543", {"sslmode": "require"}),
        ),
        ("postgresql://chat@/site?host=/run/pg", ("site", "chat", "", "/run/pg", "", {})),
    ],
)
def test_a_database_url_is_taken_apart(url: str, expected: tuple[object, ...]) -> None:
    parts = env.parse_database_url(url)
    assert tuple(parts[key] for key in ("NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")) == expected


@pytest.mark.parametrize(
    "url", ["mysql://u@h/d", "postgres://h", "postgres://u:geheim@h:port/d", "postgres://u@h/a/b", "nonsense"]
)
def test_a_bad_database_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        env.parse_database_url(url)
    assert "geheim" not in str(refused.value)


def test_pools_larger_than_the_embedded_server_are_warned_of(settings: object) -> None:
    assert checks.check_pools(None) == []
    settings.EMBEDDED_POSTGRES, settings.WORKERS, settings.DB_POOL_SIZE = True, 64, 100  # type: ignore[attr-defined]
    assert [message.id for message in checks.check_pools(None)] == ["chatsite.W001"]
