"""The lock on a spool directory: a live sender and `gradspectra sync` never work on the same one at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HELD: set[str] = set()
"""Directories locked by this very process, whom the operating system's lock would let in again."""


class DirectoryInUse(RuntimeError):
    """Another sender holds the directory."""


class DirectoryLock:
    """Exclusive lock on a directory until release() or the end of the process; raises DirectoryInUse at once."""

    def __init__(self, directory: Path) -> None:
        self._key = os.path.realpath(directory)
        if self._key in _HELD:
            raise DirectoryInUse(f"{directory} is in use by a running job")
        self._file = open(directory / "lock", "ab")  # noqa: SIM115 (held open as long as the lock)
        try:
            _lock(self._file.fileno())
        except OSError:
            self._file.close()
            raise DirectoryInUse(f"{directory} is in use by a running job") from None
        _HELD.add(self._key)

    def release(self) -> None:
        """Give the directory free."""
        self._file.close()
        _HELD.discard(self._key)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
