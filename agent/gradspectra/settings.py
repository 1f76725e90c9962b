"""The agent's settings: explicit arguments first, then the environment, then the defaults."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from gradspectra.arguments import is_text, shown

DEFAULT_SERVER = "http://127.0.0.1:7117"
DEFAULT_SPOOL = "~/.cache/gradspectra/spool"
COMPILED = Path("~/.cache/gradspectra/compiled")
"""Where the fused pass is kept once it was compiled."""


def server_address(server: str | None = None) -> str:
    """Return the server's address without a trailing slash: `server`, else GRADSPECTRA_SERVER, else the default.

    Raises ValueError for anything that is not an http:// or https:// address.
    """
    given = None if server is None or is_text(server, "") else server
    source = "GRADSPECTRA_SERVER" if given is None else "server"
    address = os.environ.get("GRADSPECTRA_SERVER") or DEFAULT_SERVER if given is None else given
    try:
        parts = urlsplit(address if isinstance(address, str) else "")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        good = good and not parts.query and not parts.fragment
        str(parts.hostname).encode("idna")  # as the library will
    except ValueError:
        good = False
    if not isinstance(address, str) or not good or any(character.isspace() for character in address):
        raise ValueError(f"{source} must be an address like http://127.0.0.1:7117, got {shown(address)}")
    return address.rstrip("/")


def access_token(token: str | None = None) -> str | None:
    """Return `token`, else GRADSPECTRA_TOKEN, else None. Raises ValueError for one that no HTTP header can carry."""
    given = None if token is None or is_text(token, "") else token
    source = "GRADSPECTRA_TOKEN" if given is None else "token"
    text = os.environ.get("GRADSPECTRA_TOKEN") or "" if given is None else given
    if not isinstance(text, str):
        raise TypeError(f"{source} must be text, as `gradspectra token create` prints it, got a {type(text).__name__}")
    text = text.strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError(f"{source} must be printable ASCII without spaces, as `gradspectra token create` prints it")
    return text or None


def spool_folder(spool: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds one spool directory per session: `spool`, else GRADSPECTRA_SPOOL, else default.

    Raises TypeError or ValueError for what names no folder.
    """
    given = None if spool is None or is_text(spool, "") else spool
    source = "GRADSPECTRA_SPOOL" if given is None else "spool"
    wanted = os.environ.get("GRADSPECTRA_SPOOL") if given is None else given
    if wanted is not None and not isinstance(wanted, str | os.PathLike):
        raise TypeError(f"{source} must be a folder, got {shown(wanted)}")
    try:
        folder = Path(wanted or DEFAULT_SPOOL).expanduser()
        if wanted and (why := _no_folder(folder)):
            raise ValueError(f"{source} must be a folder, got {shown(os.fspath(wanted))}: {why}")
        return folder
    except RuntimeError as error:
        if wanted:
            raise ValueError(f"{source} must be a folder, got {shown(os.fspath(wanted))}: {error}") from error
        return temporary_spool() or Path(os.devnull)  # this user has no home


def _no_folder(folder: Path) -> str | None:
    """Say why no folder of this name can ever be made; None where one may."""
    if "\x00" in str(folder):
        return "no name has a NUL in it"
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    return f"{there} is a file" if there.is_file() else None


def temporary_spool() -> Path | None:
    """Return what takes the place of a spool folder that cannot be written; None without a temporary folder."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    try:
        return Path(tempfile.gettempdir()) / f"gradspectra-spool-{user}"
    except OSError:
        return None


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
