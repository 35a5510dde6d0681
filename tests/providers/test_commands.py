"""The commands of this room: one real call, and all secrets under a new key."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from providers.credentials import check_keys, decrypt, new_key
from providers.models import Endpoint, EndpointRevision, RegistryRevision
from tests.fakes.provider import FakeProvider, expected_text

pytestmark = pytest.mark.django_db
KEY = "sk-live-0123456789abcdef"


def run(*arguments: str) -> str:
    """Return what a command prints."""
    out = StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_probe_model_calls_the_endpoint_of_the_environment(fake: FakeProvider, settings: Any) -> None:
    settings.LLM_BASE_URL, settings.LLM_API_KEY, settings.LLM_MODEL = fake.base_url, KEY, "fake"
    report = json.loads(run("probe_model"))
    assert (report["endpoint"], report["ok"], report["sample"]) == ("environment", True, expected_text(1, 8))
    assert 0 <= report["firstTokenMs"] <= report["latencyMs"]


def test_probe_model_fails_when_the_endpoint_does(fake: FakeProvider, settings: Any) -> None:
    settings.LLM_BASE_URL, settings.LLM_API_KEY, settings.LLM_MODEL = fake.base_url, KEY, "fake"
    with pytest.raises(CommandError, match="environment: unauthorized"):
        run("probe_model", "--question", "[[fault=401]]")


def test_probe_model_takes_the_stand_in_when_there_is_nothing_else(settings: Any) -> None:
    settings.LLM_BASE_URL = ""
    assert json.loads(run("probe_model", "--question", "hello"))["endpoint"] == "stand-in"


def test_probe_model_knows_inactive_rows_by_name_and_says_when_there_is_none(settings: Any) -> None:
    settings.LLM_BASE_URL = ""
    Endpoint.objects.create(
        name="剧本", dialect="scripted", is_active=False, params={"script": [{"text": "台词"}]}
    )
    assert json.loads(run("probe_model", "剧本"))["sample"] == "台词"
    with pytest.raises(CommandError, match="没有"):
        run("probe_model", "没有")


def test_rotate_keys_moves_every_secret_under_the_first_key(settings: Any) -> None:
    old, new = new_key(), new_key()
    settings.SECRET_KEYS = [old]
    for name in ("甲", "乙"):
        row = Endpoint(name=name, dialect="scripted")
        row.set_api_key(KEY + name)
        row.save()
    Endpoint.objects.create(name="无", dialect="scripted")
    settings.SECRET_KEYS = [new, old]
    before = RegistryRevision.objects.get().revision
    assert run("rotate_keys").startswith("2 secrets")
    assert RegistryRevision.objects.get().revision == before + 1, "one change, one revision"
    stored = dict(Endpoint.objects.exclude(name="无").values_list("name", "api_key_encrypted"))
    assert {n: decrypt(c, keys=[new]).reveal() for n, c in stored.items()} == {n: KEY + n for n in ("甲", "乙")}
    kept = [values for revision in EndpointRevision.objects.all() for values in revision.endpoints]
    found = [decrypt(values["api_key_encrypted"], keys=[new]).reveal() for values in kept]
    assert {KEY + "甲", KEY + "乙"} <= set(found)


def test_rotate_keys_changes_all_or_nothing(settings: Any) -> None:
    old, new, lost = new_key(), new_key(), new_key()
    for key, name in ((old, "好"), (lost, "坏")):
        settings.SECRET_KEYS = [key]
        row = Endpoint(name=name, dialect="scripted")
        row.set_api_key(KEY)
        row.save()
    before = dict(Endpoint.objects.values_list("name", "api_key_encrypted"))
    settings.SECRET_KEYS = [new, old]
    with pytest.raises(CommandError, match="坏"):
        run("rotate_keys")
    assert dict(Endpoint.objects.values_list("name", "api_key_encrypted")) == before


def test_rotate_keys_prints_a_fresh_key() -> None:
    check_keys([run("rotate_keys", "--new").strip()])
