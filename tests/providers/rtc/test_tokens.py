"""The pass into a room, against both vendors' implementations, and against tampering."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from providers.rtc.tokens import read_token, verify_token, write_token

CASES = json.loads((Path(__file__).parents[2] / "wire" / "rtc" / "token_vectors.json").read_text())["cases"]
APP, KEY = "661e0000000000000000543c", "0123456789abcdef0123456789abcdef"


def token(**changes: Any) -> str:
    """A token for room-1 and user-1, good for a day."""
    given = {"app_id": APP, "app_key": KEY, "room_id": "room-1", "user_id": "user-1"}
    return write_token(**{**given, "issued_at": 1775132115, "expire_at": 1775218515, **changes})


def test_there_are_eleven_cases_or_more() -> None:
    assert len(CASES) >= 11


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_token_equals_the_vendors(case: dict[str, Any]) -> None:
    written = write_token(
        app_id=case["app_id"],
        app_key=case["app_key"],
        room_id=case["room_id"],
        user_id=case["user_id"],
        issued_at=case["issued_at"],
        expire_at=case["expire_at"],
        privileges=case["add_privilege_calls"],
        nonce=case["nonce"],
    )
    assert written == case["expected"]["token"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_token_is_read_back_whole(case: dict[str, Any]) -> None:
    said = read_token(case["expected"]["token"])
    assert (said.app_id, said.room_id, said.user_id) == (case["app_id"], case["room_id"], case["user_id"])
    assert (said.nonce, said.issued_at, said.expire_at) == (case["nonce"], case["issued_at"], case["expire_at"])
    assert {str(key): value for key, value in said.privileges.items()} == case["expected"]["privileges"]
    assert said.is_signed_with(case["app_key"])
    assert not said.is_signed_with(case["app_key"][::-1])
    assert verify_token(case["expected"]["token"], app_key=case["app_key"], now=case["issued_at"])


def test_every_token_has_a_nonce_of_its_own() -> None:
    assert len({read_token(token()).nonce for _ in range(50)}) > 45


def test_a_changed_token_is_not_genuine() -> None:
    good = token()
    content = bytearray(base64.b64decode(good[27:]))
    for at in range(len(content)):
        content[at] ^= 1
        changed = good[:27] + base64.b64encode(content).decode()
        assert not verify_token(changed, app_key=KEY, now=1775132115), at
        content[at] ^= 1


@pytest.mark.parametrize("cut", range(0, 140, 7))
def test_a_cut_token_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="token"):
        read_token(token()[:cut])


@pytest.mark.parametrize(
    "text", ["", "001", "002" + "x" * 60, "001" + APP + "###", token() + "AAAA", token() + "é"]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="token"):
        read_token(text)
    assert not verify_token(text, app_key=KEY, now=1775132115)


def test_a_token_ends_and_one_without_an_end_does_not() -> None:
    assert verify_token(token(), app_key=KEY, now=1775218514)
    assert not verify_token(token(), app_key=KEY, now=1775218515)
    assert verify_token(token(expire_at=0), app_key=KEY, now=2**31)


@pytest.mark.parametrize(
    "changes",
    [{"app_id": "short"}, {"app_id": "é" * 24}, {"room_id": "r" * 65536}, {"issued_at": -1}, {"expire_at": 2**32}],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"token|AppId"):
        token(**changes)


def test_neither_key_nor_signature_shows_in_a_repr() -> None:
    said = read_token(token())
    assert "signature" not in repr(said) and "message" not in repr(said)
