"""The append file under a spool: written in whole frames, replaced atomically, moved to memory when the disk fails."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from gradspectra import frames
from gradspectra.frames import Frame

log = logging.getLogger("gradspectra")


class Journal:
    """Frames in a file that only grows, but for `replace`. A process killed at any moment leaves at most a torn tail.

    path: of the file, None for one in memory. Opening cuts off a torn tail. end: bytes of whole frames. failure:
    why the disk could not be written, None as long as it can. Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO = io.BytesIO() if path is None else open_file(path)
        self.failure: str | None = None
        self.end = 0
        for frame in frames.scan(self._file):
            if frames.read_payload(self._file, frame) is None:
                break
            self.end = frame.end
        self._file.truncate(self.end)

    @property
    def in_memory(self) -> bool:
        """Whether the frames are kept in memory only."""
        return self._path is None

    def append(self, data: bytes) -> None:
        """Add a frame. Never raises for a disk that fails: everything then moves to memory."""
        try:
            self._file.seek(self.end)
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._to_memory([self.read(0, self.end), data], error)
        else:
            self.end += len(data)

    def frames(self, offset: int = 0) -> Iterable[Frame]:
        """Go through the frames from offset on."""
        return frames.scan(self._file, offset, self.end)

    def payload(self, frame: Frame) -> bytes | None:
        """Return the payload of a frame; None if the file was altered behind our back."""
        return frames.read_payload(self._file, frame)

    def give_up(self) -> None:
        """Forget all frames: the file was altered behind our back."""
        self._to_memory([], OSError(f"the spool file {self._path} was altered while in use"))

    def read(self, offset: int, end: int) -> bytes:
        """Return the bytes between two offsets."""
        self._file.seek(offset)
        return self._file.read(end - offset)

    def replace(self, parts: Iterable[bytes]) -> bool:
        """Put other frames in place of all; a kill in between leaves the old ones.

        False where the disk failed: the old frames are then kept, in memory.
        """
        if self._path is None:
            self._to_memory(parts, None)
            return True
        new = self._path.with_suffix(".new")
        try:
            with open(new, "wb") as file:
                for part in parts:
                    file.write(part)
                end = file.tell()
            self._file.close()
            os.replace(new, self._path)
            self._file, self.end = open_file(self._path), end
        except OSError as error:
            if self._file.closed:
                self._file = open_file(self._path)
            self._to_memory([self.read(0, self.end)], error)
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _to_memory(self, parts: Iterable[bytes], error: OSError | None) -> None:
        target = io.BytesIO()
        for part in parts:
            target.write(part)
        self._file.close()
        self._file, self._path, self.end = target, None, target.tell()
        if error is not None:
            self.failure = str(error)
            log.warning("gradspectra: the spool cannot be used (%s); what waits is kept in memory", error)


def open_file(path: Path) -> BinaryIO:
    """Open for reading and writing without a buffer of our own; make the file if it is not there."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600), "r+b", buffering=0)
