"""Reading several runs beside each other: the figures of the comparison page."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gradspectra.arguments import shown

if TYPE_CHECKING:
    from gradspectra.client import Client


class Comparison:
    """Runs to be compared, as `client.compare` gives them; `runs` are their ids."""

    def __init__(self, client: Client, runs: Iterable[Any]) -> None:
        if isinstance(runs, str):
            raise TypeError(f"runs must be a list of runs or ids, got the string {shown(runs)}")
        self._client = client
        self.runs = tuple(_identity(run) for run in runs)

    def __repr__(self) -> str:
        return f"<Comparison {', '.join(self.runs)}>"

    def figure(self, name: str = "curves", **options: Any) -> Any:
        """Return a figure of the runs: a plotly Figure where plotly is installed, else {"data", "layout"}.

        name: "curves", "difference" (of two runs) or "sweep". options: series, axis, statistic, start, stop, …, as the
        interface takes them.
        """
        return figure_of(self._client.get(f"/comparisons/{quote(name, safe='')}", runs=",".join(self.runs), **options))


def figure_of(answer: Any) -> Any:
    """Make a plotly Figure of a figure's answer where plotly is installed, else return it as it is."""
    try:
        plotly = import_module("plotly.graph_objects")
    except ImportError:
        return answer
    return plotly.Figure(answer)


def _identity(run: Any) -> str:
    """Return the id of a run, or of what says which run it is."""
    found = getattr(run, "id", run)
    if not isinstance(found, str):
        raise TypeError(f"runs must be runs or their ids, got {shown(run)} among them")
    return found
