"""Which addresses may be reached: the open internet, and what the operator allowed.

A name is resolved once, its addresses are checked, and the connection goes to one of those: an answer that
changes between check and connection (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

from providers.errors import ConnectFailed, Misconfigured

# Public by its number, or by some Pythons, and not the open internet all the same.
_NOT_OPEN = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata
        "192.0.0.0/24",  # Oracle's metadata is in it, and what the IETF keeps for protocols
        "192.88.99.0/24",  # relays of 6to4
        "fec0::/10",  # site-local, as private networks were called once
        "64:ff9b:1::/48",  # NAT64 of a local network
        "::ffff:0:0:0/96",  # IPv4 translated
    )
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: str) -> bool:
    """Return whether this is an address on the open internet, also behind IPv6's ways of wrapping IPv4."""
    try:
        ip: IPAddress = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        packed = ip.packed
        if inner is None and packed[:12] in (bytes.fromhex("0064ff9b") + bytes(8), bytes(12)):
            inner = ipaddress.IPv4Address(packed[12:])  # NAT64, and the old IPv4-compatible form
        if inner is not None:
            return is_public(str(inner))
    is_open = ip.is_global and not ip.is_multicast and not ip.is_reserved
    return is_open and not any(ip in network for network in _NOT_OPEN)


def check_addresses(host: str, port: int, found: list[str], allowed: frozenset[str]) -> list[str]:
    """Return the addresses among those found that may be connected to. Raises Misconfigured when none may."""
    if f"{_bracketed(host.lower())}:{port}" in allowed:
        return found
    good = [ip for ip in found if is_public(ip) or f"{_bracketed(ip)}:{port}" in allowed]
    if not good:
        raise Misconfigured(code="address_refused")
    return good


def resolve(host: str, port: int, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return the addresses of host that may be reached, blocking. Raises Misconfigured or ConnectFailed."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(code="name_not_found") from error
    return check_addresses(host, port, _unique(infos), allowed)


async def aresolve(host: str, port: int, allowed: frozenset[str] | None) -> list[str]:
    """Return the addresses of host that may be reached; allowed None trusts them all."""
    if _is_address(host):
        found = [host]
    else:
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(code="name_not_found") from error
        found = _unique(infos)
    return found if allowed is None else check_addresses(host, port, found, allowed)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _unique(infos: list[Any]) -> list[str]:
    """Return the addresses of getaddrinfo's answer, each once, in its order, with an IPv6 scope kept."""
    found: dict[str, None] = {}
    for _family, _type, _proto, _name, address in infos:
        scope = address[3] if len(address) > 3 else 0
        found[f"{address[0]}%{scope}" if scope and "%" not in address[0] else address[0]] = None
    return list(found)
