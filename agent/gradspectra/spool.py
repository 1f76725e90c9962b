"""The spool of one session: batches in order, and how far the server has acknowledged them."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from gradspectra_core.records import Batch, Gap
from gradspectra_core.wire import WireError, decode_batch, encode_batch

from gradspectra.claims import Claim, held_claims
from gradspectra.frames import LAYERS, SPECTRA, STAMPED, Frame, frame_bytes
from gradspectra.journal import Journal, open_file
from gradspectra.shedding import Excess, Sized, beyond_reading, shed_flagged, shed_steps, without_steps

log = logging.getLogger("gradspectra")

DEFAULT_LIMIT = 256 << 20
MEMORY_LIMIT = 64 << 20
PATIENCE = 1.25
"""How far past its bound a spool may grow while a sync copies it."""
KEEP_ACKNOWLEDGED = 4 << 20
NOT_SPOOLED = "its batch could not be spooled"
LOST_BY_SERVER = "the server lost it after storing it"
_ACKNOWLEDGED = struct.Struct("<QI")


class Spool:
    """Batches of one session that wait for the server's acknowledgement, numbered from 1.

    directory: holds the files `batches` and `acknowledged`; None keeps all in memory. limit: bytes that may wait;
    past it the oldest batches are thinned out. What is acknowledged stays for a while (the last 4 MiB at least), in
    case the server asks for it again. Raises OSError where the directory cannot be written.
    """

    def __init__(self, directory: Path | None, limit: int = DEFAULT_LIMIT) -> None:
        self.journal = Journal(None if directory is None else directory / "batches")
        self._marker = None if directory is None else open_file(directory / "acknowledged")
        self._directory = directory
        self._limit = limit if directory else min(limit, MEMORY_LIMIT)
        self._attempted = 0
        self._session: str | None = None
        self._cursor = 0
        self.acknowledged = self._read_marker()
        self.last_step = 0
        self.next_sequence = 1
        self.waiting_steps = 0
        self.times_thinned = 0
        self.failed = 0
        self._count()

    @property
    def attempted(self) -> int:
        """The last batch that was given out to be sent."""
        return max(self._attempted, self.acknowledged)

    @property
    def waiting_batches(self) -> int:
        """Batches not yet acknowledged."""
        return self.next_sequence - 1 - self.acknowledged

    @property
    def waiting_bytes(self) -> int:
        """Bytes not yet acknowledged."""
        return self.journal.end - self._cursor

    def set_session(self, session: str) -> None:
        """Name the session, as the server gave it; batches written before get it when they are sent."""
        self._session = session

    def append(self, batch: Batch) -> None:
        """Add a batch, giving it the next sequence number; one that cannot be encoded becomes a gap, said once."""
        try:
            data = self._frame(batch, self.next_sequence)
        except Exception as error:
            if not self.failed:
                log.warning("gradspectra: a batch cannot be spooled (%r); it is a gap", error, exc_info=error)
            self.failed += 1
            batch = without_steps(batch, NOT_SPOOLED)
            data = self._frame(batch, self.next_sequence)
        self.journal.append(data)
        self.next_sequence += 1
        self.waiting_steps += len(batch.steps)
        self.last_step = max(self.last_step, batch.complete_through)
        limit = min(self._limit, MEMORY_LIMIT) if self.journal.in_memory else self._limit
        if self.waiting_bytes > limit:
            self._thin_out(limit)

    def peek(self, anew: bool = False) -> tuple[Frame, bytes] | None:
        """Return the oldest batch that is not acknowledged, encoded; from now on its number stays as it is.

        anew: write the session into it even where one is there already (that of an older server database). A file
        that was altered behind our back is given up.
        """
        if self._cursor >= self.journal.end:
            return None
        try:
            frame = next(iter(self.journal.frames(self._cursor)), None)
            payload = None if frame is None else self.journal.payload(frame)
        except OSError:
            frame = payload = None
        if frame is None or payload is None:
            self.journal.give_up()
            self._count()
            return None
        self._attempted = max(self._attempted, frame.sequence)
        if anew or not frame.flags & STAMPED:
            session = self._session or "unset"
            try:
                stamped = replace(decode_batch(payload), session=session, sequence=frame.sequence)
            except WireError as error:
                if not self.failed:
                    first, last = frame.first_step, frame.last_step
                    log.warning("gradspectra: steps %d to %d cannot be read (%s); they are a gap", first, last, error)
                self.failed += 1
                stamped = beyond_reading(frame, session, str(error))
            payload = encode_batch(stamped)
        return frame, payload

    def acknowledge(self, sequence: int) -> None:
        """Drop everything up to and including sequence from what waits."""
        for frame in self.journal.frames(self._cursor):
            if frame.sequence > sequence:
                break
            self._cursor = frame.end
            self.waiting_steps -= frame.steps
        self.acknowledged = max(self.acknowledged, sequence)
        self.next_sequence = max(self.next_sequence, sequence + 1)
        self._write_marker()
        if self._cursor > 4 * KEEP_ACKNOWLEDGED:
            self._trim()

    def go_to(self, expected: int, stored_through: int) -> None:
        """Go to the number the server expects: forward over what it has, or back to what it lost.

        What it lost and the spool no longer has becomes a gap after stored_through, the last step the server has.
        """
        if expected > self.acknowledged:
            self.acknowledge(expected - 1)
        else:
            self.acknowledged = expected - 1
            self._write_marker()
            self._count()
        first = next(iter(self.journal.frames(self._cursor)), None)
        if first is not None and first.sequence > expected:
            self._fill(Gap(stored_through + 1, first.first_step - 1, "all", LOST_BY_SERVER))

    def close(self) -> None:
        """Close the files."""
        self.journal.close()
        if self._marker is not None:
            self._marker.close()

    def _frame(self, batch: Batch, sequence: int) -> bytes:
        known = self._session is not None
        return frame_bytes(replace(batch, session=self._session or "unset", sequence=sequence), known)

    def _count(self) -> None:
        """Go through all frames: put the cursor behind what is acknowledged, and count what waits."""
        self._cursor, self.waiting_steps, self.next_sequence = self.journal.end, 0, self.acknowledged + 1
        for frame in self.journal.frames():
            self.last_step = max(self.last_step, frame.last_step)
            if frame.sequence > self.acknowledged:
                self._cursor = min(self._cursor, frame.offset)
                self.waiting_steps += frame.steps
                self.next_sequence = frame.sequence + 1

    def _fill(self, gap: Gap) -> None:
        """Number what waits from the expected number on, with a gap for what is nowhere any more."""
        self._attempted = self.acknowledged

        def with_gap(batches: Iterable[Sized]) -> Iterator[Batch]:
            for index, (_, _, batch) in enumerate(batches):
                yield replace(batch, gaps=(gap, *batch.gaps)) if index == 0 and gap.first <= gap.last else batch

        self._rewrite(with_gap)

    def _thin_out(self, limit: int) -> None:
        """Make room: forget what a sync has brought to the server, and give up the oldest of what was never sent."""
        if self._directory is None or self.journal.in_memory:
            self._give_up_oldest(limit)
            return
        with held_claims(self._directory) as claims:
            if claims.locked is False and self.waiting_bytes <= PATIENCE * limit:
                return
            self._heed(claims.read())
            if self.waiting_bytes > limit:
                self._give_up_oldest(limit)

    def _heed(self, claim: Claim) -> None:
        """Take over what a sync has done."""
        if self.acknowledged < claim.stored < self.next_sequence:
            self.acknowledge(claim.stored)
        self._attempted = max(self._attempted, min(claim.copied, self.next_sequence - 1))

    def _give_up_oldest(self, limit: int) -> None:
        """Give up the oldest of what was never sent until a quarter of the bound is free: spectra, layers, steps."""
        self.times_thinned += 1
        for flag in (SPECTRA, LAYERS):
            excess = Excess(self.waiting_bytes - limit * 3 // 4)
            self._rewrite(_shedder(flag, excess))
            if self.waiting_bytes <= limit:
                return
        excess = Excess(self.waiting_bytes - limit * 3 // 4)
        self._rewrite(lambda batches: shed_steps(batches, excess))

    def _rewrite(self, change: Callable[[Iterable[Sized]], Iterator[Batch]]) -> None:
        """Replace the file by what waits, as changed; batches that were never sent are numbered anew, in order."""
        waiting = list(self.journal.frames(self._cursor))
        sent = [frame for frame in waiting if frame.sequence <= self._attempted]
        read = ((frame, self.journal.payload(frame)) for frame in waiting[len(sent) :])
        unsent = ((frame.flags, frame.size, decode_batch(payload)) for frame, payload in read if payload is not None)
        first = (sent[-1].sequence if sent else self.acknowledged) + 1
        new = (self._frame(batch, sequence) for sequence, batch in enumerate(change(unsent), first))
        self.journal.replace(chain((self.journal.read(frame.offset, frame.end) for frame in sent), new))
        self._count()

    def _trim(self) -> None:
        """Forget what was acknowledged long ago."""
        start = next(
            (frame.offset for frame in self.journal.frames() if frame.offset >= self._cursor - KEEP_ACKNOWLEDGED), 0
        )
        self.journal.replace([self.journal.read(start, self.journal.end)])
        self._count()

    def _read_marker(self) -> int:
        raw = b"" if self._marker is None else self._marker.read(_ACKNOWLEDGED.size)
        if len(raw) != _ACKNOWLEDGED.size:
            return 0
        sequence, checksum = _ACKNOWLEDGED.unpack(raw)
        return int(sequence) if zlib.crc32(raw[:8]) == checksum else 0

    def _write_marker(self) -> None:
        """Keep the acknowledged number; where that fails, the server says later what it has already."""
        if self._marker is None:
            return
        number = struct.pack("<Q", self.acknowledged)
        with suppress(OSError):
            self._marker.seek(0)
            self._marker.write(number + struct.pack("<I", zlib.crc32(number)))


def _shedder(flag: int, excess: Excess) -> Callable[[Iterable[Sized]], Iterator[Batch]]:
    return lambda batches: shed_flagged(batches, flag, excess)
