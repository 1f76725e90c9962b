"""Which runs are to be derived again, after a repair and for what is damaged of what was derived."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.checking import DamagedPlace
from gradspectra_store.schema import derived_segments

MOST_NAMED = 3


def advice(runs: Iterable[str]) -> str:
    """The commands that make anew what is derived of some runs, as words that follow others; nothing for none."""
    each = list(dict.fromkeys(runs))
    if not each:
        return ""
    named = " and ".join(f"`gradspectra derive {run} --again`" for run in each[:MOST_NAMED])
    more = f" (and so for {len(each) - MOST_NAMED} more runs)" if len(each) > MOST_NAMED else ""
    return f"{named} makes what is derived anew{more}"


def derived_damage(store: Store, damaged: Iterable[DamagedPlace]) -> list[str]:
    """Return the runs of which a part of what was derived is damaged, in order."""
    found = {one.run for one in damaged if one.table == derived_segments.name}
    by_id = {one.id: one.run for one in damaged if one.table == blocks.name}
    with store.read() as conn:
        query = sa.select(blocks.c.id).where(blocks.c.id.in_(by_id), blocks.c.derived, blocks.c.rank == 0)
        found.update(by_id[identity] for identity in conn.execute(query).scalars())
    return sorted(found)
