"""What a callback passes on to `gradspectra.watch`, checked when the callback is made."""

from __future__ import annotations

import inspect
from typing import Any

from gradspectra.watch import watch

GIVEN = frozenset(("model", "optimizer"))
"""What the trainer gives."""


def checked_names(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options; raises TypeError for one that watch does not take, and for what the trainer gives."""
    known = [name for name in inspect.signature(watch).parameters if name not in GIVEN]
    for name in options:
        if name in GIVEN:
            raise TypeError(f"{name} must be left out: it is the trainer's own")
        if name not in known:
            raise TypeError(f"{name!r:.100} is no option: take of {', '.join(known)}")
    return options
