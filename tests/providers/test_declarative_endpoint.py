"""An endpoint by configuration: saved only when it is understood, called as it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from providers.admin import EndpointForm
from providers.clients.declarative.configs import load, names
from providers.clients.declarative.stored import check_stored
from providers.models import Endpoint
from providers.pool import probe
from providers.registry import config_of
from tests.fakes.provider import FakeProvider

pytestmark = pytest.mark.django_db


def form(config: Any, **changes: Any) -> EndpointForm:
    """Return the form as the admin and the API fill it in."""
    instance = changes.pop("instance", None)
    values = {
        "name": "按配置",
        "dialect": "declarative",
        "model": "m-1",
        "is_active": True,
        "priority": 10,
        "weight": 1,
        "params": "{}",
        "config": json.dumps(config),
        **changes,
    }
    return EndpointForm(values, instance=instance)


@pytest.mark.parametrize("name", names())
def test_every_ready_configuration_can_be_named(name: str) -> None:
    filled = form({"ready": name})
    assert filled.is_valid(), filled.errors


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, "name"),
        ({"ready": "nobody"}, "anthropic"),
        ({"ready": "azure", "values": {"nonsense": 1}}, "values.nonsense"),
        ({"ready": "azure", "mapi": "x"}, "mapi"),
        ({"ready": "azure", "mapi": 1}, "mapi"),
        ({"ready": "azure", "mode": "async"}, "mode"),
        ({"ready": "azure", "section": "chat"}, "section"),
        ({"config": {**load("openai"), "surprise": 1}}, "config.surprise"),
        ({"config": load("openai"), "values": []}, "values"),
        ({"config": load("openai"), "mapi": "embeddings"}, "mapi"),
        ({"name": "无", "values": {"base_url": None}, "other": load("openai")["chat"]}, "mapi"),
        ({**load("openai"), "surprise": 1}, "surprise"),
        ([], ""),
    ],
)
def test_what_is_not_understood_is_refused_at_the_field(config: Any, word: str) -> None:
    filled = form(config)
    assert not filled.is_valid()
    assert set(filled.errors) == {"config"}
    assert word in str(filled.errors["config"])
    assert not Endpoint.objects.exists()


def test_it_is_called_as_the_configuration_says(fake_provider: FakeProvider, settings: Any) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = [fake_provider.address]
    filled = form({"ready": "openai"}, base_url=fake_provider.base_url, api_key="sk-0123456789")
    assert filled.is_valid(), filled.errors
    row = filled.save()
    result = async_to_sync(probe)(config_of(row), seconds=10.0)
    assert (result.is_ok, result.error_code) == (True, None)
    assert result.sample
    assert fake_provider.stats()["bodies"][-1]["model"] == "m-1"


def test_a_changed_configuration_wants_the_key_again() -> None:
    first = form({"ready": "openai"}, api_key="sk-0123456789")
    assert first.is_valid(), first.errors
    row = first.save()
    kept = form({"ready": "openai"}, instance=row, priority=5)
    assert kept.is_valid(), kept.errors
    moved = form({"ready": "deepseek"}, instance=Endpoint.objects.get())
    assert set(moved.errors) == {"api_key"}
    again = form({"ready": "deepseek"}, instance=Endpoint.objects.get(), api_key="sk-9876543210")
    assert again.is_valid(), again.errors


@pytest.mark.parametrize("kept", [{"ready": "openai"}, {"config": load("openai")}])
@pytest.mark.parametrize(
    ("choices", "is_streamed"),
    [
        ({}, True),
        ({"mapi": "whole"}, False),
        ({"mode": "whole"}, False),
        ({"mapi": "whole", "mode": "stream"}, True),
    ],
)
def test_the_section_and_the_mode_are_the_endpoints_choice(
    fake_provider: FakeProvider, settings: Any, kept: dict[str, Any], choices: dict[str, str], is_streamed: bool
) -> None:
    settings.PROVIDER_ALLOWED_ADDRESSES = [fake_provider.address]
    values = {"values": {"base_url": fake_provider.base_url}}
    filled = form({**kept, **values, **choices}, api_key="sk-0123456789")
    assert filled.is_valid(), filled.errors
    fake_provider.reset()
    result = async_to_sync(probe)(config_of(filled.save()), seconds=10.0)
    assert (result.is_ok, result.error_code) == (True, None)
    assert result.sample
    [body] = fake_provider.stats()["bodies"]
    assert body["stream"] is is_streamed


def test_a_section_called_config_is_no_wrapper() -> None:
    whole = {"name": "同名", "config": load("openai")["chat"], "chat": load("openai")["chat"]}
    del whole["config"]["pass_params"]
    whole["values"] = {"base_url": None}
    whole["params"] = {"stream_options": None}
    assert set(check_stored(whole).config.sections) == {"config", "chat"}


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"ready": "openai", "values": {"base_url": "http://10.0.0.5/v1"}}, "values.base_url"),
        ({"config": load("openai"), "values": {"base_url": "http://10.0.0.5/v1"}}, "values.base_url"),
        ({"config": {**load("openai"), "values": {"base_url": "http://10.0.0.5/v1"}}}, "config.values.base_url"),
        ({"config": {"name": "内网", "chat": {
            "url": "http://10.0.0.5/v1", "resp": [{"name": "content", "value": "t"}]}}}, "config.chat.url"),
    ],
)  # fmt: skip
def test_a_private_address_is_refused_wherever_the_stored_form_says_it(config: Any, path: str) -> None:
    filled = form(config)
    assert not filled.is_valid()
    assert filled.errors["config"][0].startswith(f"{path}: ")
