"""What a callback passes on to `gradspectra.watch`, checked when the callback is made."""

from __future__ import annotations

import inspect
from typing import Any

from gradspectra.arguments import shown
from gradspectra.options import options as how_to_measure
from gradspectra.transport import Transport
from gradspectra.watch import watch

GIVEN = frozenset(("model", "optimizer"))
"""What the trainer gives."""
SENT = ("server", "token", "project", "config", "tags", "notes", "total_steps", "resume", "spool")


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options; raises what `watch` raises for a wrong value, and TypeError for a name that is no option.

    Hours may pass before the trainer has loaded its data and opens the watch.
    """
    defaults = {name: given.default for name, given in inspect.signature(watch).parameters.items() if name not in GIVEN}
    for name in options:
        if name in GIVEN:
            raise TypeError(f"{name} must be left out: it is the trainer's own")
        if name not in defaults:
            raise TypeError(f"{name!r:.100} is no option: take of {', '.join(defaults)}")
    values = defaults | options
    how_to_measure(**{name: values[name] for name in inspect.signature(how_to_measure).parameters})
    Transport(name=values["run"], **{name: values[name] for name in SENT})  # nothing begins before it is started
    if not isinstance(values["enabled"], bool):
        raise TypeError(f"enabled must be True or False, got {shown(values['enabled'])}")
    return options
