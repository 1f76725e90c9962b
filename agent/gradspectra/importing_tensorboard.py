"""Logs of TensorBoard: event files, read record by record, scalars in either of their two forms."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from gradspectra.importing import BadLog, Row, Survey, merged

EVENT_FILES = "*tfevents*"
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_SCALARS = "scalars"
_HPARAMS = "_hparams_/"


@dataclass(slots=True)
class _Points:
    """One series as it was written: step, wall time and value of each point."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def forget_from(self, step: int) -> None:
        """Drop points at and after a step: a job that started again writes them anew."""
        keep = [at for at, own in enumerate(self.steps) if own < step]
        for name in ("steps", "times", "values"):
            old = getattr(self, name)
            setattr(self, name, array(old.typecode, (old[at] for at in keep)))


@dataclass(slots=True)
class TensorBoardLog:
    """The event files of one folder, or one event file; they are one run, as in TensorBoard. All points are kept in
    memory, about 70 bytes each. columns: the tags to import, None for all. config: the hyperparameters that its
    plugin was told, known after `survey`.
    """

    path: Path
    name: str
    columns: tuple[str, ...] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    _series: dict[str, _Points] = field(default_factory=dict)
    _left_out: dict[str, None] = field(default_factory=dict)
    _remarks: list[str] = field(default_factory=list)

    def survey(self) -> Survey:
        """Read all of it; raises BadLog where nothing can be read."""
        files = sorted(self.path.glob(EVENT_FILES)) if self.path.is_dir() else [self.path]
        for file in files:
            self._read(file)
        found = Survey(remarks=list(self._remarks))
        for row in self.rows():
            found.note(row.step, row.numbers, f"{self.path}, step {row.step}")
        if self._left_out:
            found.remarks.append(f"left out because they are no scalars: {', '.join(self._left_out)}")
        return found

    def rows(self) -> Iterator[Row]:
        """Give its steps; a step's time is that of the first point of its first tag."""
        if not self._series:
            return iter(())
        tags = list(self._series)
        points = self._series.values()
        steps, times, values = (
            np.concatenate([np.array(getattr(one, name)) for one in points]) for name in ("steps", "times", "values")
        )
        of = np.repeat(np.arange(len(tags)), [len(one.steps) for one in points])
        order = np.argsort(steps, kind="stable")  # what was written later of a step stays behind, by any clock
        return merged(Row(int(steps[at]), float(times[at]), {tags[of[at]]: float(values[at])}) for at in order)

    def _read(self, file: Path) -> None:
        known: dict[str, str] = {}
        for record in self._records(file):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                for points in self._series.values():
                    points.forget_from(event.step)
            for value in event.summary.value:
                self._take(event, value, known)

    def _take(self, event: Event, value: Summary.Value, known: dict[str, str]) -> None:
        """Keep one value if it is a scalar. known: which plugin each tag belongs to; only its first value says so."""
        tag = value.tag
        known.setdefault(tag, value.metadata.plugin_data.plugin_name)
        number: float | None = None
        if value.HasField("simple_value"):
            number = value.simple_value
        elif value.HasField("tensor") and known[tag] in (_SCALARS, ""):
            tensor = make_ndarray(value.tensor)
            if tensor.size == 1 and tensor.dtype.kind in "fiub":
                number = float(tensor.reshape(()))
        if number is None:
            if tag.startswith(_HPARAMS):
                self._configure(value.metadata.plugin_data.content)
            elif tag not in self._series:
                self._left_out.setdefault(tag)
        elif self.columns is None or tag in self.columns:
            points = self._series.setdefault(tag, _Points())
            points.steps.append(event.step)
            points.times.append(event.wall_time)
            points.values.append(number)

    def _configure(self, content: bytes) -> None:
        """Take over the hyperparameters that a session began with, if this tells of them."""
        for name, value in HParamsPluginData.FromString(content).session_start_info.hparams.items():
            kind = value.WhichOneof("kind")
            self.config[name] = None if kind in (None, "null_value") else getattr(value, kind)

    def _records(self, file: Path) -> Iterator[bytes]:
        """Give the whole records of a file; one that is torn or damaged ends it, with a remark."""
        try:
            with file.open("rb") as stream:
                size, at = os.fstat(stream.fileno()).st_size, 0
                while at < size:
                    head = stream.read(12)
                    record = _whole(head, stream.read(_length(head, size - at)))
                    if record is None:
                        self._torn(file, at, size)
                        return
                    at += 16 + len(record)
                    yield record
        except OSError as error:
            raise BadLog(f"{file}: cannot be read: {error.strerror or error}") from None

    def _torn(self, file: Path, at: int, size: int) -> None:
        if at == 0:
            raise BadLog(f"{file}: is not an event file: its first record cannot be read")
        self._remarks.append(f"{file} is torn or damaged at byte {at:,} of {size:,}; what comes before is imported")


def _length(head: bytes, left: int) -> int:
    """Bytes of record and checksum that follow a head of 12 bytes; 0 where that cannot be."""
    if len(head) < 12 or _CHECKSUM.unpack(head[8:])[0] != masked_crc32c(head[:8]):
        return 0
    length = int(_LENGTH.unpack(head[:8])[0])
    return length + 4 if 16 + length <= left else 0


def _whole(head: bytes, body: bytes) -> bytes | None:
    """The record, if its checksum is right."""
    if len(head) < 12 or len(body) < 4:
        return None
    record, checksum = body[:-4], body[-4:]
    return record if _CHECKSUM.unpack(checksum)[0] == masked_crc32c(record) else None


def tensorboard_logs(path: Path, columns: tuple[str, ...] | None) -> list[TensorBoardLog]:
    """The runs at a path: an event file, or each folder in it that holds such files. Raises BadLog where none is."""
    if path.is_file():
        return [TensorBoardLog(path, path.resolve().parent.name, columns)]
    folders = sorted({file.parent for file in path.rglob(EVENT_FILES) if file.is_file()})
    if not folders:
        raise BadLog(f"{path}: there is no event file here (a name with `tfevents` in it)")
    top = path.resolve().name
    return [TensorBoardLog(folder, "/".join((top, *folder.relative_to(path).parts)), columns) for folder in folders]
