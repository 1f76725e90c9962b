"""A disk that changes what it holds."""

from __future__ import annotations

import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.schema import segments


def spoil(store: Store, run: str, table: sa.Table = segments, **place: object) -> bytes:
    """Flip one bit of a number in the one segment or block of a place; returns what it was."""
    where = [table.c[name] == value for name, value in (place | {"run": run}).items()]
    with store.write() as conn:
        identity, payload = conn.execute(sa.select(table.c.id, table.c.payload).where(*where)).one()
        broken = bytes([*payload[:-1], payload[-1] ^ 1])
        conn.execute(sa.update(table).where(table.c.id == identity).values(payload=broken))
    return bytes(payload)
