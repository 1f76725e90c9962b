"""Retention as the interface and the command show it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gradspectra_store.freeing import to_be_freed
from gradspectra_store.retention import NOTICE_DAYS, Retention
from sqlalchemy import Connection


def retention_object(conn: Connection, wanted: Retention, cursor: str | None, limit: int) -> dict[str, Any]:
    """The `retention` object of the interface: what is kept, and a page of the runs it comes to."""
    items, following = to_be_freed(conn, wanted, cursor, limit)
    kept = {"on": wanted.days > 0, **asdict(wanted), "width": wanted.width, "notice_days": NOTICE_DAYS}
    return {"retention": kept, "items": [asdict(item) for item in items], "next": following}
