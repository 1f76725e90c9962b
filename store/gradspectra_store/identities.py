"""Random identities: short, lowercase, safe in a URL and on a command line."""

from __future__ import annotations

import secrets

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_identity(length: int = 12) -> str:
    """Draw an identity of 36^length possible ones; the first character is a letter, so that no option looks like it."""
    first = secrets.choice(_ALPHABET[10:])
    return first + "".join(secrets.choice(_ALPHABET) for _ in range(length - 1))
