"""Whether the row of a segment or block fits its payload and its session.

Only the payload has a checksum. A bit that flips in the row beside it hides numbers that are whole: nothing finds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.pyramid import Level
from gradspectra_core.widths import width_of

from gradspectra_store.bitmaps import members_of
from gradspectra_store.block_rows import SPAN
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.layer_tables import layer_count
from gradspectra_store.schema import attempts, runs, sessions
from gradspectra_store.segments import READERS, opened


@dataclass(frozen=True, slots=True)
class Misfit:
    """What is wrong with a row, in words, and what should stand in its columns, as far as that is known."""

    why: str
    right: dict[str, Any]


_ASKED = {
    "session": sa.select(*(sessions.c[name] for name in ("run", "attempt", "rank", "last_sequence"))).where(
        sessions.c.id == sa.bindparam("key")
    ),
    "batch": sa.select(runs.c.last_batch).where(runs.c.id == sa.bindparam("key")),
    "attempts": sa.select(sa.func.max(attempts.c.number).label("newest")).where(attempts.c.run == sa.bindparam("key")),
}


@dataclass(slots=True)
class Known:
    """What a database says of its runs and sessions, read once for several rows."""

    conn: sa.Connection
    _found: dict[tuple[str, str], Any] = field(default_factory=dict)

    def session(self, session: str) -> Any:
        """Run, attempt, rank and last sequence, None where there is no such session."""
        return self._once("session", session)

    def last_batch(self, run: str) -> int:
        """Number of the newest batch of a run, 0 where there is no such."""
        row = self._once("batch", run)
        return 0 if row is None else int(row.last_batch)

    def attempts(self, run: str) -> int:
        """Return how many attempts a run has, numbered from 1."""
        return self._once("attempts", run).newest or 0

    def layers(self, run: str) -> int:
        """Return how many layers a run has."""
        if ("layers", run) not in self._found:
            self._found["layers", run] = layer_count(self.conn, run)
        return int(self._found["layers", run])

    def _once(self, what: str, key: str) -> Any:
        if (what, key) not in self._found:
            self._found[what, key] = self.conn.execute(_ASKED[what], {"key": key}).one_or_none()
        return self._found[what, key]


def content_of(row: Any) -> tuple[str, Any]:
    """Return the kind of a segment, which its payload shows too, and what is in it; raises StoreDamaged."""
    for kind in (row.kind, *READERS) if row.kind in READERS else READERS:
        try:
            return kind, opened(READERS[kind], row.payload, row.checksum)
        except LookupError:  # a payload as it was stored, of another kind
            continue
    raise StoreDamaged(f"a segment is of no kind, but is called {row.kind!r}")


def misfit_of_segment(known: Known, row: Any, kind: str, content: Any) -> Misfit | None:
    """Compare all columns of a segment of a batch, or of what was derived of one, with what its payload has."""
    steps = content.step if kind == "spectra" else content.steps
    right = {"kind": kind, "digest": getattr(content, "digest", None)}
    if len(steps):
        right |= {"first_step": int(steps.min()), "last_step": int(steps.max())}
    if kind == "spectra":
        right["members"] = members_of(content.layer)
    strange = [] if _up_to(row.batch, known.last_batch(row.run)) else ["batch"]
    if "session" not in row._fields:
        strange += [] if _up_to(row.attempt, known.attempts(row.run)) else ["attempt"]
    elif (session := known.session(row.session)) is None or session.run != row.run:
        strange += ["session"]
    else:
        right |= {"attempt": session.attempt, "rank": session.rank}
        strange += [] if _up_to(row.sequence, session.last_sequence) else ["sequence"]
    return _misfit(row, right, strange)


def misfit_of_block(known: Known, row: Any, content: Recorded | Level) -> Misfit | None:
    """Compare the range of a block and its number of layers with what its payload has."""
    lost = row.kind == "layers" and _rows(content) > known.layers(row.run)
    if lost:
        return Misfit("a table of its layers is lost", {})
    strange = [] if _up_to(row.attempt, known.attempts(row.run)) else ["attempt"]
    if isinstance(content, Recorded):
        first, stop = int(content.steps[0]), int(content.steps[-1]) + 1
        return _misfit(row, {"first": first, "stop": stop, "entries": len(content.steps)}, strange)
    width = width_of(row.level)
    first, stop = int(content.numbers[0]) * width, (int(content.numbers[-1]) + 1) * width
    strange += [] if _up_to(row.first, first, least=stop - SPAN * width) else ["first"]
    strange += [] if _up_to(row.stop, first + SPAN * width, least=stop) else ["stop"]
    return _misfit(row, {"entries": len(content.numbers)}, strange)


def _rows(content: Recorded | Level) -> int:
    return content.rows if isinstance(content, Level) else len(content.values)


def _up_to(value: object, most: int, least: int = 0) -> bool:
    return isinstance(value, int) and least <= value <= most


def _misfit(row: Any, right: dict[str, Any], strange: list[str]) -> Misfit | None:
    """strange: columns of which only that they cannot be right is known."""
    other = {name: value for name, value in right.items() if name in row._fields and getattr(row, name) != value}
    wrong = [*other, *strange]
    return Misfit(f"its row has a wrong {' and '.join(wrong)}", other) if wrong else None
