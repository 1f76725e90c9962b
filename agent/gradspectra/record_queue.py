"""What lies between the training thread and the sending thread: a bounded queue that never makes training wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gradspectra_core.records import Gap

from gradspectra.packing import record_bytes
from gradspectra.record import StepRecord

MAX_RECORDS, MAX_BYTES = 10_000, 64 << 20
TOO_FAST = "recorded faster than it could be spooled"


@dataclass(frozen=True, slots=True)
class Unmade:
    """A step whose numbers are on the host, but whose record is made by the reader of the queue.

    record_bytes: about how large its record will be. make: returns it, None if that failed; must not raise.
    """

    step: int
    record_bytes: int
    make: Callable[[], StepRecord | None]


class RecordQueue:
    """Records in order. What finds the queue full is dropped, and the reader gets the gap. `wake` is set by a put."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._records: deque[StepRecord | Unmade] = deque()
        self._bytes = 0
        self._dropped: list[int] = []

    def __len__(self) -> int:
        return len(self._records)

    @property
    def dropped(self) -> int:
        """Steps dropped since the last take."""
        return len(self._dropped)

    def put(self, record: StepRecord | Unmade) -> None:
        """Add a record; never blocks."""
        if len(self._records) >= MAX_RECORDS or self._bytes >= MAX_BYTES:
            self._dropped.append(record.step)
            return
        self._bytes += record.record_bytes if isinstance(record, Unmade) else record_bytes(record)
        self._records.append(record)
        if not self.wake.is_set():
            self.wake.set()

    def take(self) -> tuple[list[StepRecord], list[Gap]]:
        """Return what is queued, and the gap of what had to be dropped."""
        queued = [self._records.popleft() for _ in range(len(self._records))]
        self._bytes = 0
        dropped, self._dropped = self._dropped, []
        records = [entry.make() if isinstance(entry, Unmade) else entry for entry in queued]
        gaps = [Gap(dropped[0], dropped[-1], "all", TOO_FAST)] if dropped else []
        return [record for record in records if record is not None], gaps
