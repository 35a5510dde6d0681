"""Grants and own keys as rows: what a change tells the workers, what a restore keeps, what goes with what."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from conversations.models import EndpointGrant, MemberKey, Membership, Site
from conversations.tenancy.grants import config_for_site, load_grants, read_keys, usable_by
from providers import registry
from providers.credentials import decrypt, new_key
from providers.errors import Misconfigured
from providers.models import Endpoint, EndpointRevision, RegistryRevision, restore_revision
from tests.world import World

KEY = "sk-own-0123456789abcdef"


@pytest.fixture(autouse=True)
def keys(settings: Any) -> None:
    settings.SECRET_KEYS = [new_key()]


def make(name: str = "主力", **fields: Any) -> Endpoint:
    return Endpoint.objects.create(**{"name": name, "base_url": "https://a.example/v1", "model": "m", **fields})


def grant(site: Site, endpoint: Endpoint, key: str = "") -> EndpointGrant:
    row = EndpointGrant(site=site, endpoint=endpoint)
    row.set_own_key(key, endpoint)
    row.save()
    return row


def give_key(member: Membership, endpoint: Endpoint, key: str = KEY) -> MemberKey:
    row = MemberKey(site_id=member.site_id, membership=member, endpoint=endpoint)
    row.set_own_key(key, endpoint)
    row.save()
    return row


def revision() -> int:
    return RegistryRevision.objects.get().revision


def test_every_change_of_a_grant_is_a_revision_and_none_of_a_members_key(world: World) -> None:
    endpoint = make()
    at = revision()
    row = grant(world.acorn, endpoint, KEY)
    assert revision() == at + 1
    row.save()
    EndpointGrant.objects.for_site(world.acorn).update(api_key_mask="…")
    EndpointGrant.across_sites.update(api_key_mask="…")
    assert revision() == at + 4
    EndpointGrant.objects.for_site(world.acorn).delete()
    EndpointGrant.across_sites.bulk_create([EndpointGrant(site=world.birch, endpoint=endpoint)])
    EndpointGrant.across_sites.get().delete()
    assert revision() == at + 7
    give_key(world.alice, endpoint).delete()
    assert revision() == at + 7


def test_changes_of_grants_push_no_revision_of_the_endpoints_out(world: World) -> None:
    endpoint = make()
    kept = list(EndpointRevision.objects.values_list("revision", flat=True))
    row = grant(world.acorn, endpoint)
    for _ in range(25):
        row.save()
    assert list(EndpointRevision.objects.values_list("revision", flat=True)) == kept


def test_a_restore_keeps_grants_of_what_stays_and_brings_back_none_of_what_had_gone(world: World) -> None:
    stays, goes = make("留"), make("去", is_shared=False)
    grant(world.acorn, stays, KEY)
    grant(world.acorn, goes, KEY)
    give_key(world.alice, stays)
    then = EndpointRevision.objects.latest("revision").revision
    goes.delete()
    came = make("新")
    grant(world.acorn, came)
    restore_revision(then)
    assert sorted(Endpoint.objects.values_list("name", flat=True)) == ["去", "留"]
    assert list(EndpointGrant.across_sites.values_list("endpoint__name", flat=True)) == ["留"]
    assert MemberKey.across_sites.get().endpoint == stays
    # It came back, closed, and nobody may use it before it is granted again.
    names = [e.name for e in usable_by(registry.load_snapshot(), world.acorn.pk).endpoints]
    assert names == ["留"]


def test_an_endpoint_takes_its_grants_and_keys_along_also_past_the_orm(world: World) -> None:
    for is_raw in (False, True):
        endpoint = make()
        grant(world.acorn, endpoint, KEY)
        give_key(world.alice, endpoint)
        if is_raw:
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM providers_endpoint WHERE id = %s", [endpoint.pk])
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        else:
            endpoint.delete()
        assert not EndpointGrant.across_sites.exists() and not MemberKey.across_sites.exists()


def test_a_member_takes_their_keys_along(world: World) -> None:
    give_key(world.alice, make())
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM conversations_membership WHERE id = %s", [world.alice.pk])
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    assert not MemberKey.across_sites.exists()


def test_grants_are_read_in_one_query_and_those_of_other_endpoints_are_not(
    world: World, django_assert_num_queries: Any
) -> None:
    endpoint, other = make(), make("别的", is_active=False)
    for site in (world.acorn, world.birch):
        grant(site, endpoint, KEY)
        grant(site, other, KEY)
    with django_assert_num_queries(1):
        found = load_grants([endpoint])
    assert {site: {pk: g.credential for pk, g in grants.items()} for site, grants in found.items()} == {
        world.acorn.pk: {endpoint.pk: f"site:{world.acorn.pk}"},
        world.birch.pk: {endpoint.pk: f"site:{world.birch.pk}"},
    }
    assert KEY not in repr(found)


def test_nobody_reads_another_members_keys(world: World) -> None:
    endpoint = make()
    give_key(world.alice, endpoint)
    found = read_keys(world.acorn.pk, world.alice.pk)
    assert found is not None and [pk for pk, _, _ in found.rows] == [endpoint.pk]
    for site, member in ((world.acorn, world.bob), (world.birch, world.carol), (world.birch, world.alice)):
        assert read_keys(site.pk, member.pk) is None


def test_a_members_key_goes_only_where_it_was_given_for_also_on_a_worker_behind_or_ahead(world: World) -> None:
    endpoint = make()
    give_key(world.alice, endpoint)
    old, old_keys = registry.load_snapshot(), read_keys(world.acorn.pk, world.alice.pk)
    assert [e.base_url for e in usable_by(old, world.acorn.pk, old_keys).endpoints] == ["https://a.example/v1"]
    endpoint.base_url = "https://b.example/v1"
    endpoint.save()
    new = registry.load_snapshot()
    assert usable_by(new, world.acorn.pk, old_keys).endpoints == ()  # a reply that began before the change
    row = MemberKey.across_sites.get()
    row.set_own_key(KEY, endpoint)
    row.save()
    new_keys = read_keys(world.acorn.pk, world.alice.pk)
    assert usable_by(old, world.acorn.pk, new_keys).endpoints == ()  # a worker that has not heard of it
    assert [e.base_url for e in usable_by(new, world.acorn.pk, new_keys).endpoints] == ["https://b.example/v1"]


def test_a_test_with_a_sites_key_uses_what_the_site_would(world: World) -> None:
    closed = make(is_shared=False)
    assert config_for_site(closed, world.acorn) is None
    row = grant(world.acorn, closed, KEY)
    config = config_for_site(closed, world.acorn)
    assert config is not None and config.api_key is not None
    assert (config.api_key.reveal(), config.credential) == (KEY, f"site:{world.acorn.pk}")
    assert config_for_site(closed, world.birch) is None
    closed.base_url = "https://b.example/v1"
    closed.save()
    with pytest.raises(Misconfigured, match="key_for_another_host"):
        config_for_site(closed, world.acorn)
    row.set_own_key("", closed)
    row.save()
    config = config_for_site(closed, world.acorn)
    assert config is not None and (config.api_key, config.credential) == (None, "")


def test_rotate_keys_moves_sites_and_members_keys_too(world: World, settings: Any) -> None:
    endpoint = make()
    rows = [grant(world.acorn, endpoint, KEY), give_key(world.alice, endpoint)]
    at = revision()
    old, new = settings.SECRET_KEYS[0], new_key()
    settings.SECRET_KEYS = [new, old]
    call_command("rotate_keys")
    for row in rows:
        row.refresh_from_db()
        assert decrypt(row.api_key_encrypted, keys=[new]).reveal() == KEY
    assert revision() == at + 1
    settings.SECRET_KEYS = [new_key()]
    with pytest.raises(CommandError, match="acorn @ 主力"):
        call_command("rotate_keys")
    for row in rows:
        row.refresh_from_db()
        assert decrypt(row.api_key_encrypted, keys=[new]).reveal() == KEY
        with pytest.raises(Misconfigured):
            row.api_key()
