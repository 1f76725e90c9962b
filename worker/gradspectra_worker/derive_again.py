"""Derive a run another time, from its first step on, beside what it has; then swap the one for the other."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from gradspectra_core.records import Batch
from gradspectra_store import Store
from gradspectra_store.beside import Beside
from gradspectra_store.derived import Cursor
from gradspectra_store.rebuilding import Tables, batch_of_nothing, next_window, rebuilt, spectra_of
from gradspectra_store.rederivations import LEFT, CannotDeriveAgain, begin_again, end_again, still_mine
from gradspectra_store.run_views import list_attempts
from gradspectra_store.swapping import Swap, derived_to, refuse_retired

from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive

SHARE = 0.5
"""Share of its time that it writes to the run's database at most: on SQLite there is one writer at a time."""

WINDOWS = 16
"""So many windows are derived before what came of them is compacted."""

TRIES, WAIT_SECONDS = 30, 2.0
"""How often it is tried to swap, and how long a run is waited for that has batches which are not derived yet."""

SAY_SECONDS = 10.0
"""How often it says that it is alive."""

END = 2**62
PREFIX = "gradspectra-derive-"

Progress = Callable[[int, int], None]
"""Told of attempt and step from time to time."""


@dataclass(frozen=True, slots=True)
class DerivedAgain:
    """steps: that were derived, of all attempts; derived_step: of the run; alerts: how many are new, kept and gone."""

    steps: int
    derived_step: int
    new: int
    kept: int
    gone: int


def derive_again(
    store: Store, run: str, folder: Path | None = None, *, progress: Progress | None = None, wait: float = WAIT_SECONDS
) -> DerivedAgain:
    """Derive all of a run that is derived another time, by this version and from what can be read now.

    folder: where it works, on as much disk as all that is derived takes; default: that for temporary files. wait:
    seconds between tries where a run that goes on has batches that are not derived yet.

    Readers see what the run had, and after the swap, one transaction, what came out; killed before it, nothing has
    changed, and what was left lying is taken away the next time. Training goes on sending meanwhile, and what comes is
    taken in too. Raises UnknownRun, and CannotDeriveAgain where retention has taken what it would need, where another
    process is at it, or where the run is never found derived up to its last batch.
    """
    with store.read() as conn:
        refuse_retired(conn, run)
    with store.write() as conn:
        owner = begin_again(conn, run, time.time())
    try:
        with _workplace(folder or Path(tempfile.gettempdir()), run) as place:
            beside = Beside.open(place, store, run)
            try:
                again = _Again(store, beside, Swap(store, beside.store, run, owner, _rest), progress)
                return again.run(wait)
            finally:
                beside.store.close()
    finally:
        with store.write() as conn:
            end_again(conn, run, owner, LEFT, time.time())


@dataclass(slots=True)
class _Again:
    """The walk over a run's attempts. _reached: below which step each attempt is derived; _through: and which batch."""

    store: Store
    beside: Beside
    swap: Swap
    progress: Progress | None
    _reached: dict[int, int] = field(default_factory=dict)
    _through: int = 0
    _steps: int = 0
    _said: float = 0.0

    def run(self, wait: float) -> DerivedAgain:
        self.swap.clean()
        for attempt in range(TRIES):
            if attempt:
                time.sleep(wait)
            with self.store.read() as conn:
                cursor = derived_to(conn, self.beside.run)
            self._up_to(cursor)
            self._compact_all()
            self.swap.stage()
            done = self.swap.make(cursor)
            if done is not None:
                with suppress(CannotDeriveAgain):  # another process has begun, and takes it away
                    self.swap.clean()
                return DerivedAgain(self._steps, cursor.derived_step, **done)
        raise CannotDeriveAgain(
            f"run {self.beside.run} goes on, and was never found derived up to its last batch; nothing was changed. "
            "Try again when it has ended"
        )

    def _up_to(self, cursor: Cursor) -> None:
        """Derive what is derived of the run and is not derived beside it yet."""
        self.beside.follow(self.store)
        with self.store.read() as conn:
            numbers = [one["attempt"] for one in list_attempts(conn, self.beside.run)]
        for number in numbers:
            if number <= cursor.attempt:
                self._walk(number, END if number < cursor.attempt else cursor.derived_step + 1, cursor.batch)
        if not self.beside.has(cursor.attempt):  # it has begun, even where none of its steps can be read back
            self._derive(cursor.attempt, [(0, batch_of_nothing())])
        self._through = cursor.batch

    def _walk(self, attempt: int, stop: int, through: int) -> None:
        """Derive the steps below `stop` of an attempt, window by window, and the spectra of batches up to `through`."""
        at, begin, count = self._reached.get(attempt, 0), 0, 0
        with self.store.read() as conn:
            tables = Tables(conn, self.beside.run)
        while True:
            with self.store.read() as conn:
                window = next_window(conn, self.beside.run, attempt, at)
                if window is None or window[0] >= stop:
                    spectra = spectra_of(conn, self.beside.run, attempt, (begin, END), (self._through, through))
                    self._derive(attempt, list(spectra))
                    break
                at = min(window[1], stop)
                found = [(0, one) for one in rebuilt(conn, self.beside.run, attempt, window[0], at, tables)]
                found += spectra_of(conn, self.beside.run, attempt, (begin, at), (self._through, through))
            self._derive(attempt, found)
            begin, count = at, count + 1
            if count % WINDOWS == 0:
                compact(self.beside.store, self.beside.run)
        self._reached[attempt] = max(at, stop)

    def _derive(self, attempt: int, batches: list[tuple[int, Batch]]) -> None:
        self.beside.put(attempt, batches)
        derive(self.beside.store, self.beside.run)
        self.beside.forget()
        self._steps += sum(len(batch.steps) for _, batch in batches)
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            with self.store.write() as conn:
                still_mine(conn, self.swap.run, self.swap.owner, time.time())
            if self.progress is not None:
                self.progress(attempt, max((int(one.steps[-1]) for _, one in batches if len(one.steps)), default=0))

    def _compact_all(self) -> None:
        attempt = self.beside.close_up()
        compact(self.beside.store, self.beside.run)
        self.beside.open_up(attempt)


@contextmanager
def _workplace(folder: Path, run: str) -> Iterator[Path]:
    """A folder that is there meanwhile; those of processes that died go."""
    for old in folder.glob(f"{PREFIX}{run}-*"):
        shutil.rmtree(old, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{run}-", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _rest(worked: float) -> None:
    time.sleep(worked * (1 / SHARE - 1))
