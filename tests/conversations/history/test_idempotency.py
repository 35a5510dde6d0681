from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from conversations.db import tenant
from conversations.errors import BadRequest, Invalid
from conversations.history.idempotency import claim_key, clean_key, hash_body
from conversations.models import IdempotencyKey
from tests.world import World, make_world


@pytest.mark.parametrize("key", ["12345678", "x" * 128, "!~!~!~!~"])
def test_a_sane_key_is_taken(key: str) -> None:
    assert clean_key(key) == key


def test_no_key_is_no_key() -> None:
    assert clean_key(None) is None


@pytest.mark.parametrize("key", ["", "1234567", "x" * 129, "with a space", "口令口令口令口令", "12345678\n"])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(BadRequest):
        clean_key(key)


def test_bodies_are_compared_by_value() -> None:
    assert hash_body("a", {"x": 1, "y": "你"}) == hash_body("a", {"y": "你", "x": 1})
    assert len({hash_body("a", {"x": 1}), hash_body("a", {"x": "1"}), hash_body("b", {"x": 1})}) == 3


def test_a_key_is_known_to_its_member_for_a_day(world: World) -> None:
    assert claim_key(world.alice.site_id, world.alice.pk, "12345678", "h") is None
    assert claim_key(world.alice.site_id, world.alice.pk, "12345678", "h") is not None
    assert claim_key(world.bob.site_id, world.bob.pk, "12345678", "h") is None
    with pytest.raises(Invalid) as caught:
        claim_key(world.alice.site_id, world.alice.pk, "12345678", "other")
    assert caught.value.code == "idempotency_mismatch"
    IdempotencyKey.across_sites.update(created_at=timezone.now() - timedelta(hours=24, seconds=1))
    assert claim_key(world.alice.site_id, world.alice.pk, "12345678", "other") is None


@pytest.mark.django_db(transaction=True)
def test_of_twenty_requests_at_once_one_owns_the_key() -> None:
    alice = make_world().alice

    def claim(_: int) -> bool:
        try:
            with tenant(alice.site_id):
                return claim_key(alice.site_id, alice.pk, "12345678", "h") is None
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(claim, range(20))) == [False] * 19 + [True]
