"""Reading runs back: lists, series, layers, spectra, suggestions, alerts, figures and files; arrays and objects."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from gradspectra.arguments import is_real, shown, whole
from gradspectra.comparing import Comparison, figure_of
from gradspectra.files import EXPORT_FORMATS, write_whole
from gradspectra.http_client import HttpClient
from gradspectra.learning_rates import groups_of
from gradspectra.settings import access_token, server_address
from gradspectra.tables import RunLayers, RunSeries, RunSpectra

Json = dict[str, Any]
PAGE = 100


class Client:
    """Reads from a server. server, token: from the environment where None. May be used by several threads.

    timeout: seconds without a byte of an answer. Raises TypeError or ValueError for a wrong argument. Every call raises
    ServerAway where no answer came (OSError family: ConnectionError), and ServerRefused with the problem document's
    members where the server refused; none waits for a server that is away or busy.
    """

    def __init__(self, server: str | None = None, token: str | None = None, timeout: float = 30.0) -> None:
        if not is_real(timeout) or not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout must be a number of seconds above 0, got {shown(timeout)}")
        self._connected_to = server_address(server), access_token(token), float(timeout)
        self._http = HttpClient(*self._connected_to)
        self._lock = threading.Lock()

    @property
    def server(self) -> str:
        """Address of the server."""
        return self._http.server

    def runs(
        self,
        *,
        project: str | None = None,
        state: str | None = None,
        health: str | None = None,
        tag: str | None = None,
        search: str | None = None,
        order: str | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """Return the runs that fit all filters, newest first unless `order` says otherwise; at most limit of them."""
        query = {"project": project, "state": state, "health": health, "tag": tag, "search": search, "order": order}
        return [Run(self, members) for members in self._items("/runs", query, limit)]

    def run(self, run: str) -> Run:
        """Return one run by its id; raises TypeError where that is no text."""
        if not isinstance(run, str):
            raise TypeError(f"run must be the id of a run, got {shown(run)}")
        return Run(self, self.get(f"/runs/{quote(run, safe='')}"))

    def projects(self) -> list[Json]:
        """Return the projects with their numbers of runs."""
        return list(self.get("/projects")["items"])

    def alerts(self, *, state: str | None = None, since: float | None = None, limit: int | None = None) -> list[Json]:
        """Return alerts of all runs, newest first. since: seconds since 1970; state: open, acknowledged or closed."""
        return list(self._items("/alerts", {"state": state, "since": since}, limit))

    def rules(self) -> list[Json]:
        """Return the rules that every run is watched by: severity, meaning, remedy, what each needs, thresholds."""
        return list(self.get("/rules")["items"])

    def compare(self, runs: Iterable[Run | str]) -> Comparison:
        """Return runs, or ids of runs, to be drawn beside each other: `client.compare([a, b]).figure("curves")`."""
        return Comparison(self, runs)

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON that GET of a path below /api/v1 answers; parameters that are None are left out."""
        with self._lock:
            return self._http.call("GET", _with_query(path, query))

    def parts(self, path: str, **query: Any) -> Iterator[bytes]:
        """Give the body of a GET below /api/v1 as it comes, over a connection of its own."""
        return HttpClient(*self._connected_to).parts(_with_query(path, query))

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        with self._lock:
            self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _items(self, path: str, query: Json, limit: int | None) -> Iterator[Json]:
        cursor, left = None, None if limit is None else whole("limit", limit, 1)
        while left is None or left > 0:
            page = self.get(path, **query, cursor=cursor, limit=PAGE if left is None else min(left, PAGE))
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return
            left = None if left is None else left - len(page["items"])


