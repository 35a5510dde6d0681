from __future__ import annotations

import time
import uuid
from typing import Any

import jwt
import pytest
from django.conf import settings

from conversations.errors import NotSignedIn
from conversations.models import Login
from conversations.tenancy import resolve, tokens
from tests.world import PASSWORD, World, make_tokens


def claims_of(world: World, **changes: Any) -> dict[str, Any]:
    claims = {
        "typ": "access",
        "mid": world.alice.pk,
        "sid": world.acorn.pk,
        "lid": uuid.uuid4().hex,
        "jti": "a",
        "exp": int(time.time()) + 60,
    }
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(NotSignedIn) as caught:
        function(*args)
    return caught.value.code


def test_signing_in_gives_an_access_token_that_names_the_membership(world: World) -> None:
    pair = tokens.sign_in("alice", PASSWORD, "acorn")
    claims = tokens.read_access(pair.access)
    assert (claims.membership_id, claims.site_id) == (world.alice.pk, world.acorn.pk)
    assert resolve.member_for(claims) == world.alice
    assert pair.expires_in_seconds == settings.ACCESS_TOKEN_SECONDS


def test_reading_an_access_token_asks_the_database_nothing(world: World, django_assert_num_queries: Any) -> None:
    access = make_tokens(world.alice).access
    with django_assert_num_queries(0):
        tokens.read_access(access)


def test_a_member_who_waits_may_sign_in(world: World) -> None:
    assert tokens.sign_in("dave", PASSWORD, "acorn").membership == world.dave


@pytest.mark.parametrize(
    ("username", "password", "site"),
    [
        ("alice", "wrong", "acorn"),
        ("alice", PASSWORD, "birch"),
        ("alice", PASSWORD, "nowhere"),
        ("nobody", PASSWORD, "acorn"),
        ("ali\0ce", PASSWORD, "acorn"),
        ("alice", PASSWORD, "ac\0orn"),
        ("alice", "\ud800", "acorn"),
        ("\udfff", "\0", "\ud800"),
        ("", "", ""),
    ],
)
def test_wrong_credentials_are_refused_alike(world: World, username: str, password: str, site: str) -> None:
    assert refusal(tokens.sign_in, username, password, site) == "bad_credentials"
    assert not Login.across_sites.exists()


def test_a_closed_account_and_a_closed_site_cannot_be_signed_in_to(world: World) -> None:
    world.alice.user.is_active = False
    world.alice.user.save()
    world.birch.is_active = False
    world.birch.save()
    assert refusal(tokens.sign_in, "alice", PASSWORD, "acorn") == "bad_credentials"
    assert refusal(tokens.sign_in, "carol", PASSWORD, "birch") == "bad_credentials"


def test_a_forged_token_is_refused(world: World) -> None:
    forged = jwt.encode(claims_of(world), "x" * 50, algorithm="HS256")
    assert refusal(tokens.read_access, forged) == "token_invalid"


def test_a_token_without_a_signature_is_refused(world: World) -> None:
    unsigned = jwt.encode(claims_of(world), None, algorithm="none")  # type: ignore[arg-type]
    assert refusal(tokens.read_access, unsigned) == "token_invalid"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_is_refused_even_with_our_key(world: World, algorithm: str) -> None:
    token = jwt.encode(claims_of(world), settings.SECRET_KEY.ljust(64, "x"), algorithm=algorithm)
    assert refusal(tokens.read_access, token) == "token_invalid"


@pytest.mark.parametrize(
    "changes",
    [
        {"typ": "refresh"},
        {"typ": None},
        {"exp": None},
        {"mid": None},
        {"mid": "1"},
        {"mid": True},
        {"mid": 0},
        {"mid": 2**63},
        {"sid": -1},
        {"sid": 1.5},
        {"lid": "x"},
        {"lid": 5},
        {"lid": None},
        {"jti": ["a"]},
    ],
)
def test_a_signed_token_with_wrong_claims_is_refused(world: World, changes: dict[str, Any]) -> None:
    token = jwt.encode(claims_of(world, **changes), settings.SECRET_KEY, algorithm="HS256")
    assert refusal(tokens.read_access, token) == "token_invalid"


def test_an_expired_token_says_so(world: World) -> None:
    token = jwt.encode(claims_of(world, exp=int(time.time()) - 1), settings.SECRET_KEY, algorithm="HS256")
    assert refusal(tokens.read_access, token) == "token_expired"


@pytest.mark.parametrize("text", ["", ".", "a.b.c", "口令", "\ud800", "x" * 5000, "..", "e30.e30.e30"])
def test_text_that_is_no_token_is_refused(text: str) -> None:
    assert refusal(tokens.read_access, text) == "token_invalid"


def test_a_refresh_token_is_no_access_token_and_the_other_way_round(world: World) -> None:
    pair = make_tokens(world.alice)
    assert refusal(tokens.read_access, pair.refresh) == "token_invalid"
    assert refusal(tokens.refresh, pair.access) == "token_invalid"


def test_refreshing_rotates_the_pair_and_keeps_the_sign_in(world: World) -> None:
    first = make_tokens(world.alice)
    second = tokens.refresh(first.refresh)
    third = tokens.refresh(second.refresh)
    assert len({first.refresh, second.refresh, third.refresh}) == 3
    assert resolve.member_for(tokens.read_access(third.access)) == world.alice
    assert Login.across_sites.count() == 1


def test_a_used_refresh_token_is_refused_and_ends_the_family(world: World) -> None:
    first = make_tokens(world.alice)
    second = tokens.refresh(first.refresh)
    assert refusal(tokens.refresh, first.refresh) == "token_invalid"
    assert refusal(tokens.refresh, second.refresh) == "token_invalid"
    assert refusal(resolve.member_for, tokens.read_access(second.access)) == "token_invalid"


def test_ending_one_family_leaves_other_sign_ins_alone(world: World) -> None:
    phone, web = make_tokens(world.alice), make_tokens(world.alice)
    tokens.sign_out(phone.refresh)
    assert refusal(resolve.member_for, tokens.read_access(phone.access)) == "token_invalid"
    assert resolve.member_for(tokens.read_access(web.access)) == world.alice


def test_signing_out_twice_is_no_error(world: World) -> None:
    pair = make_tokens(world.alice)
    tokens.sign_out(pair.refresh)
    tokens.sign_out(pair.refresh)
    assert refusal(tokens.refresh, pair.refresh) == "token_invalid"


def test_a_closed_account_cannot_refresh(world: World) -> None:
    pair = make_tokens(world.alice)
    world.alice.user.is_active = False
    world.alice.user.save()
    assert refusal(tokens.refresh, pair.refresh) == "token_invalid"


def test_the_repr_of_a_pair_tells_no_secret(world: World) -> None:
    pair = make_tokens(world.alice)
    assert repr(pair) == f"TokenPair(membership={world.alice.pk})"
