"""The frames of a spool file: a header with length and checksum, then one encoded batch. A torn tail is not a frame."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from gradspectra_core.records import Batch
from gradspectra_core.wire import encode_batch

MAGIC = b"GSF1"
MAX_PAYLOAD = 1 << 30
STAMPED, TABLE, LAYERS, SPECTRA = 1, 2, 4, 8
_HEADER = struct.Struct("<4sIIIIQQQ")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class Frame:
    """One batch in the spool. offset: where its header begins; size: bytes of header and payload.

    flags: STAMPED where the payload already carries the right session and sequence; TABLE, LAYERS and SPECTRA
    where it holds such. steps: how many steps; first_step, last_step: the range it speaks of (0, 0 if none).
    """

    offset: int
    sequence: int
    flags: int
    steps: int
    first_step: int
    last_step: int
    length: int
    checksum: int

    @property
    def size(self) -> int:
        """Bytes of header and payload."""
        return HEADER_BYTES + self.length

    @property
    def end(self) -> int:
        """Offset of the next frame."""
        return self.offset + self.size


def frame_bytes(batch: Batch, stamped: bool) -> bytes:
    """Return header and payload of a batch."""
    payload = encode_batch(batch)
    flags = STAMPED if stamped else 0
    for flag, part in ((TABLE, batch.layer_table), (LAYERS, batch.layers), (SPECTRA, batch.spectra)):
        if part is not None:
            flags |= flag
    first, last = step_range(batch)
    head = _HEADER.pack(MAGIC, 0, len(payload), flags, len(batch.steps), batch.sequence, first, last)
    checksum = zlib.crc32(payload, zlib.crc32(head))
    return _HEADER.pack(MAGIC, checksum, *_HEADER.unpack(head)[2:]) + payload


def step_range(batch: Batch) -> tuple[int, int]:
    """Return the first and the last step that a batch speaks of, in records or gaps; (0, 0) if none."""
    firsts = [gap.first for gap in batch.gaps]
    lasts = [gap.last for gap in batch.gaps]
    if len(batch.steps):
        firsts.append(int(batch.steps[0]))
        lasts.append(int(batch.steps[-1]))
    return (min(firsts), max(lasts)) if firsts else (0, 0)


def read_header(file: BinaryIO, offset: int) -> Frame | None:
    """Return the frame that begins at offset, without looking at its payload; None where no whole header is."""
    file.seek(offset)
    head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        return None
    magic, checksum, length, flags, steps, sequence, first, last = _HEADER.unpack(head)
    if magic != MAGIC or length > MAX_PAYLOAD:
        return None
    return Frame(offset, sequence, flags, steps, first, last, length, checksum)


def read_payload(file: BinaryIO, frame: Frame) -> bytes | None:
    """Return the payload of a frame; None where it is cut short or was altered."""
    file.seek(frame.offset + HEADER_BYTES)
    payload = file.read(frame.length)
    head = _HEADER.pack(
        MAGIC, 0, frame.length, frame.flags, frame.steps, frame.sequence, frame.first_step, frame.last_step
    )
    if len(payload) < frame.length or zlib.crc32(payload, zlib.crc32(head)) != frame.checksum:
        return None
    return payload


def scan(file: BinaryIO, offset: int = 0, end: int | None = None) -> Iterator[Frame]:
    """Go through the headers from offset on; stops at `end` or at the first that is torn."""
    while end is None or offset < end:
        frame = read_header(file, offset)
        if frame is None:
            return
        yield frame
        offset = frame.end
