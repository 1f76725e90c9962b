"""Parameters that several calls share, each described once."""

from __future__ import annotations

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


def names_of(text: str | None) -> list[str]:
    """Split a list of names separated by commas; a comma inside a name is written `\\,`."""
    if not text:
        return []
    parts = text.replace("\\,", "\x00").split(",")
    return [part.replace("\x00", ",").strip() for part in parts if part.strip()]
