"""Work that failed: how the log tells it, and whether the process was told to end in the middle of it."""

from __future__ import annotations

import logging

from gradspectra_store.errors import StoreFull, StoreTooNew, StoreTooOld, StoreUnavailable

FOR_LATER = (StoreUnavailable, StoreFull, StoreTooNew, StoreTooOld)
"""The database is away, full or of another version: the work is as good as before, and is to be tried again."""


def tell_failure(log: logging.Logger, what: str, error: Exception) -> None:
    """Log what failed: in one line where the database is at fault, else with its traceback."""
    if isinstance(error, FOR_LATER):
        log.error("%s: %s", what, str(error).partition("\n")[0])
    else:
        log.error("%s", what, exc_info=error)


def told_to_end(error: BaseException | None) -> SystemExit | None:
    """Return the SystemExit that an error took the place of, None where there is none.

    celery ends a process by a signal, which raises SystemExit wherever it is; SQLAlchemy 2.1, looking whether a
    connection still answers, raises ProgrammingError in its place, and the process would go on.
    """
    while error is not None and not isinstance(error, SystemExit):
        error = error.__context__
    return error
