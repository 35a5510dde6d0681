"""Secrets: encrypted with a list of keys, never printed, and a key file that appears once."""

import copy
import multiprocessing
import pickle
from pathlib import Path

import pytest

from providers.credentials import (
    Secret,
    check_keys,
    decrypt,
    encrypt,
    load_or_create_key_file,
    mask,
    new_key,
    rotate,
)
from providers.errors import Misconfigured

KEY = "sk-test-1234567890"


def test_a_secret_comes_back_and_its_ciphertext_does_not_show_it() -> None:
    keys = [new_key()]
    ciphertext = encrypt(KEY, keys=keys)
    assert KEY not in ciphertext
    assert decrypt(ciphertext, keys=keys).reveal() == KEY
    assert encrypt(KEY, keys=keys) != ciphertext


def test_a_wrong_key_raises_and_never_returns_the_ciphertext() -> None:
    ciphertext = encrypt(KEY, keys=[new_key()])
    with pytest.raises(Misconfigured) as caught:
        decrypt(ciphertext, keys=[new_key()])
    assert caught.value.code == "secret_unreadable"
    assert ciphertext not in str(caught.value)


@pytest.mark.parametrize("ciphertext", ["plain text", "gAAAAA", "密文"])
def test_what_was_never_encrypted_raises_too(ciphertext: str) -> None:
    with pytest.raises(Misconfigured):
        decrypt(ciphertext, keys=[new_key()])


def test_rotation_moves_a_secret_under_the_first_key() -> None:
    old, new = new_key(), new_key()
    rotated = rotate(encrypt(KEY, keys=[old]), keys=[new, old])
    assert decrypt(rotated, keys=[new]).reveal() == KEY


def test_nothing_is_nothing() -> None:
    assert (encrypt("", keys=[]), rotate("", keys=[]), bool(decrypt("", keys=[]))) == ("", "", False)


@pytest.mark.parametrize("keys", [[], ["short"], [new_key(), "密钥"]])
def test_a_bad_list_of_keys_is_refused_without_repeating_it(keys: list[str]) -> None:
    with pytest.raises(Misconfigured) as caught:
        check_keys(keys)
    assert not any(key in str(caught.value) for key in keys)


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("sk-abcdefghijkl7890", "sk-…7890"),
        ("sk-short", "…"),
        ("0123456789abcdef", "…cdef"),
        ("verylongprefix-123456", "…3456"),
        ("", ""),
    ],
)
def test_a_mask_shows_little(secret: str, shown: str) -> None:
    assert mask(secret) == shown


def test_a_secret_cannot_be_printed_or_pickled_by_accident() -> None:
    secret = Secret(KEY)
    shown = f"{secret} {secret!r} {secret!s:>40} {[secret]} {'%s' % secret}"  # noqa: UP031
    assert "1234" not in shown and "…7890" in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.copy(secret)


def test_secrets_compare_by_value_also_beyond_ascii() -> None:
    assert Secret("密钥") == Secret("密钥")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


def test_a_key_file_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secret.keys"
    first = load_or_create_key_file(path)
    assert load_or_create_key_file(path) == first
    check_keys(first)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["secret.keys"]


def test_a_key_file_may_hold_several_keys_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "secret.keys"
    keys = [new_key(), new_key()]
    path.write_text(f"# newest first\n{keys[0]}\n\n  {keys[1]}\n")
    assert load_or_create_key_file(path) == keys


def test_processes_that_start_at_once_agree_on_the_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(6) as pool:
        found = pool.map(load_or_create_key_file, [tmp_path / "secret.keys"] * 24)
    assert len({tuple(keys) for keys in found}) == 1
