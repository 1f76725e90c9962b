"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

EXPORT_FORMATS = ("csv", "json", "parquet", "arrow")


def write_whole(path: Path, parts: Iterable[bytes]) -> int:
    """Write parts to a file beside `path` and move it there once all have come; returns the number of bytes.

    Whatever goes wrong, a file that was at `path` before stays as it was. What is no file, as /dev/null or a pipe, is
    written to where it is. Raises OSError where the folder cannot be written, and what `parts` raises.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as other:
            return sum(other.write(part) for part in parts)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            size = sum(file.write(part) for part in parts)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    return size
