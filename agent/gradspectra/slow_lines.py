"""How much of what was sent has not arrived yet: over a slow line, it goes on long after all was handed over."""

from __future__ import annotations

import socket
import sys

try:
    import fcntl
    import termios

    _OUTQ = termios.TIOCOUTQ
except (ImportError, AttributeError):  # Windows
    _OUTQ = 0

PIECE = 1 << 15
"""Bytes that a line has a timeout's time to take: 26 kbit/s with the usual ten seconds."""


def unsent(sock: socket.socket) -> int:
    """Bytes that the system keeps for the other end, which has not said that it has them; 0 where it does not tell."""
    if not _OUTQ:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), _OUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
