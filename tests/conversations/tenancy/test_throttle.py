from __future__ import annotations

from typing import Any

import pytest

from conversations.errors import Limited
from conversations.models import RateWindow
from conversations.tenancy import throttle

pytestmark = pytest.mark.django_db


def test_uses_beyond_the_limit_are_refused_until_the_next_minute() -> None:
    for _ in range(3):
        throttle.spend("key", 3)
    with pytest.raises(Limited) as caught:
        for _ in range(4):  # a minute may turn meanwhile
            throttle.spend("key", 3)
    assert caught.value.code == "throttled"
    assert 1 <= (caught.value.retry_after_seconds or 0) <= 60


def test_one_use_costs_one_query(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        throttle.spend("key", 3)


def test_keys_are_counted_apart() -> None:
    throttle.spend("one", 1)
    throttle.spend("another", 1)


def test_nothing_is_counted_when_throttling_is_off(settings: Any) -> None:
    settings.THROTTLE = False
    for _ in range(3):
        throttle.spend("key", 1)
    assert not RateWindow.objects.exists()


def test_names_and_addresses_are_not_stored() -> None:
    throttle.spend_sign_in("alice\0\ud800", "203.0.113.5")
    key = RateWindow.objects.get().key
    assert "alice" not in key and "203" not in key
