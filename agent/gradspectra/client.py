"""Reading runs back: lists, series, layers, spectra, suggestions, alerts and figures, as numpy arrays and objects."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from gradspectra_core.views import Spectrum

from gradspectra.http_client import HttpClient
from gradspectra.learning_rates import groups_of
from gradspectra.settings import access_token, server_address
from gradspectra.tables import RunLayers, RunSeries, numbers

Json = dict[str, Any]
PAGE = 100


class Client:
    """Reads from a server. server, token: from the environment where None. May be used by several threads.

    Every call raises ServerAway where no answer came (OSError family: ConnectionError), and ServerRefused with the
    problem document's members where the server refused.
    """

    def __init__(self, server: str | None = None, token: str | None = None, timeout: float = 30.0) -> None:
        self._http = HttpClient(server_address(server), access_token(token), timeout)
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
        """Return one run by its id."""
        return Run(self, self.get(f"/runs/{quote(run, safe='')}"))

    def projects(self) -> list[Json]:
        """Return the projects with their numbers of runs."""
        return list(self._items("/projects", {}, None))

    def alerts(self, *, state: str | None = None, since: float | None = None, limit: int | None = None) -> list[Json]:
        """Return alerts of all runs, newest first. since: seconds since 1970; state: open, acknowledged or closed."""
        return list(self._items("/alerts", {"state": state, "since": since}, limit))

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON that GET of a path below /api/v1 answers; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        with self._lock:
            return self._http.call("GET", f"{path}?{urlencode(given)}" if given else path)

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        with self._lock:
            self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _items(self, path: str, query: Json, limit: int | None) -> Iterator[Json]:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        cursor, left = None, limit
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
    ) -> RunSeries:
        """Return scalars and run-level metrics over the steps from start up to (not with) stop.

        names: none for all. At most about `columns` buckets; fewer steps come as they are. A name that the run does
        not have is left out: see `available` of the result.
        """
        wanted = _joined(names) if names else None
        answer = self._read("/series", names=wanted, start=start, stop=stop, columns=columns, attempt=attempt)
        return RunSeries.from_json(answer)

    def layers(
        self,
        statistic: str,
        *,
        start: int | None = None,
        stop: int | None = None,
        columns: int = 1000,
        layers: Sequence[str] | None = None,
        attempt: int | None = None,
    ) -> RunLayers:
        """Return one statistic or metric of all layers (or of those named) over steps, as in `series`."""
        names = None if layers is None else _joined(layers)
        path = f"/layers/{quote(statistic, safe='')}"
        return RunLayers.from_json(
            self._read(path, start=start, stop=stop, columns=columns, layers=names, attempt=attempt)
        )

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
    ) -> list[Spectrum]:
        """Return spectra of one layer, evenly spread if there are more than `columns`. step: only of that step."""
        if step is not None:
            start, stop = step, step + 1
        query = {"layer": layer, "start": start, "stop": stop, "columns": columns, "of": of, "attempt": attempt}
        return [_spectrum(item) for item in self._read("/spectra", **query)["items"]]

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

    def figure(self, name: str, **options: Any) -> Json:
        """Return a figure of the dashboard as Plotly's {"data", "layout"}. options: theme, statistic, layer, step, …"""
        figure: Json = self._read(f"/figures/{quote(name, safe='')}", **options)
        return figure

    def _read(self, path: str, **query: Any) -> Any:
        return self._client.get(self._path + path, **query)


def _joined(names: Sequence[str]) -> str:
    if isinstance(names, str):
        raise TypeError(f"names must be a list of names, got the string {names!r}")
    return ",".join(name.replace(",", "\\,") for name in names)


def _spectrum(item: Json) -> Spectrum:
    values, _ = numbers(item["singular_values"])
    whole: Json = {name: int(item[name]) for name in ("step", "attempt", "rows", "columns", "k90", "k99")}
    floats: Json = {name: float(item[name]) for name in ("nuclear", "frobenius_sq", "operator", "fourth", "entropy")}
    return Spectrum(
        layer=item["layer"],
        of=item["of"],
        method=item["method"],
        index=np.array(item["index"], np.int64),
        singular_values=values,
        **floats,
        **whole,
    )
