"""The argument `layers` of watch: which parameters are watched, and the blocks they are split into, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gradspectra_core.identity import FusedBlock

from gradspectra.arguments import is_called, shown

Choice = Callable[[str], bool | Sequence[FusedBlock]]
"""Whether a parameter is watched, by its name; or the blocks (suffix, axis, start, stop) it is split into."""


def choice_of(layers: str | re.Pattern[str] | Choice | None) -> Choice:
    """Make the argument `layers` of watch a function on names; one that fails raises ValueError with the name.

    Raises ValueError for an invalid regular expression and TypeError for anything else than None, text, a compiled
    expression or a callable.
    """
    if layers is None:
        return lambda _: True
    if isinstance(layers, str):
        try:
            layers = re.compile(layers)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"layers must be a valid regular expression, got {shown(layers)}: {error}") from error
    if isinstance(layers, re.Pattern) and isinstance(layers.pattern, str):
        pattern = layers
        return lambda name: pattern.search(name) is not None
    if not is_called(layers):
        raise TypeError(f"layers must be a regular expression or a callable on names, got {shown(layers)}")
    choose = layers

    def asked(name: str) -> bool | Sequence[FusedBlock]:
        try:
            return choose(name)
        except Exception as error:
            raise ValueError(f"layers must be a callable on names, and failed on {name!r}: {error!r}") from error

    return asked
