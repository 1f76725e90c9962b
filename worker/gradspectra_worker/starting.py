"""What must hold before a worker takes its first task: a database of the schema that this version knows."""

from __future__ import annotations

import logging
import time
from contextlib import closing

from gradspectra_store import Store
from gradspectra_store.errors import StoreTooOld, StoreUnavailable

WAIT_SECONDS = 60.0
"""So long a worker waits for a server that starts beside it to migrate the database."""

_LOOK_SECONDS = 0.5
_log = logging.getLogger(__name__)


def await_schema(url: str, seconds: float = WAIT_SECONDS) -> None:
    """Return once the database at `url` has this version's schema, or where it does not answer: tasks look again.

    Raises StoreTooOld after so many seconds, StoreTooNew at once, and BadRequest for a URL that cannot be one.
    """
    until = time.monotonic() + seconds
    waiting = False
    with closing(Store.open(url, migrate=False)) as store:
        while True:
            try:
                store.check_version()
                return
            except StoreTooOld as error:
                if time.monotonic() >= until:
                    raise
                if not waiting:
                    _log.warning("%s; waiting for that", error)
                waiting = True
            except StoreUnavailable as error:
                _log.warning("%s", str(error).partition("\n")[0])
                return
            time.sleep(_LOOK_SECONDS)
