from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from conversations.errors import ChatError, NotAllowed, NotSignedIn
from conversations.models import Login, StreamTicket
from conversations.tenancy import resolve, tokens
from tests.world import World, make_tokens


def claims(world: World) -> tokens.Claims:
    return tokens.read_access(make_tokens(world.alice).access)


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(ChatError) as caught:
        function(*args)
    return caught.value.code


def test_the_member_comes_with_site_and_user_in_one_query(world: World, django_assert_num_queries: Any) -> None:
    named = claims(world)
    with django_assert_num_queries(1):
        member = resolve.approved_member_for(named)
        assert (member.pk, member.site.slug, member.user.username) == (world.alice.pk, "acorn", "alice")


def test_claims_that_do_not_fit_together_name_nobody(world: World) -> None:
    alice, carol = claims(world), tokens.read_access(make_tokens(world.carol).access)
    for mixed in (
        replace(alice, site_id=world.birch.pk),
        replace(alice, membership_id=world.bob.pk),
        replace(alice, login_id=carol.login_id),
        replace(carol, membership_id=world.alice.pk),
    ):
        assert refusal(resolve.member_for, mixed) == "token_invalid"


def test_a_closed_account_is_not_signed_in(world: World) -> None:
    named = claims(world)
    world.alice.user.is_active = False
    world.alice.user.save()
    assert refusal(resolve.member_for, named) == "token_invalid"


@pytest.mark.parametrize("status", ["pending", "rejected", "suspended"])
def test_who_is_not_approved_is_known_but_may_not_chat(world: World, status: str) -> None:
    named = claims(world)
    world.alice.status = status
    world.alice.save()
    assert resolve.member_for(named) == world.alice
    with pytest.raises(NotAllowed) as caught:
        resolve.approved_member_for(named)
    assert caught.value.code == "not_approved"


def test_a_closed_site_lets_nobody_chat(world: World) -> None:
    named = claims(world)
    world.acorn.is_active = False
    world.acorn.save()
    assert refusal(resolve.approved_member_for, named) == "not_approved"


def test_the_bearer_token_is_read_from_a_mapping_and_from_pairs_of_bytes(world: World) -> None:
    pair = make_tokens(world.alice)
    expected = tokens.read_access(pair.access)
    assert resolve.claims_from_headers({"Authorization": f"Bearer {pair.access}"}) == expected
    assert resolve.claims_from_headers([(b"authorization", f"bearer {pair.access}".encode())]) == expected


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "not_signed_in"),
        ({"Authorization": ""}, "not_signed_in"),
        ({"Authorization": "Bearer"}, "not_signed_in"),
        ({"Authorization": "Basic YTpi"}, "not_signed_in"),
        ([], "not_signed_in"),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], "not_signed_in"),
        ([(b"authorization", b"Bearer \xff\xfe")], "token_invalid"),
        ({"Authorization": "Bearer a.b.c"}, "token_invalid"),
    ],
)
def test_headers_without_a_good_token_are_refused(headers: Any, code: str) -> None:
    assert refusal(resolve.claims_from_headers, headers) == code


def test_a_ticket_stands_for_the_sign_in_once(world: World) -> None:
    named = claims(world)
    ticket = resolve.issue_ticket(world.alice, named.login_id, 7)
    redeemed = resolve.redeem_ticket(ticket)
    assert redeemed == replace(named, jti=redeemed.jti, message_id=7)
    assert refusal(resolve.redeem_ticket, ticket) == "ticket_invalid"


def test_a_ticket_dies_after_a_minute_and_with_its_sign_in(world: World) -> None:
    named = claims(world)
    late = resolve.issue_ticket(world.alice, named.login_id, None)
    StreamTicket.across_sites.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert refusal(resolve.redeem_ticket, late) == "ticket_invalid"

    orphan = resolve.issue_ticket(world.alice, named.login_id, None)
    Login.across_sites.update(ended_at=timezone.now())
    with pytest.raises(NotSignedIn):
        resolve.member_for(resolve.redeem_ticket(orphan))


def test_expired_tickets_are_forgotten_when_the_next_is_issued(world: World) -> None:
    named = claims(world)
    resolve.issue_ticket(world.alice, named.login_id, None)
    StreamTicket.across_sites.update(expires_at=timezone.now() - timedelta(seconds=1))
    resolve.issue_ticket(world.alice, named.login_id, None)
    assert StreamTicket.across_sites.count() == 1


def test_the_text_of_a_ticket_is_not_stored(world: World) -> None:
    ticket = resolve.issue_ticket(world.alice, claims(world).login_id, None)
    assert ticket not in str(StreamTicket.across_sites.values_list().get())


@pytest.mark.parametrize(
    "text", ["", ".", "1.", "x.y", "1.\ud800", "-1.a", "9" * 30 + ".a", "1.口", "1." + "a" * 200]
)
@pytest.mark.django_db
def test_text_that_is_no_ticket_is_refused(text: str) -> None:
    assert refusal(resolve.redeem_ticket, text) == "ticket_invalid"
