"""Where a webhook may go: only to public addresses, connected to exactly as checked, unless the operator allows it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from httpx2 import URL, InvalidURL

_UNICAST = ipaddress.ip_network("2000::/3")
"""Where IPv6's public addresses lie."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses behind which a gateway connects to the IPv4 address in their last four bytes."""


class ForbiddenDestination(Exception):
    """A URL that messages are not sent to; the text says why and what to do."""


def destination(url: str, allow_hosts: Collection[str] = ()) -> tuple[URL, list[str]]:
    """Return the URL and the addresses of its host, each of which may be connected to.

    Every address that the name resolves to must be public: one that is not could be this machine, its network or
    a cloud's metadata service. allow_hosts: names or addresses for which the operator lifts this. The caller must
    connect to an address returned, not resolve again. Raises ForbiddenDestination.
    """
    try:
        parsed = URL(url)
    except InvalidURL as error:
        raise ForbiddenDestination(f"the URL cannot be read: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ForbiddenDestination(f"the URL must begin with http:// or https:// and name a host, got {parsed.scheme}:")
    addresses = _resolve(parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80))
    if parsed.host.lower() not in {host.strip().lower() for host in allow_hosts}:
        for address in addresses:
            if not _is_public(address):
                raise ForbiddenDestination(
                    f"{parsed.host} is {address}, which is not a public address; "
                    f"set GRADSPECTRA_ALERT_ALLOW_HOSTS={parsed.host} to send there"
                )
    return parsed, addresses


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ForbiddenDestination(f"the host {host} cannot be resolved: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        behind = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip.sixtofour
        if behind is None and ip not in _UNICAST:
            return False
        ip = behind or ip
    return ip.is_global and not ip.is_multicast
