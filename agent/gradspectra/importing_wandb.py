"""Runs that W&B recorded offline: its log file, read record by record, numbers of the history alone."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from wandb.proto.wandb_internal_pb2 import Record

from gradspectra.importing import BadLog, Row, Survey, merged

LOG_FILES = "*.wandb"
_HEADER = b":W&B\xe1\xbe\x00"
_PIECE = struct.Struct("<IHB")
_BLOCK = 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_WORDS = {"NaN", "Infinity", "-Infinity"}


class _Torn(Exception):
    """What follows is cut short or damaged."""


@dataclass(slots=True)
class WandbLog:
    """The log file of one run. columns: the names to import, None for all.

    name and config are known after `survey`: what the run was called, and its configuration.
    """

    path: Path
    columns: tuple[str, ...] | None = None
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    _left_out: dict[str, None] = field(default_factory=dict)

    def survey(self) -> Survey:
        """Read all of it; raises BadLog where it cannot be read."""
        found = Survey()
        self.name = self.path.stem
        for row in self._rows(found.remarks):
            found.note(row.step, row.numbers, f"{self.path}, step {row.step}")
        if self._left_out:
            found.remarks.append(f"left out because they are no numbers: {', '.join(sorted(self._left_out))}")
        return found

    def rows(self) -> Iterator[Row]:
        """Give its steps."""
        return merged(self._rows([]))

    def _rows(self, remarks: list[str]) -> Iterator[Row]:
        last = 0
        for record in self._records(remarks):
            if record.HasField("run"):
                self.name = record.run.display_name or record.run.run_id or self.name
                self._configure(record.run.config.update)
            elif record.HasField("config"):
                self._configure(record.config.update)
            elif record.HasField("history"):
                row = self._row(record.history)
                if row.step < last:
                    raise BadLog(f"{self.path}: steps must not fall, got {row.step} after {last}")
                last = row.step
                if row.numbers:
                    yield row

    def _configure(self, items: Iterable[Any]) -> None:
        self.config |= {name: value for name, value in _items(items) if not name.startswith("_")}

    def _row(self, history: Any) -> Row:
        """One entry of the history. What begins with an underscore is W&B's own: step and time."""
        numbers: dict[str, float] = {}
        entries = dict(entry for item in _items(history.item) for entry in _flat(*item))
        media = tuple(name.removesuffix("_type") for name in entries if name.endswith("/_type"))
        for name, value in entries.items():
            number = _number(value)
            if number is None or name.startswith(media):
                inside = next((one.removesuffix("/") for one in media if name.startswith(one)), name)
                self._left_out |= {} if name.startswith("_") else {inside: None}
            elif not name.startswith("_") and (self.columns is None or name in self.columns):
                numbers[name] = number
        return Row(int(entries.get("_step", history.step.num)), _number(entries.get("_timestamp")), numbers)

    def _records(self, remarks: list[str]) -> Iterator[Any]:
        """Give the whole records of the file; one that is torn or damaged ends it, with a remark."""
        try:
            with self.path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if stream.read(len(_HEADER)) != _HEADER:
                    raise BadLog(f"{self.path}: is not a log of W&B")
                while True:
                    at = stream.tell()
                    try:
                        content = _content(stream)
                    except _Torn:
                        place = f"byte {at:,} of {size:,}"
                        remarks.append(f"{self.path} is torn or damaged at {place}; what comes before is imported")
                        return
                    if content is None:
                        return
                    yield Record.FromString(content)
        except OSError as error:
            raise BadLog(f"{self.path}: cannot be read: {error.strerror or error}") from None


def _content(stream: BinaryIO) -> bytes | None:
    """The next record, put together of its pieces; None at the end. Raises _Torn."""
    parts: list[bytes] = []
    while True:
        left = _BLOCK - stream.tell() % _BLOCK
        if left < _PIECE.size and stream.read(left).strip(b"\0"):
            raise _Torn
        head = stream.read(_PIECE.size)
        if not head and not parts:
            return None
        if len(head) < _PIECE.size:
            raise _Torn
        checksum, length, kind = _PIECE.unpack(head)
        data = stream.read(length)
        if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            raise _Torn
        if (kind in (_WHOLE, _FIRST)) == bool(parts) or kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST):
            raise _Torn
        parts.append(data)
        if kind in (_WHOLE, _LAST):
            return b"".join(parts)


def _items(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a history or a configuration."""
    for item in items:
        yield "/".join(item.nested_key) or item.key, json.loads(item.value_json)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value; of an object what is in it, names joined by `/`. Pictures, tables and the like have a `_type`."""
    if isinstance(value, Mapping):
        for inner, entry in value.items():
            yield from _flat(f"{name}/{inner}", entry)
    else:
        yield name, value


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return float(value) if value in _WORDS else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def wandb_logs(path: Path, columns: tuple[str, ...] | None) -> list[WandbLog]:
    """The runs at a path: a log file, or each in a folder. Raises BadLog where none is."""
    if path.is_file():
        return [WandbLog(path, columns)]
    files = sorted(file for file in path.rglob(LOG_FILES) if file.is_file())
    if not files:
        raise BadLog(f"{path}: there is no log file of W&B here (a name that ends in .wandb)")
    return [WandbLog(file, columns) for file in files]
