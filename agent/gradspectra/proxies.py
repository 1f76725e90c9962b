"""The proxy on the way to the server, as the environment names it for all programs of a machine."""

from __future__ import annotations

import base64
import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy listens. headers: what it is to be told of who asks."""

    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def proxy_of(scheme: str, host: str) -> Proxy | None:
    """Return the proxy for an address: of HTTP_PROXY or HTTPS_PROXY, in small letters too.

    None where there is none, where NO_PROXY names the host, for this machine itself, and where the proxy is reached by
    anything else than http://. Raises ValueError where the variable holds no address.
    """
    if not any(name.lower() == f"{scheme}_proxy" for name in os.environ) or _is_here(host):
        return None
    from urllib.request import getproxies_environment, proxy_bypass  # takes longer to import than the rest

    address = getproxies_environment().get(scheme, "")
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if not address or parts.scheme != "http" or proxy_bypass(host):
        return None
    try:
        near = str(parts.hostname), parts.port or 80
    except ValueError as error:
        raise ValueError(f"{scheme.upper()}_PROXY must be an address like http://proxy:3128: {error}") from None
    who = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    known = {"Proxy-Authorization": f"Basic {base64.b64encode(who).decode()}"} if parts.username else {}
    return Proxy(*near, known)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
