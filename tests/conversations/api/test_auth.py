from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from tests.world import PASSWORD, World, bearer, make_tokens

CREDENTIALS = {"username": "alice", "password": PASSWORD, "site": "acorn"}


def post(client: Client, path: str, body: object) -> Any:
    return client.post(path, json.dumps(body), content_type="application/json")


def test_signing_in_gives_a_pair_and_the_membership(world: World, client: Client) -> None:
    response = post(client, "/api/auth/token", CREDENTIALS)
    answer = response.json()
    assert response.status_code == 200
    assert sorted(answer) == ["access", "expiresIn", "membership", "refresh"]
    assert answer["membership"] == {
        "id": world.alice.pk,
        "user": {"id": world.alice.user_id, "username": "alice"},
        "site": {"slug": "acorn", "name": "橡果", "locale": "zh-hans"},
        "role": "member",
        "nickname": "爱丽丝",
        "status": "approved",
    }
    assert response["Cache-Control"] == "no-store"
    me = client.get("/api/auth/me", headers={"Authorization": f"Bearer {answer['access']}"})
    assert me.json() == answer["membership"]


def test_who_waits_is_told_so_by_me(world: World, client: Client) -> None:
    assert client.get("/api/auth/me", headers=bearer(world.dave)).json()["status"] == "pending"


@pytest.mark.parametrize("change", [{"password": "wrong"}, {"site": "birch"}, {"username": "nobody"}])
def test_wrong_credentials_get_one_answer(world: World, client: Client, change: dict[str, str]) -> None:
    response = post(client, "/api/auth/token", {**CREDENTIALS, **change})
    assert (response.status_code, response.json()["code"]) == (401, "bad_credentials")
    assert response["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        "text",
        5,
        {**CREDENTIALS, "password": 5},
        {**CREDENTIALS, "username": None},
        {**CREDENTIALS, "site": ["acorn"]},
        {**CREDENTIALS, "username": "a\0"},
        {**CREDENTIALS, "password": "x" * 1001},
    ],
)
def test_a_sign_in_of_the_wrong_shape_is_invalid(world: World, client: Client, body: object) -> None:
    response = post(client, "/api/auth/token", body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid")
    assert response.json()["errors"]


def test_too_many_sign_ins_have_to_wait(world: World, client: Client, settings: Any) -> None:
    settings.THROTTLE_SIGN_INS_PER_MINUTE = 1
    answers = [post(client, "/api/auth/token", {**CREDENTIALS, "password": "no"}) for _ in range(4)]
    last = answers[-1]
    assert answers[0].status_code == 401
    assert (last.status_code, last.json()["code"]) == (429, "throttled")
    assert int(last["Retry-After"]) == last.json()["retryAfter"] >= 1
    # Another name from the same address is not held back.
    assert post(client, "/api/auth/token", {**CREDENTIALS, "username": "bob"}).status_code == 200


def test_refreshing_rotates_and_a_used_token_ends_the_family(world: World, client: Client) -> None:
    first = make_tokens(world.alice)
    second = post(client, "/api/auth/token/refresh", {"refresh": first.refresh}).json()
    again = post(client, "/api/auth/token/refresh", {"refresh": first.refresh})
    assert (again.status_code, again.json()["code"]) == (401, "token_invalid")
    assert post(client, "/api/auth/token/refresh", {"refresh": second["refresh"]}).status_code == 401
    me = client.get("/api/auth/me", headers={"Authorization": f"Bearer {second['access']}"})
    assert me.status_code == 401


def test_signing_out_ends_the_access_token_at_once(world: World, client: Client) -> None:
    pair = make_tokens(world.alice)
    response = post(client, "/api/auth/logout", {"refresh": pair.refresh})
    assert (response.status_code, response.content) == (204, b"")
    me = client.get("/api/auth/me", headers={"Authorization": f"Bearer {pair.access}"})
    assert (me.status_code, me.json()["code"]) == (401, "token_invalid")