class Run:
    """One run as it was when it was read; `info` has all its members, the common ones are attributes too."""

    def __init__(self, client: Client, info: Json) -> None:
        self._client = client
        self._path = f"/runs/{quote(info['id'], safe='')}"
        self.info = info
        self.id: str = info["id"]
        self.project: str = info["project"]
        self.name: str = info["name"]
        self.state: str = info["state"]
        self.health: str = info["health"]
        self.config: Json = info["config"]
        self.last_step: int = info["last_step"]

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.project}/{self.name} {self.state} {self.health} step {self.last_step}>"

    def refresh(self) -> Run:
        """Read the run again; returns a new object."""
        return self._client.run(self.id)

    def series(
        self,
        *names: str,
        start: int | None = None,
        stop: int | None = None,
        columns: int = 1000,
        attempt: int | None = None,
        axis: str = "step",
    ) -> RunSeries:
        """Return scalars and run-level metrics over the steps from start up to (not with) stop.

        names: none for all. At most about `columns` buckets; fewer steps come as they are. A name that the run does
        not have is left out: see `available` of the result. attempt: that one by itself; None joins all. axis: what
        `x` of the result counts, "step", "tokens", "time" or "fraction"; start and stop are steps whatever it is.
        """
        wanted = _joined(names) if names else None
        query = {"start": start, "stop": stop, "columns": columns, "attempt": attempt, "axis": axis}
        return RunSeries.from_json(self._read("/series", names=wanted, **query))

    def layers(
        self,
        statistic: str,
        *,
        start: int | None = None,
        stop: int | None = None,
        columns: int = 1000,
        layers: Sequence[str] | None = None,
        pattern: str | None = None,
        role: str | None = None,
        depth: int | str | None = None,
        attempt: int | None = None,
        axis: str = "step",
    ) -> RunLayers:
        """Return one statistic or metric of all layers over steps, as in `series`.

        layers, pattern, role, depth: of those alone that are named so, in whose names the regular expression is found,
        and that have one of the roles ("q,k,v") and depths (3, or "0,4-7"; -1 is outside of the blocks).
        """
        query = {"start": start, "stop": stop, "columns": columns, "attempt": attempt, "axis": axis}
        chosen = _choice(layers, pattern, role, depth)
        return RunLayers.from_json(self._read(f"/layers/{quote(statistic, safe='')}", **query, **chosen))

    def layer_list(self) -> list[Json]:
        """Return the layers: name, role, depth, shape, since which step, and whether they have spectra."""
        return list(self._read("/layers")["items"])

    def spectra(
        self,
        layer: str,
        *,
        step: int | None = None,
        start: int | None = None,
        stop: int | None = None,
        columns: int = 100,
        of: str = "gradient",
        attempt: int | None = None,
        axis: str = "step",
    ) -> RunSpectra:
        """Return a list of spectra of one layer, evenly spread if there are more than `columns`.

        step: only of that step. of: "gradient", "weight" or "update". attempt, axis: as in `series`.
        """
        if step is not None:
            start, stop = step, step + 1
        query = {"start": start, "stop": stop, "columns": columns, "of": of, "attempt": attempt, "axis": axis}
        return RunSpectra.from_json(self._read("/spectra", layer=layer, **query))

    def suggestions(self) -> list[Json]:
        """Return what the server suggests, with evidence and confidence."""
        return list(self._read("/suggestions")["items"])

    def parameter_groups(self, model: Any) -> list[Json]:
        """Return the model's trainable parameters in groups for a PyTorch optimizer, by suggested multiplier.

        Each group: params, layers (their names), multiplier, and lr (the run's last learning rate times the
        multiplier) where the run has recorded one. Layers without enough evidence have multiplier 1. Nothing is
        applied: hand the groups to the optimizer yourself. Raises ValueError where no parameter's name is known.
        """
        rates = self.series("learning_rate", columns=1)
        rate = float(rates.last["learning_rate"][-1]) if rates.last.get("learning_rate") is not None else None
        return groups_of(model, self.suggestions(), {layer["name"] for layer in self.layer_list()}, rate)

    def alerts(self, *, state: str | None = None, since: float | None = None, limit: int | None = None) -> list[Json]:
        """Return alerts of this run, newest first."""
        query = {"state": state, "since": since}
        return list(self._client._items(f"{self._path}/alerts", query, limit))

    def attempts(self) -> list[Json]:
        """Return the attempts of this run."""
        return list(self._read("/attempts")["items"])

    def gaps(self) -> list[Json]:
        """Return the ranges of steps of which something was dropped before sending."""
        return list(self._read("/gaps")["items"])

    def figure(self, name: str, **options: Any) -> Any:
        """Return a figure of the dashboard: a plotly Figure where plotly is installed, else {"data", "layout"}.

        options: theme, statistic, layer, step, axis, attempt, …, as the interface takes them.
        """
        return figure_of(self._read(f"/figures/{quote(name, safe='')}", **options))

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        what: str = "series",
        names: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        pattern: str | None = None,
        role: str | None = None,
        depth: int | str | None = None,
        of: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        attempt: int | None = None,
        skip_damaged: bool = False,
    ) -> Path:
        """Write every recorded step to a file, whole or not at all; returns its path.

        format: "csv", "json", "parquet" or "arrow"; by the end of the file's name where not given. what: "series",
        "layers" or "spectra". names: series or statistics; layers, pattern, role, depth: which layers, as in `layers`;
        of: spectra of which matrix; all where not given. skip_damaged: leave out what the server cannot read back
        instead of failing. Raises ValueError for a format there is not, and OSError where the file cannot be written.
        """
        file = Path(path)
        form = file.suffix.removeprefix(".").lower() if format is None else format
        if form not in EXPORT_FORMATS:
            raise ValueError(f"format must be one of {', '.join(EXPORT_FORMATS)}, got {form!r} for {file.name!r}")
        write_whole(
            file,
            self.export_parts(
                format=form,
                what=what,
                names=None if names is None else _joined(names),
                **_choice(layers, pattern, role, depth),
                of=of,
                start=start,
                stop=stop,
                attempt=attempt,
                skip_damaged="true" if skip_damaged else None,
            ),
        )
        return file

    def export_parts(self, **query: Any) -> Iterator[bytes]:
        """Give the file of GET /runs/{run}/export as it comes; query: its parameters as they are sent."""
        return self._client.parts(f"{self._path}/export", **query)

    def _read(self, path: str, **query: Any) -> Any:
        return self._client.get(self._path + path, **query)


_ESCAPED = re.compile(r"\\(?=[\\, ]|$)|,|^ | $")
"""What in a name has a backslash before it where names are separated by commas."""


def _joined(names: Sequence[str]) -> str:
    if isinstance(names, str):
        raise TypeError(f"names must be a list of names, got the string {shown(names)}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"names must be a list of names, got {shown(name)} among them")
    return ",".join(_ESCAPED.sub(r"\\\g<0>", name) for name in names)


def _choice(layers: Sequence[str] | None, pattern: str | None, role: str | None, depth: int | str | None) -> Json:
    """Say which layers a question is about, as the interface takes it."""
    names = None if layers is None else _joined(layers)
    return {"layers": names, "pattern": pattern, "role": role, "depth": depth}


def _with_query(path: str, query: Json) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
