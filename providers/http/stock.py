"""httpx's own transport behind the same address guard, for those who trust it more."""

from __future__ import annotations

import asyncio
import ssl

import httpx

from providers.http.addresses import aresolve
from providers.http.policy import IDLE_MAX, TRUSTED, HttpPolicy, Origin, default_ssl_context, shares


class StockTransport(httpx.AsyncBaseTransport):
    """httpx's transport behind the same address guard.

    One inner transport per origin and address: httpx pools by address once the URL names it, and a TLS
    connection made for one name must not carry another's key.
    """

    def __init__(self, policy: HttpPolicy, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._ssl_context = ssl_context
        self._inner: dict[Origin, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to a checked address and return the response when its head is there."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        is_trusted = bool(request.extensions.get(TRUSTED))
        timeouts = dict(request.extensions.get("timeout") or {})
        connect_seconds = timeouts.get("connect", self._policy.connect_seconds)
        try:
            async with asyncio.timeout(connect_seconds):
                addresses = await aresolve(url.host, port, None if is_trusted else self._policy.allowed_addresses)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no address in time", request=request) from error
        key = (url.scheme, url.host, port, is_trusted)
        inner = self._inner.get(key)
        if inner is None:
            context = self._ssl_context = self._ssl_context or default_ssl_context()
            limits = httpx.Limits(
                max_connections=None,
                max_keepalive_connections=IDLE_MAX,
                keepalive_expiry=self._policy.keepalive_seconds,
            )
            inner = httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)
            self._inner[key] = inner
        body = await request.aread()
        for address, seconds in shares(addresses, connect_seconds):
            sent = httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers.raw,  # Host keeps the name
                content=body,
                extensions={
                    **request.extensions,
                    "sni_hostname": url.host,
                    "timeout": {**timeouts, "connect": seconds},
                },
            )
            try:
                return await inner.handle_async_request(sent)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise httpx.ConnectError("the name has no address", request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        for inner in self._inner.values():
            await inner.aclose()
        self._inner.clear()
