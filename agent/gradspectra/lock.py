"""The lock on a spool directory: a job and `gradspectra sync` never write to the same one at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HELD: set[str] = set()
"""Lock files held by this very process, whom the operating system's lock would let in again."""


class DirectoryInUse(RuntimeError):
    """Another sender holds the directory."""


class DirectoryLock:
    """Exclusive lock on a directory until release() or the end of the process; raises DirectoryInUse at once.

    name: of the lock file; holder: who else would hold it, in words.
    """

    def __init__(self, directory: Path, name: str = "lock", holder: str = "a running job") -> None:
        self._key = os.path.realpath(directory / name)
        if self._key in _HELD:
            raise DirectoryInUse(f"{directory} is in use by {holder}")
        self._file = open(directory / name, "ab")  # noqa: SIM115 (held open as long as the lock)
        try:
            lock_file(self._file.fileno())
        except OSError:
            self._file.close()
            raise DirectoryInUse(f"{directory} is in use by {holder}") from None
        _HELD.add(self._key)

    def release(self) -> None:
        """Give the directory free."""
        self._file.close()
        _HELD.discard(self._key)


if sys.platform == "win32":
    import msvcrt

    def lock_file(descriptor: int) -> None:
        """Lock a file until it is closed; raises OSError at once where another process has it, or it cannot be."""
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def lock_file(descriptor: int) -> None:
        """Lock a file until it is closed; raises OSError at once where another process has it, or it cannot be."""
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
