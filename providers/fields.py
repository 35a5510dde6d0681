"""Columns that hold secrets: found by `rotate_keys` wherever they stand, written by `keep_secret` alone."""

from __future__ import annotations

from typing import Any

from django.db import models

from providers.credentials import Secret, decrypt, encrypt, mask

__all__ = ["EncryptedField", "Secret", "keep_secret", "move_secret", "secret_of"]


class EncryptedField(models.TextField):
    """The ciphertext of a secret, "" for none; what may be shown of it is in the column `<name>_mask`.

    The column itself is named `<name>_encrypted`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("blank", True)
        kwargs.setdefault("default", "")
        kwargs.setdefault("editable", False)
        super().__init__(*args, **kwargs)


def keep_secret(row: models.Model, name: str, secret: str) -> None:
    """Take a new secret: its ciphertext and its mask, nothing else; "" forgets it. Does not save."""
    setattr(row, f"{name}_encrypted", encrypt(secret))
    setattr(row, f"{name}_mask", mask(secret))


def move_secret(row: models.Model, source: str, target: str) -> None:
    """Let one secret of a row take the place of another, as it is. Does not save."""
    for part in ("encrypted", "mask"):
        setattr(row, f"{target}_{part}", getattr(row, f"{source}_{part}"))


def secret_of(row: models.Model, name: str) -> Secret:
    """Return a stored secret, empty when there is none.

    Raises: Misconfigured secret_unreadable, when no key of the list fits.
    """
    return decrypt(getattr(row, f"{name}_encrypted"))
