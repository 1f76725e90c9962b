"""Pages of a list: a cursor holds the sort key of the last item given, so that new items shift nothing."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from gradspectra_store.checks import clean_count, unstorable
from gradspectra_store.errors import BadRequest

PAGE = 50
MAX_PAGE = 1000


def page(
    conn: sa.Connection,
    query: sa.Select[Any],
    keys: Sequence[sa.Column[Any]],
    *,
    descending: bool,
    cursor: str | None,
    limit: int,
) -> tuple[Sequence[sa.Row[Any]], str | None]:
    """Run a query for one page of it: the rows, and the cursor of the next page (None at the end).

    keys: columns of the query to sort by, unique together. Raises BadRequest for a cursor that is none of a list in
    this order, and for a limit out of 1 to MAX_PAGE.
    """
    clean_count("limit", limit, least=1, most=MAX_PAGE)
    order = f"{keys[0]} {'desc' if descending else 'asc'}"
    if cursor is not None:
        found = zip(_read(cursor, order, keys), keys, strict=True)
        after = sa.tuple_(*(sa.literal(value, key.type) for value, key in found))
        query = query.where(sa.tuple_(*keys) < after if descending else sa.tuple_(*keys) > after)
    query = query.order_by(*(key.desc() if descending else key.asc() for key in keys))
    rows = conn.execute(query.limit(limit + 1)).all()
    if len(rows) <= limit:
        return rows, None
    values = [order, *(rows[limit - 1]._mapping[key] for key in keys)]
    return rows[:limit], base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def _read(cursor: str, order: str, keys: Sequence[sa.Column[Any]]) -> list[Any]:
    """The sort key that a cursor of a list in this order holds."""
    try:
        given = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(given, list) or len(given) != len(keys) + 1 or given[0] != order:
            raise ValueError("not of a list in this order")
        values = given[1:]
        if not all(map(_fits, values, keys)):
            raise ValueError("values of other types")
    except (ValueError, RecursionError) as error:
        raise BadRequest("cursor", f"is not one that this list gave: {cursor!r:.80}") from error
    return values


def _fits(value: object, key: sa.Column[Any]) -> bool:
    if isinstance(key.type, sa.String):
        return isinstance(value, str) and unstorable(value) is None
    if isinstance(value, bool):
        return False
    if isinstance(key.type, sa.Double):
        return isinstance(value, float) and math.isfinite(value)
    return isinstance(value, int) and abs(value) < 2**63
