"""Which layers of a run a question is about: by name, regular expression, role or depth."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Query
from gradspectra_core.layers import ROLES
from gradspectra_core.records import Bool
from gradspectra_core.views import LayerSeries
from gradspectra_store import Store, read
from sqlalchemy import Connection

from gradspectra_backend.patterns import MAX_PATTERN, matching
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import names_of
from gradspectra_backend.routes.runs import run_object

_DEPTH = r"(?:-1|\d{1,6}(?:-\d{1,6})?)"
DEPTHS: dict[str, Any] = {"pattern": f"^{_DEPTH}(,{_DEPTH})*$"}
"""What OpenAPI says of a list of depths."""


class LayerChoice:
    """What the question says; a layer must fit all of it."""

    def __init__(
        self,
        layers: Annotated[
            str | None, Query(max_length=60_000, description="Names separated by commas; all if left out.")
        ] = None,
        pattern: Annotated[
            str | None,
            Query(max_length=MAX_PATTERN, description="Regular expression (Python's) to be found in the name."),
        ] = None,
        role: Annotated[str | None, Query(max_length=500, description="Roles separated by commas, as q,k,v.")] = None,
        depth: Annotated[
            str | None,
            Query(
                max_length=500,
                json_schema_extra=DEPTHS,
                description="Depths and ranges, as 0,4-7; -1 is outside of blocks.",
            ),
        ] = None,
    ) -> None:
        self.names = names_of(layers) or None
        self.pattern = pattern or None
        self.roles = names_of(role)
        self.depths = [_range(part) for part in names_of(depth)]

    @property
    def given(self) -> set[str]:
        """Names of the parameters that say something."""
        said = {"layers": self.names, "pattern": self.pattern, "role": self.roles, "depth": self.depths}
        return {name for name, value in said.items() if value}

    @property
    def filtered(self) -> bool:
        """Whether anything but names was said."""
        return bool(self.given - {"layers"})

    def of(self, conn: Connection, run: str) -> list[str] | None:
        """Return the names of the layers that fit, None for all; those named but unknown are left to the reader.

        Raises Problem 422 for a role there is not, and as `patterns.matching` does.
        """
        for role in self.roles:
            if role not in ROLES:
                raise Problem("bad-request", f"role: must be of {', '.join(ROLES)}, got {role[:80]!r}", field="role")
        if not self.filtered:
            return self.names
        known = {layer["name"]: layer for layer in read.layer_list(conn, run)}
        unknown = [name for name in self.names or () if name not in known]
        found = [name for name in (self.names or known) if name in known and self._fits(known[name])]
        return unknown + (matching(self.pattern, found) if self.pattern else found)

    def shown(self, values: LayerSeries) -> LayerSeries:
        """Leave out layers that were not named and have no number at all."""
        if self.names is not None or not self.filtered:
            return values
        keep: Bool = np.any(values.present, axis=1)
        rows = np.flatnonzero(keep).tolist()
        return replace(
            values,
            layers=tuple(values.layers[row] for row in rows),
            roles=tuple(values.roles[row] for row in rows),
            depths=tuple(values.depths[row] for row in rows),
            mean=values.mean[keep],
            min=values.min[keep],
            max=values.max[keep],
            nonfinite=values.nonfinite[keep],
            present=values.present[keep],
        )

    def _fits(self, layer: dict[str, object]) -> bool:
        if self.roles and layer["role"] not in self.roles:
            return False
        return not self.depths or any(layer["depth"] in depths for depths in self.depths)


def chosen_layers(store: Store, run: str, choice: LayerChoice) -> list[str] | None:
    """The layers that fit, None for all, found before the turn for a large answer: an expression may take a second."""
    if not choice.filtered:
        return choice.names
    with store.read() as conn:
        run_object(conn, run)
        return choice.of(conn, run)


def _range(text: str) -> range:
    """The depths that one part of a list means; raises Problem 422 where it means none."""
    if not re.fullmatch(_DEPTH, text, re.ASCII):
        said = f"depth: must be depths and ranges of them, as 0,4-7 (-1 is outside of the blocks), got {text[:80]!r}"
        raise Problem("bad-request", said, field="depth")
    first, _, last = text.rpartition("-") if not text.startswith("-") else ("", "", text)
    depths = range(int(first or last), int(last) + 1)
    if not depths:
        raise Problem("bad-request", f"depth: a range must not go backwards, got {text!r}", field="depth")
    return depths


Choice = Annotated[LayerChoice, Depends()]
