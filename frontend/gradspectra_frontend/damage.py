"""What a figure says of steps that could not be read back."""

from __future__ import annotations

from collections.abc import Sequence

from gradspectra_frontend.theme import Figure

MOST_NAMED = 3
"""So many ranges are named, the first ones; of the others it is said how many there are."""

LINE = 18
"""Pixels that a line under the title takes."""


def damage_note(damaged: Sequence[tuple[int, int]]) -> str:
    """Say which ranges of steps, first and last of each, are left out; empty where none are."""
    if not damaged:
        return ""
    named = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in damaged[:MOST_NAMED]]
    if rest := len(damaged) - len(named):
        named.append(f"{rest:,} more ranges" if rest > 1 else "1 more range")
    ranges = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    one = len(damaged) == 1 and damaged[0][0] == damaged[0][1]
    step, are, them = ("step", "is", "it") if one else ("steps", "are", "them")
    return f"{step} {ranges} {are} damaged and left out: gradspectra doctor names {them}"


def tell_damage(figure: Figure, damaged: Sequence[tuple[int, int]]) -> None:
    """Say it under the figure's title, and in `layout.meta.damaged` for the page, which shows a title of its own."""
    note = damage_note(damaged)
    if not note:
        return
    layout = figure["layout"]
    layout["meta"]["damaged"] = note
    layout["title"] = layout["title"] | {"text": f"{layout['title']['text']}<br><sub>{note}</sub>"}
    layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] + LINE}
