"""Secrets at rest and in memory: encrypted with a list of keys, wrapped so that they cannot be printed.

The first key of the list encrypts, all of them decrypt: put a new key in front and run `rotate_keys` to change it.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from providers.errors import Misconfigured


class Secret:
    """A string that shows only its mask; reveal() is the one way to read it, and easy to grep for."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode("utf-8"), other._value.encode("utf-8"))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __str__(self) -> str:
        return mask(self._value)

    def __repr__(self) -> str:
        return f"Secret({mask(self._value)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not for pickling")


def mask(secret: str) -> str:
    """Return what may be shown of a secret: `sk-…7890`; a short one shows nothing."""
    if not secret:
        return ""
    if len(secret) < 12:
        return "…"
    prefix, dash, _ = secret.partition("-")
    return f"{prefix}-…{secret[-4:]}" if dash and len(prefix) <= 4 else f"…{secret[-4:]}"


def new_key() -> str:
    """Return a fresh key for the list."""
    return Fernet.generate_key().decode("ascii")


def check_keys(keys: Sequence[str]) -> None:
    """Raise Misconfigured unless this is a usable list of keys; the error never repeats one."""
    if not keys:
        raise Misconfigured(code="no_secret_keys")
    for key in keys:
        try:
            Fernet(key)
        except ValueError:
            raise Misconfigured(code="bad_secret_key") from None


def load_or_create_key_file(path: Path) -> list[str]:
    """Return the keys of this file, one per line, newest first; make it with one new key when there is none.

    Several processes may call this at once: the file appears whole, readable by its owner only, and all get
    the same keys.
    """
    try:
        return _read_keys(path)
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(new_key() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: then its keys count
            os.link(name, path)
    finally:
        os.unlink(name)
    return _read_keys(path)


def _read_keys(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def encrypt(secret: str, *, keys: Sequence[str] | None = None) -> str:
    """Return the ciphertext of secret, "" for ""."""
    return _fernet(keys).encrypt(secret.encode("utf-8")).decode("ascii") if secret else ""


def decrypt(ciphertext: str, *, keys: Sequence[str] | None = None) -> Secret:
    """Return the secret. Raises Misconfigured when no key of the list fits: never the ciphertext."""
    if not ciphertext:
        return Secret("")
    try:
        return Secret(_fernet(keys).decrypt(ciphertext.encode("utf-8")).decode("utf-8"))
    except InvalidToken:
        raise Misconfigured(code="secret_unreadable") from None


def rotate(ciphertext: str, *, keys: Sequence[str] | None = None) -> str:
    """Return the same secret encrypted with the first key. Raises Misconfigured when no key fits."""
    if not ciphertext:
        return ""
    try:
        return _fernet(keys).rotate(ciphertext.encode("utf-8")).decode("ascii")
    except InvalidToken:
        raise Misconfigured(code="secret_unreadable") from None


def _fernet(keys: Sequence[str] | None) -> MultiFernet:
    if keys is None:
        from django.conf import settings  # settings.py itself uses this module

        keys = settings.SECRET_KEYS
    return _fernet_of(tuple(keys))


@lru_cache(maxsize=8)
def _fernet_of(keys: tuple[str, ...]) -> MultiFernet:
    check_keys(keys)
    return MultiFernet([Fernet(key) for key in keys])
