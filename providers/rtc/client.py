"""Signed calls of the RTC OpenAPI: StartVoiceChat, StopVoiceChat, UpdateVoiceChat (WIRE 1, 2.1 to 2.3).

The body is serialised once; those bytes are signed, and those bytes are sent. What the platform answers is handed
on as it came.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import httpx

from providers import errors
from providers.credentials import Secret
from providers.http import HttpPolicy, shared_client
from providers.signing import volcengine_headers

Action = Literal["StartVoiceChat", "StopVoiceChat", "UpdateVoiceChat"]
SERVICE = "rtc"
BODY_MAX_BYTES = 1024 * 1024
_JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class RtcAccount:
    """Whose keys sign, and where the call goes."""

    access_key_id: Secret
    secret_key: Secret
    base_url: str = "https://rtc.volcengineapi.com"
    region: str = "cn-north-1"
    version: str = "2024-12-01"
    session_token: Secret | None = None


@dataclass(frozen=True, slots=True)
class RtcAnswer:
    """What the platform said, as it came; the rest is read from its ResponseMetadata.

    error_message is the vendor's sentence: for the caller, not for logs.
    """

    status: int
    body: bytes
    request_id: str | None = None
    error_code: str | None = None
    error_message: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether the platform did what it was asked: HTTP 200 and no Error. Result's type is not relied on."""
        return self.status == 200 and self.error_code is None


async def call(
    account: RtcAccount,
    action: Action,
    body: Mapping[str, Any],
    *,
    policy: HttpPolicy,
    seconds: float,
    client: httpx.AsyncClient | None = None,
) -> RtcAnswer:
    """Return the platform's answer to one action, also when it is a refusal in its envelope.

    Units:  seconds bounds the whole call, from the name's resolution to the last byte.
    Raises: Misconfigured, for a URL or an address that may not be called, or keys that cannot be signed with;
            ConnectFailed before anything was sent; ConnectFailed no_answer, TimedOut, MalformedReply (HTML of a
            gateway, no JSON, no envelope) and ReplyTooLong when nobody can tell whether the platform acted.
    """
    url = endpoint_url(account.base_url)
    access_key, secret_key = account.access_key_id.reveal(), account.secret_key.reveal()
    if not access_key or not secret_key or not access_key.isascii():
        raise errors.Misconfigured(code="no_account_keys")
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    query = [("Action", action), ("Version", account.version)]
    headers = {"Content-Type": _JSON}
    headers |= volcengine_headers(
        method="POST",
        host=url.netloc.decode("ascii"),
        query=query,
        headers=headers,
        body=content,
        access_key=access_key,
        secret_key=secret_key,
        session_token=account.session_token.reveal() if account.session_token else None,
        region=account.region,
        service=SERVICE,
        now=dt.datetime.now(dt.UTC),
    )
    target = url.copy_with(query=urlencode(query).encode("ascii"))
    try:
        async with asyncio.timeout(seconds):
            return await _send(client or shared_client(policy), target, headers, content)
    except TimeoutError as error:
        raise errors.TimedOut("total") from error
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise errors.ConnectFailed() from error
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
        raise errors.Misconfigured(code="bad_endpoint") from error
    except httpx.HTTPError as error:
        raise errors.ConnectFailed(code="no_answer") from error


def endpoint_url(base_url: str) -> httpx.URL:
    """Return the address of an RTC OpenAPI: scheme, host and port.

    Raises: Misconfigured bad_endpoint, for anything else.
    """
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL as error:
        raise errors.Misconfigured(code="bad_endpoint") from error
    is_host_alone = not (url.userinfo or url.path != "/" or "?" in base_url or "#" in base_url)
    if (
        url.scheme not in ("http", "https")
        or not url.host
        or not is_host_alone
        or not 0 < (url.port or 443) < 65536
    ):
        raise errors.Misconfigured(code="bad_endpoint")
    return url


async def _send(client: httpx.AsyncClient, url: httpx.URL, headers: dict[str, str], content: bytes) -> RtcAnswer:
    async with client.stream("POST", url, headers=headers, content=content) as response:
        data = b""
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > BODY_MAX_BYTES:
                raise errors.ReplyTooLong(http_status=response.status_code)
    return read_answer(response.status_code, data)


def read_answer(status: int, body: bytes) -> RtcAnswer:
    """Return what a body says.

    Raises: MalformedReply html_answer, for a gateway's page; not_an_envelope, for anything else without
    ResponseMetadata. The vendor's front end cannot read those either.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        is_page = body.lstrip()[:1] == b"<"
        raise errors.MalformedReply(
            code="html_answer" if is_page else "not_an_envelope", http_status=status
        ) from error
    metadata = value.get("ResponseMetadata") if isinstance(value, dict) else None
    if not isinstance(metadata, dict):
        raise errors.MalformedReply(code="not_an_envelope", http_status=status)
    request_id = metadata.get("RequestId")
    code, message = _error_in(metadata.get("Error"))
    if code is None and status != 200:
        code = f"Http{status}"
    return RtcAnswer(status, body, request_id if isinstance(request_id, str) else None, code, message)


def _error_in(error: Any) -> tuple[str | None, str]:
    """Return code and message of the envelope's Error; its code may be a word or a number (CodeN)."""
    if not error:
        return None, ""
    if not isinstance(error, dict):
        return "Error", str(error)[:1000]
    code = error.get("Code") or error.get("CodeN") or "Error"
    return str(code)[:100], str(error.get("Message") or "")[:1000]
