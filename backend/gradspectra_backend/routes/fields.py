"""Parameters that several calls share, each described once."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Path, Query

LARGEST_STEP = 2**53

RunId = Annotated[str, Path(max_length=64, description="Identity of the run.")]
Start = Annotated[int | None, Query(ge=0, le=LARGEST_STEP, description="First step asked for; from the beginning.")]
Stop = Annotated[int | None, Query(ge=0, le=LARGEST_STEP, description="Step to stop before; to the end.")]
Columns = Annotated[
    int, Query(ge=1, le=10_000, description="At most about this many buckets of steps; fewer steps come as they are.")
]
Attempt = Annotated[
    int | None, Query(ge=1, le=2**31 - 1, description="Only what this attempt recorded; else the newest of each step.")
]
Limit = Annotated[int, Query(ge=1, le=500, description="Entries per page.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next` of the page before.")]


_ESCAPED = re.compile(r"\\([,\\ ])")
_HELD = {",": "\x00", "\\": "\x01", " ": "\x02"}
"""What stands for a character that was escaped: names hold none of these."""
_GIVEN = {ord(held): given for given, held in _HELD.items()}


def names_of(text: str | None) -> list[str]:
    """Split a list of names separated by commas, with spaces around them or not.

    A comma inside a name is written `\\,`, a space at its beginning or end `\\ `, and a backslash before one of
    these, before another backslash or at the end `\\\\`.
    """
    held = _ESCAPED.sub(lambda found: _HELD[found[1]], text or "")
    return [part.strip().translate(_GIVEN) for part in held.split(",") if part.strip()]
