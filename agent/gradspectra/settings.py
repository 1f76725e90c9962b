"""The agent's settings: explicit arguments first, then the environment, then the defaults."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_SERVER = "http://127.0.0.1:7117"
DEFAULT_SPOOL = "~/.cache/gradspectra/spool"
COMPILED = Path("~/.cache/gradspectra/compiled")
"""Where the fused pass is kept once it was compiled."""


def server_address(server: str | None = None) -> str:
    """Return the server's address without a trailing slash: `server`, else GRADSPECTRA_SERVER, else the default.

    Raises ValueError for anything that is not an http:// or https:// address.
    """
    source = "server" if server else "GRADSPECTRA_SERVER"
    address = server or os.environ.get("GRADSPECTRA_SERVER") or DEFAULT_SERVER
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or any(character.isspace() for character in address):
        raise ValueError(f"{source} must be an address like http://127.0.0.1:7117, got {address!r}")
    return address.rstrip("/")


def access_token(token: str | None = None) -> str | None:
    """Return `token`, else GRADSPECTRA_TOKEN, else None. Raises ValueError for one that no HTTP header can carry."""
    source = "token" if token else "GRADSPECTRA_TOKEN"
    text = (token or os.environ.get("GRADSPECTRA_TOKEN") or "").strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError(f"{source} must be printable ASCII without spaces, as `gradspectra token create` prints it")
    return text or None


def spool_folder(spool: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds one spool directory per session: `spool`, else GRADSPECTRA_SPOOL, else default."""
    return Path(spool or os.environ.get("GRADSPECTRA_SPOOL") or DEFAULT_SPOOL).expanduser()


def fused_wanted() -> bool:
    """Whether the fused pass may be compiled and used: not where GRADSPECTRA_FUSED is "off".

    Raises ValueError for anything else than "auto" (the default), "off" and "triton".
    """
    return _fused() != "off"


def kernels_wanted() -> bool:
    """Whether Triton's kernels may be compiled and used on CUDA: where GRADSPECTRA_FUSED is "triton".

    Raises ValueError as `fused_wanted`.
    """
    return _fused() == "triton"


def _fused() -> str:
    text = os.environ.get("GRADSPECTRA_FUSED") or "auto"
    if text not in ("auto", "off", "triton"):
        raise ValueError(f"GRADSPECTRA_FUSED must be auto, off or triton, got {text!r}")
    return text
