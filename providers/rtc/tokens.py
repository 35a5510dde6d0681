"""The pass into a room: AccessToken version 001 of Volcengine and BytePlus RTC, as pure functions (WIRE 2.5)."""

from __future__ import annotations

import base64
import hmac
import secrets
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

VERSION = "001"
APP_ID_CHARS = 24
PUBLISH = 0
SUBSCRIBE = 4
_PUBLISH_MEANS = (0, 1, 2, 3)  # publish, and the audio, video and data of it


@dataclass(frozen=True, slots=True)
class RtcToken:
    """What a token says. Times are unix seconds; an expire_at of 0 is for ever, of a privilege: as the token."""

    app_id: str
    room_id: str
    user_id: str
    nonce: int
    issued_at: int
    expire_at: int
    privileges: Mapping[int, int]
    _message: bytes = field(repr=False, default=b"")
    _signature: bytes = field(repr=False, default=b"")

    def is_signed_with(self, app_key: str) -> bool:
        """Return whether the token was signed with this key, in constant time."""
        return hmac.compare_digest(hmac.digest(app_key.encode(), self._message, "sha256"), self._signature)


def write_token(
    *,
    app_id: str,
    app_key: str,
    room_id: str,
    user_id: str,
    issued_at: int,
    expire_at: int,
    privileges: Iterable[tuple[int, int]] = ((SUBSCRIBE, 0), (PUBLISH, 0)),
    nonce: int | None = None,
) -> str:
    """Return the token that lets this user, and nobody else, into this room.

    privileges are pairs of privilege and the unix second at which it ends; publish stands for four.
    A fresh nonce is drawn for every token unless one is given.
    Raises: ValueError, for an app id that is not 24 ASCII characters and for what does not fit its field.
    """
    if len(app_id) != APP_ID_CHARS or not app_id.isascii():
        raise ValueError("an RTC AppId has 24 ASCII characters")
    granted: dict[int, int] = {}
    for privilege, ends_at in privileges:
        for each in _PUBLISH_MEANS if privilege == PUBLISH else (privilege,):
            granted[each] = ends_at
    try:
        message = b"".join(
            (
                struct.pack("<III", secrets.randbits(32) if nonce is None else nonce, issued_at, expire_at),
                _text(room_id),
                _text(user_id),
                struct.pack("<H", len(granted)),
                *(struct.pack("<HI", privilege, granted[privilege]) for privilege in sorted(granted)),
            )
        )
        signature = hmac.digest(app_key.encode(), message, "sha256")
        content = struct.pack("<H", len(message)) + message + struct.pack("<H", len(signature)) + signature
    except struct.error:
        raise ValueError("a room, a user or a number does not fit into a token") from None
    return VERSION + app_id + base64.b64encode(content).decode("ascii")


def read_token(token: str) -> RtcToken:
    """Return what a token says; whether it is genuine says `is_signed_with`.

    Raises: ValueError, for anything that is not a whole token of version 001.
    """
    head = len(VERSION) + APP_ID_CHARS
    if not token.startswith(VERSION) or len(token) <= head:
        raise ValueError("not a token of version 001")
    try:
        content = _Reader(base64.b64decode(token[head:], validate=True))
        message, signature = content.text(), content.text()
        content.end()
        inner = _Reader(message)
        nonce, issued_at, expire_at = inner.numbers("<III")
        room_id, user_id = inner.text().decode("utf-8"), inner.text().decode("utf-8")
        (count,) = inner.numbers("<H")
        pairs = [inner.numbers("<HI") for _ in range(count)]
        inner.end()
    except (ValueError, struct.error) as error:
        raise ValueError("not a whole token") from error
    return RtcToken(
        token[len(VERSION) : head],
        room_id,
        user_id,
        nonce,
        issued_at,
        expire_at,
        {privilege: ends_at for privilege, ends_at in pairs},
        _message=message,
        _signature=signature,
    )


def verify_token(token: str, *, app_key: str, now: int) -> bool:
    """Return whether the token is whole, signed with this key, and has not ended at this unix second."""
    try:
        said = read_token(token)
    except ValueError:
        return False
    return said.is_signed_with(app_key) and (said.expire_at == 0 or now < said.expire_at)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<H", len(data)) + data


class _Reader:
    """Takes fields off the front of some bytes; struct.error when there are too few, or too many at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def numbers(self, shape: str) -> tuple[int, ...]:
        found = struct.unpack_from(shape, self._data, self._at)
        self._at += struct.calcsize(shape)
        return found

    def text(self) -> bytes:
        (length,) = self.numbers("<H")
        found = self._data[self._at : self._at + length]
        if len(found) < length:
            raise struct.error("too short")
        self._at += length
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise struct.error("too long")
