"""Endpoints and the snapshot: every write bumps the revision, and the order is rows, environment, stand-in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from providers import registry
from providers.credentials import Secret, new_key
from providers.errors import Misconfigured
from providers.models import Endpoint, RegistryRevision

pytestmark = pytest.mark.django_db
KEY = "sk-test-1234567890"


@pytest.fixture(autouse=True)
def nothing_configured(settings: Any) -> Iterator[None]:
    """No endpoint in the environment, no snapshot from an earlier test."""
    settings.LLM_BASE_URL = settings.LLM_API_KEY = settings.LLM_MODEL = ""
    settings.SECRET_KEYS = [new_key()]
    registry.forget()
    yield
    registry.forget()


def make(name: str = "甲", **fields: Any) -> Endpoint:
    """Save an endpoint and return it."""
    endpoint = Endpoint(name=name, **{"base_url": "https://api.example.com", "model": "m-1", **fields})
    endpoint.save()
    return endpoint


def revision() -> int:
    """Return the revision now."""
    # The row may be missing: tests that commit leave empty tables behind.
    return RegistryRevision.objects.filter(pk=1).values_list("revision", flat=True).first() or 0


WRITES: dict[str, Callable[[Endpoint], Any]] = {
    "save": lambda row: row.save(),
    "create": lambda row: Endpoint.objects.create(name="乙", dialect="scripted"),
    "update": lambda row: Endpoint.objects.filter(pk=row.pk).update(is_active=False),
    "delete": lambda row: row.delete(),
    "queryset delete": lambda row: Endpoint.objects.filter(pk=row.pk).delete(),
    "bulk create": lambda row: Endpoint.objects.bulk_create([Endpoint(name="丙", dialect="scripted")]),
    "bulk update": lambda row: Endpoint.objects.bulk_update([row], ["weight"]),
    "update or create": lambda row: Endpoint.objects.update_or_create(name=row.name, defaults={"weight": 2}),
}


@pytest.mark.parametrize("write", WRITES)
def test_every_write_bumps_the_revision(write: str) -> None:
    row = make()
    before = revision()
    WRITES[write](row)
    assert revision() > before


def test_a_write_that_is_rolled_back_bumps_nothing() -> None:
    before = revision()
    with pytest.raises(RuntimeError), transaction.atomic():
        make()
        raise RuntimeError
    assert revision() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"dialect": "other"},
        {"weight": 0},
        {"priority": 1001},
        {"base_url": ""},
        {"model": ""},
        {"dialect": "dashscope_app", "model": ""},
        {"name": ""},
        {"idle_seconds": 0},
        {"connect_seconds": -1},
        {"concurrency_max": 0},
        {"requests_per_minute": 0},
        {"input_micros_per_million": -1},
        {"output_micros_per_million": -1},
        {"is_draining": True},
    ],
)
def test_the_database_refuses_what_no_endpoint_is(fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        make(**fields)


def test_the_key_is_stored_encrypted_beside_its_mask() -> None:
    row = make()
    row.set_api_key(KEY)
    row.save()
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(e)::text FROM providers_endpoint e")
        stored = cursor.fetchone()[0]
    assert KEY not in stored
    assert "sk-…7890" in stored
    assert Endpoint.objects.get().api_key().reveal() == KEY
    assert KEY not in repr(registry.load_snapshot())


def test_with_nothing_configured_there_is_the_stand_in() -> None:
    [endpoint] = registry.load_snapshot().endpoints
    assert (endpoint.is_stand_in, endpoint.dialect) == (True, "scripted")


def test_with_the_stand_in_switched_off_there_is_nothing(settings: Any) -> None:
    settings.STAND_IN = False
    assert registry.load_snapshot().endpoints == ()


def test_a_test_is_noted_without_a_new_revision() -> None:
    row = make()
    before = revision()
    assert row.was_never_well
    row.note_test(is_ok=True)
    row.refresh_from_db()
    assert (row.was_never_well, row.test_ok, revision()) == (False, True, before)


@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ((None, None), None),
        ((2_500_000, 10_000_000), 2_500 + 5_000),
        ((1, None), 0),
        ((None, 1_000), 1),
        ((0, 0), 0),
    ],
)
def test_cost_is_whole_micros_of_both_prices(prices: tuple[int | None, int | None], cost: int | None) -> None:
    make(input_micros_per_million=prices[0], output_micros_per_million=prices[1])
    assert registry.load_snapshot().endpoints[0].cost_micros(1_000, 500) == cost


def test_an_endpoint_of_the_environment_replaces_the_stand_in(settings: Any) -> None:
    settings.LLM_BASE_URL, settings.LLM_API_KEY, settings.LLM_MODEL = "http://127.0.0.1:1/v1", KEY, "m"
    [endpoint] = registry.load_snapshot().endpoints
    assert (endpoint.name, endpoint.model, endpoint.is_trusted_address) == ("environment", "m", True)
    assert endpoint.api_key is not None and endpoint.api_key.reveal() == KEY


def test_rows_come_first_by_priority_and_the_environment_is_the_reserve(settings: Any) -> None:
    settings.LLM_BASE_URL, settings.LLM_MODEL = "http://127.0.0.1:1/v1", "m"
    make("后", priority=20)
    make("先", priority=1)
    make("停", is_active=False)
    endpoints = registry.load_snapshot().endpoints
    assert [e.name for e in endpoints] == ["先", "后", "environment"]
    assert [e.is_trusted_address for e in endpoints] == [False, False, True]


def test_a_row_of_staff_is_not_trusted_with_the_environments_address(settings: Any) -> None:
    settings.LLM_BASE_URL, settings.LLM_MODEL = "http://127.0.0.1:1/v1", "m"
    make(base_url="http://127.0.0.1:1/v1")
    assert registry.load_snapshot().endpoints[0].is_trusted_address is False


def test_an_unreadable_key_leaves_one_row_out_and_never_calls_the_stand_in(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = make()
    row.set_api_key(KEY)
    row.save()
    settings.SECRET_KEYS = [new_key()]
    with caplog.at_level(logging.ERROR):
        assert registry.load_snapshot().endpoints == ()
    assert "endpoint left out" in caplog.text
    assert KEY not in caplog.text
    make("好", dialect="scripted", base_url="", model="")
    assert [e.name for e in registry.load_snapshot().endpoints] == ["好"]
    with pytest.raises(Misconfigured):
        registry.config_of(row)


def test_a_bad_environment_url_is_no_endpoint_and_no_reason_to_pretend(settings: Any) -> None:
    settings.LLM_BASE_URL = "https://user:pass@api.example.com"
    assert registry.load_snapshot().endpoints == ()


def test_a_rows_own_clocks_win_over_the_settings(settings: Any) -> None:
    settings.PROVIDER_IDLE_SECONDS, settings.PROVIDER_TOTAL_SECONDS = 11.0, 12.0
    make(idle_seconds=3.5)
    clocks = registry.load_snapshot().endpoints[0].clocks
    assert (clocks.idle_seconds, clocks.total_seconds) == (3.5, 12.0)


def test_the_snapshot_is_loaded_again_only_when_the_revision_moved(
    django_assert_num_queries: Any,
) -> None:
    first = registry.current()
    with django_assert_num_queries(0):
        assert registry.current() is first
        assert registry.refresh_if(first.revision) is first
    make()
    second = registry.refresh_if(revision())
    assert (second.revision, [e.name for e in second.endpoints]) == (revision(), ["甲"])
    assert registry.loaded() is second


def section(**fields: Any) -> dict[str, Any]:
    """Return a configuration that sends this."""
    resp = [{"name": "content", "value": "text"}]
    return {"name": "自家", "chat": {"url": "https://api.example.com/x", "resp": resp, **fields}}


def data(value: str, convertor: str = "") -> list[dict[str, Any]]:
    """Return the body of a configuration with one field."""
    return [{"name": "input", "value": value, "convertor": convertor}]


@pytest.mark.parametrize(
    ("fields", "continues", "reads_last_text_only"),
    [
        ({"dialect": "openai"}, "", False),
        ({"dialect": "openai", "params": {"continues": {"message": {"partial": True}}}}, "prefix", False),
        ({"dialect": "openai", "continues": "none"}, "none", False),
        ({"dialect": "dashscope_app"}, "instruction", False),
        ({"dialect": "dashscope_app", "continues": "prefix"}, "instruction", False),
        ({"config": {"ready": "deepseek"}}, "prefix", False),
        ({"config": {"ready": "moonshot"}, "continues": "instruction"}, "instruction", False),
        ({"config": {"ready": "anthropic_x_api_key"}}, "instruction", False),
        ({"config": {"ready": "zhipu"}}, "", False),
        ({"config": {"ready": "ernie"}}, "instruction", False),
        ({"config": {"ready": "ernie"}, "continues": "prefix"}, "instruction", False),
        ({"config": section(data=data("${prompt}"))}, "instruction", True),
        ({"config": section(data=data("${prompt}"), continues="none")}, "none", True),
        ({"config": section(data=data("${messages}", "last_user_text"))}, "instruction", True),
        ({"config": section(data=data("${messages}"), continues="prefix")}, "prefix", False),
    ],
)
def test_an_endpoint_goes_on_as_it_says_as_far_as_its_form_can_carry(
    fields: dict[str, Any], continues: str, reads_last_text_only: bool
) -> None:
    given = {"name": "甲", "model": "m", "base_url": "https://api.example.com", "dialect": "declarative", **fields}
    endpoint = registry.config_of(Endpoint(**given))
    assert (endpoint.continues, endpoint.reads_last_text_only) == (continues, reads_last_text_only)


def test_an_application_needs_no_url_and_keeps_sessions() -> None:
    make("百炼", dialect="dashscope_app", base_url="", model="app-1")
    [endpoint] = registry.load_snapshot().endpoints
    assert (endpoint.dialect, endpoint.model, endpoint.keeps_sessions) == ("dashscope_app", "app-1", True)
    make("通用")
    assert [e.keeps_sessions for e in registry.load_snapshot().endpoints] == [True, False]


def held(number: int, **fields: Any) -> registry.EndpointConfig:
    """Return an endpoint as a snapshot holds it."""
    return registry.EndpointConfig(id=number, name=f"e{number}", dialect="openai", model="m", **fields)


def test_a_holder_sees_what_is_shared_and_what_was_granted_with_its_keys() -> None:
    own = Secret("sk-own-0123456789")
    endpoints = (held(1), held(2, is_shared=False), held(3, is_shared=False), registry.stand_in_endpoint())
    snapshot = registry.Snapshot(4, endpoints, {7: {1: registry.Grant("site:7", own), 2: registry.Grant()}})
    mine = snapshot.of(7).endpoints
    assert [(e.name, e.credential, e.api_key) for e in mine] == [
        ("e1", "site:7", own),
        ("e2", "", None),
        ("stand-in", "", None),
    ]
    assert [(e.name, e.credential) for e in snapshot.of(8).endpoints] == [("e1", ""), ("stand-in", "")]
    assert snapshot.of(7) is snapshot.of(7) and snapshot.of(8) is snapshot.of(9), "made once"
    assert "sk-own" not in repr(snapshot)


def test_where_all_is_shared_and_nothing_granted_a_holder_sees_the_snapshot_itself() -> None:
    snapshot = registry.Snapshot(4, (held(1), held(2)), {7: {1: registry.Grant()}})
    assert snapshot.of(8) is snapshot
    assert snapshot.with_keys({}) is snapshot


def test_a_key_that_cannot_be_used_is_replaced_by_none() -> None:
    snapshot = registry.Snapshot(4, (held(1), held(2)), {7: {1: registry.Grant("site:7", is_usable=False)}})
    assert [e.name for e in snapshot.of(7).endpoints] == ["e2"]


def test_the_target_of_keys_is_the_host_and_of_a_configuration_all_of_it() -> None:
    def target(**fields: Any) -> str:
        return Endpoint(**{"dialect": "openai", "base_url": "https://a.example/v1", **fields}).key_target

    assert target() == target(base_url="https://A.example/v2", model="other", params={"x": 1})
    assert len({target(), target(base_url="https://b.example"), target(base_url="http://a.example/v1")}) == 3
    assert target(dialect="dashscope_app", base_url="") == target(
        dialect="dashscope_app", base_url="https://dashscope.aliyuncs.com/api/v1"
    )
    first = target(dialect="declarative", config={"ready": "openai", "values": {"base_url": "https://x"}})
    assert first != target(dialect="declarative", config={"ready": "openai", "values": {"base_url": "https://y"}})


@pytest.mark.parametrize(
    ("fields", "can"),
    [
        ({}, True),
        ({"tools": "no"}, False),
        ({"dialect": "dashscope_app", "tools": "yes"}, False),
        ({"dialect": "scripted"}, True),
        ({"dialect": "declarative", "config": {"ready": "anthropic"}}, True),
        ({"dialect": "declarative", "config": {"ready": "spark_http"}}, True),
        ({"dialect": "declarative", "config": {"ready": "ernie"}}, False),
        ({"dialect": "declarative", "config": {"ready": "dashscope_app"}, "tools": "yes"}, False),
        ({"dialect": "declarative", "config": {"ready": "anthropic"}, "tools": "no"}, False),
    ],
)
def test_whether_tools_may_be_offered_is_known_with_the_endpoint(fields: dict[str, Any], can: bool) -> None:
    assert (
        registry.config_of(Endpoint(name="甲", base_url="https://a.example", model="m", **fields)).has_tools is can
    )


def test_the_environments_model_may_be_without_tools(settings: Any) -> None:
    settings.LLM_BASE_URL, settings.LLM_TOOLS = "https://a.example/v1", False
    endpoint = registry.environment_endpoint()
    assert endpoint is not None and not endpoint.has_tools
