"""What can go wrong in the store, each with what a caller needs to answer it."""

from __future__ import annotations

from collections.abc import Iterable


class StoreError(Exception):
    """Base of everything the store raises on purpose."""


class StoreBusy(Exception):
    """Another writer has the database just now, and the caller does not wait: to be tried again where one can."""


class BadInput(StoreError):
    """A value that is refused. field: its name as the caller knows it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class BadBatch(BadInput):
    """A batch that does not fit what the run already has; nothing of it is kept."""


class BadRequest(BadInput):
    """A run, channel, token or query that is described wrongly."""


class UnknownRun(StoreError):
    """No such run. run: the identity asked for."""

    def __init__(self, run: str) -> None:
        super().__init__(f"there is no run {run!r}")
        self.run = run


class UnknownSession(StoreError):
    """The run has no such session. session: the identity asked for."""

    def __init__(self, run: str, session: str) -> None:
        super().__init__(f"run {run!r} has no session {session!r}; start one with POST /api/v1/runs")
        self.run = run
        self.session = session


class UnknownAlert(StoreError):
    """No such alert. alert: the identity asked for."""

    def __init__(self, alert: str) -> None:
        super().__init__(f"there is no alert {alert!r}")
        self.alert = alert


class UnknownLayer(StoreError):
    """The run has no such layer. layer: the name asked for."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"the run has no layer {layer!r}")
        self.layer = layer


class UnknownStatistic(StoreError):
    """Neither a known statistic or metric nor one that the run has. known: those that may be asked for."""

    def __init__(self, statistic: str, known: Iterable[str]) -> None:
        self.statistic = statistic
        self.known = tuple(sorted(known))
        super().__init__(f"there is no layer statistic {statistic!r}; there are {', '.join(self.known)}")


class SequenceGap(StoreError):
    """A batch came before one that is missing. expected: the sequence number to send next; last_step: the session's."""

    def __init__(self, expected: int, got: int, last_step: int) -> None:
        super().__init__(f"batch {got} came where batch {expected} was expected")
        self.expected = expected
        self.got = got
        self.last_step = last_step


class StoreUnavailable(StoreError):
    """The database cannot be reached, opened or locked just now; the same call may succeed later."""


class StoreFull(StoreError):
    """The disk (or quota) of the database is full; nothing of the transaction is kept."""


class StoreTooNew(StoreError):
    """The database was migrated by a newer version of this package."""


class StoreTooOld(StoreError):
    """The database lacks migrations of this package, which a server applies when it starts."""


class StoreTaken(StoreError):
    """The database has tables of another program that are called as ours."""


class StoreDamaged(StoreError):
    """What the database gives back is not what was stored."""
