"""Which alerts a session has not heard of yet, so that an answer to a batch carries each of them once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from gradspectra_store import alerts, run_views
from sqlalchemy import Connection

REMEMBERED = 4096
"""Sessions remembered; an older one hears open alerts again, which the agent knows by their id."""


class AlertNews:
    """Per session the alerts (with their severity) already answered; none of muted rules. Safe to call from any thread.

    `heard` counts announcements per run, so that a batch without news costs no query.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._told: dict[tuple[str, str], set[tuple[str, str]]] = {}

    def heard(self, announcement: dict[str, Any]) -> None:
        """Note that an alert of a run changed."""
        if announcement.get("type") == "alert":
            with self._lock:
                run = str(announcement["run"])
                self._changes[run] = self._changes.pop(run, 0) + 1
                while len(self._changes) > REMEMBERED:
                    self._changes.popitem(last=False)

    def pending(self, run: str, session: str) -> bool:
        """Whether anything was announced since the session was last answered."""
        with self._lock:
            return self._seen.get((run, session)) != self._changes.get(run, 0)

    def news(self, conn: Connection, run: str, session: str) -> list[dict[str, Any]]:
        """Open alerts of the present attempt that this session was not told of, or whose severity rose."""
        key = (run, session)
        with self._lock:
            changes = self._changes.get(run, 0)
        found = run_views.get_run(conn, run)
        attempt = None if found is None else found["attempt"]
        items, _ = alerts.list_alerts(conn, run=run, state="open", limit=100)
        with self._lock:
            self._seen.pop(key, None)
            self._seen[key] = changes
            told = self._told.setdefault(key, set())
            own = [item for item in items if item["attempt"] == attempt and not item["muted"]]
            fresh = [item for item in own if (item["id"], item["severity"]) not in told]
            told.update((item["id"], item["severity"]) for item in fresh)
            while len(self._seen) > REMEMBERED:
                oldest, _ = self._seen.popitem(last=False)
                self._told.pop(oldest, None)
        return fresh
