"""Whether a bit of a stored bitmap is set, asked in SQL so that rows without it are not fetched."""

from __future__ import annotations

import sqlalchemy as sa


def has_bit(conn: sa.Connection, bitmap: sa.ColumnElement[bytes], place: int) -> sa.ColumnElement[bool]:
    """Whether bit `place` (from 0, the lowest of a byte first) is set; not so past the bitmap's end."""
    at, bit = divmod(place, 8)
    if conn.dialect.name == "postgresql":
        byte = sa.case((sa.func.octet_length(bitmap) > at, sa.func.get_byte(bitmap, at)), else_=0)
        return byte.bitwise_and(1 << bit) != 0
    digits = sa.func.hex(sa.func.substr(bitmap, at + 1, 1))
    of_bit = [digit for value, digit in enumerate("0123456789ABCDEF") if value >> bit % 4 & 1]
    return sa.func.substr(digits, 1 if bit > 3 else 2, 1).in_(of_bit)
