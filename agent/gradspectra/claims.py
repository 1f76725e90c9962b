"""What `gradspectra sync` has copied of a running job's spool: the job keeps these batches under their numbers."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gradspectra.lock import lock_file

_NUMBERS = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")


class Claim(NamedTuple):
    """copied: the last batch that a sync may have sent; stored: the last that the server has acknowledged to it."""

    copied: int = 0
    stored: int = 0


class Claims:
    """The file `claimed` of a session, for as long as it is held; reads and writes are good while it is locked.

    locked: False where another process has it, None where it cannot be locked or opened.
    """

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self.locked = None if file is None else _locked(file.fileno())

    def read(self) -> Claim:
        """What was written last; nothing where there is none, or where it is damaged."""
        raw = b""
        if self._file is not None:
            with suppress(OSError):
                self._file.seek(0)
                raw = self._file.read()
        numbers, checksum = raw[: _NUMBERS.size], raw[_NUMBERS.size :]
        good = len(numbers) == _NUMBERS.size and checksum == _CHECKSUM.pack(zlib.crc32(numbers))
        return Claim(*_NUMBERS.unpack(numbers)) if good else Claim()

    def write(self, claim: Claim) -> None:
        """Put this in the place of what is there. Raises OSError where the disk does not take it."""
        if self._file is None:
            raise OSError("there is no file to write to")
        numbers = _NUMBERS.pack(*claim)
        self._file.seek(0)
        self._file.write(numbers + _CHECKSUM.pack(zlib.crc32(numbers)))


@contextmanager
def held_claims(directory: Path) -> Iterator[Claims]:
    """Keep others from copying, or from numbering batches anew, meanwhile."""
    try:
        descriptor = os.open(directory / "claimed", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    except OSError:
        yield Claims(None)
        return
    with open(descriptor, "r+b", buffering=0) as file:  # a POSIX lock ends when any descriptor of the file is closed
        yield Claims(file)


def _locked(descriptor: int) -> bool | None:
    try:
        lock_file(descriptor)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK) else None
    return True
