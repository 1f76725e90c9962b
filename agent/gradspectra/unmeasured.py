"""What a job tells the server of what it does not measure, and its user of what was not sent."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gradspectra.guard import Guard

if TYPE_CHECKING:
    from gradspectra.session import Session

MOST, LONGEST = 100, 500
"""Sentences, and characters of each, that the server takes."""


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """not_measured: a sentence for each thing that is missing from the records, with the reason.

    norms_that_disagreed: steps whose layers did not give the total norm of the gradient within 1%.
    """

    not_measured: tuple[str, ...]
    norms_that_disagreed: int

    def members(self) -> dict[str, Any]:
        """As a heartbeat carries it."""
        return asdict(self)


def teller(session: Session, guard: Guard) -> Callable[[], Unmeasured | None]:
    """What tells, in any thread, what a session does not measure; it does not keep the session and its model alive."""
    seen = weakref.ref(session)

    def tell() -> Unmeasured | None:
        here = seen()
        return None if here is None else guard.run("status", unmeasured_of, here)

    return tell


def unmeasured_of(session: Session) -> Unmeasured:
    """What a session has to say now; of more sentences than the server takes, how many they are."""
    reasons = [reason[:LONGEST] for reason in session.not_measured()]
    if len(reasons) > MOST:
        reasons[MOST - 1 :] = [f"and {len(reasons) - MOST + 1} more: watch.status() has them all"]
    return Unmeasured(tuple(reasons), session.disagreements)


def what_is_left(status: Mapping[str, Any]) -> str:
    """What of a run that is over is not with the server, where it is, and why, in words. status: of its transport."""
    steps, why = status["waiting_steps"], status["last_error"] or "the time to close was over"
    if status["spool"] is None:
        return f"{steps} steps are lost ({why})"
    what = f"{steps} steps are" if steps else "the end of the run is"
    lost = ", and those since the spool failed are lost" if status["spool_failure"] else ""
    return f"{what} not sent yet{lost}; send with: gradspectra sync {status['spool']} ({why})"
