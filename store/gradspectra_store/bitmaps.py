"""Bitmaps of layers: made, and asked for a bit in SQL so that rows without it are not fetched."""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa
from gradspectra_core.records import Int64


def members_of(layers: Int64) -> bytes:
    """Return one bit per layer up to the highest of `layers`, which are set."""
    members = np.zeros(int(layers.max()) + 1, np.bool_)
    members[layers] = True
    return np.packbits(members, bitorder="little").tobytes()


def has_bit(conn: sa.Connection, bitmap: sa.ColumnElement[bytes], place: int) -> sa.ColumnElement[bool]:
    """Whether bit `place` (from 0, the lowest of a byte first) is set; not so past the bitmap's end."""
    at, bit = divmod(place, 8)
    if conn.dialect.name == "postgresql":
        byte = sa.case((sa.func.octet_length(bitmap) > at, sa.func.get_byte(bitmap, at)), else_=0)
        return byte.bitwise_and(1 << bit) != 0
    digits = sa.func.hex(sa.func.substr(bitmap, at + 1, 1))
    of_bit = [digit for value, digit in enumerate("0123456789ABCDEF") if value >> bit % 4 & 1]
    return sa.func.substr(digits, 1 if bit > 3 else 2, 1).in_(of_bit)
