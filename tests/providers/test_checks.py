"""Each way a provider setting can be wrong is reported with an id and a hint, and never with the value."""

from typing import Any

import pytest

from providers import checks

KEY = "sk-live-0123456789abcdef"


def ids(settings: Any, **values: Any) -> list[str]:
    """Return the ids of what the checks find with these settings."""
    clean = {"LLM_BASE_URL": "", "LLM_API_KEY": "", "LLM_MODEL": "", "PROVIDER_ALLOWED_ADDRESSES": [], **values}
    for name, value in clean.items():
        setattr(settings, name, value)
    found = [
        *checks.check_environment_endpoint(None),
        *checks.check_provider_settings(None),
        *checks.check_secret_keys(None),
    ]
    assert all(message.hint for message in found)
    assert not any(KEY in str(message) for message in found)
    return [str(message.id) for message in found]


GOOD: list[dict[str, Any]] = [
    {},
    {"LLM_BASE_URL": "https://api.example.com", "LLM_MODEL": "m", "LLM_API_KEY": KEY},
    {"LLM_BASE_URL": "http://127.0.0.1:8000/v1/", "LLM_MODEL": "m", "LLM_API_KEY": KEY},
    {"PROVIDER_ALLOWED_ADDRESSES": ["127.0.0.1:80", "[::1]:8000", "llm.internal:443"]},
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("providers.E001", {"LLM_BASE_URL": "api.example.com", "LLM_MODEL": "m"}),
    ("providers.E001", {"LLM_BASE_URL": f"https://user:{KEY}@api.example.com", "LLM_MODEL": "m"}),
    ("providers.E001", {"LLM_BASE_URL": "https://api.example.com/v1?key=1", "LLM_MODEL": "m"}),
    ("providers.E002", {"LLM_BASE_URL": "https://api.example.com"}),
    ("providers.E003", {"LLM_BASE_URL": "https://a.example", "LLM_MODEL": "m", "LLM_API_KEY": KEY + "\n"}),
    ("providers.E003", {"LLM_BASE_URL": "https://a.example", "LLM_MODEL": "m", "LLM_API_KEY": "密钥"}),
    ("providers.E004", {"PROVIDER_ALLOWED_ADDRESSES": ["127.0.0.1"]}),
    ("providers.E004", {"PROVIDER_ALLOWED_ADDRESSES": ["127.0.0.1:99999"]}),
    ("providers.E004", {"PROVIDER_ALLOWED_ADDRESSES": ["::1:80"]}),
    ("providers.E004", {"PROVIDER_ALLOWED_ADDRESSES": ["http://127.0.0.1:80"]}),
    ("providers.E005", {"PROVIDER_IDLE_SECONDS": 0}),
    ("providers.E005", {"PROVIDER_LINE_MAX_BYTES": "many"}),
    ("providers.E006", {"PROVIDER_TRANSPORT": "slow"}),
    ("providers.E007", {"SECRET_KEYS": []}),
    ("providers.E007", {"SECRET_KEYS": [KEY]}),
    ("providers.W001", {"LLM_API_KEY": KEY}),
    ("providers.W001", {"LLM_MODEL": "m"}),
    ("providers.W002", {"LLM_BASE_URL": "http://api.example.com", "LLM_MODEL": "m", "LLM_API_KEY": KEY}),
]


@pytest.mark.parametrize("values", GOOD)
def test_good_settings_pass(settings: Any, values: dict[str, Any]) -> None:
    assert ids(settings, **values) == []


@pytest.mark.parametrize(("id_", "values"), BAD)
def test_a_bad_setting_is_named(settings: Any, id_: str, values: dict[str, Any]) -> None:
    assert ids(settings, **values) == [id_]
