"""What the client reads back as arrays, and the way from there to pandas, polars and Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import numpy as np
from gradspectra_core.records import Bool, Float64, Int64
from gradspectra_core.views import Spectrum
from numpy.typing import NDArray

from gradspectra.answers import numbers, place_of, ranges_of, retired_of, spectrum_of

Column = NDArray[Any]


class Table:
    """Columns of one length; subclasses say which in `columns`, and in `missing` where they have no value."""

    def columns(self) -> dict[str, Column]:
        """Return the columns by name, (N,) each: numbers, or objects for texts and lists. A missing number is NaN."""
        raise NotImplementedError

    def missing(self) -> dict[str, Bool]:
        """Return for columns that have missing numbers where these are, (N,) each."""
        return {}

    def metadata(self) -> dict[str, str]:
        """Return what an Arrow table says of itself in its schema's metadata."""
        return {}

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame, NaN where a number is missing; raises ImportError that says what to install."""
        return _library("pandas").DataFrame({name: _plain(column) for name, column in self.columns().items()})

    def to_polars(self) -> Any:
        """Return a polars DataFrame, null where a number is missing; raises ImportError that says what to install."""
        polars = _library("polars")
        frame = polars.DataFrame({name: _plain(column) for name, column in self.columns().items()})
        for name, gone in self.missing().items():
            if gone.any():
                values = [None if lost else value for value, lost in zip(frame[name], gone.tolist(), strict=True)]
                frame = frame.with_columns(polars.Series(name, values, dtype=frame[name].dtype))
        return frame

    def to_arrow(self) -> Any:
        """Return a pyarrow Table, null where a number is missing; raises ImportError that says what to install.

        The metadata of its schema is that of the server's own Arrow streams: `damaged` and `retired` as JSON, and
        `statistic`.
        """
        arrow = _library("pyarrow")
        missing = self.missing()
        columns = {
            name: arrow.array(_plain(column), mask=missing.get(name), from_pandas=False)
            for name, column in self.columns().items()
        }
        return arrow.table(columns, metadata=self.metadata() or None)


@dataclass(frozen=True)
class RunSeries(Table):
    """Scalars of a run over buckets of steps; a bucket is one step as long as all fit.

    steps: (N,) first step of each bucket. mean, min, max, last, nonfinite, present: name → (N,), in float64 but for
    nonfinite (how many values of the bucket are NaN or ±inf) and present (whether it has any value; the floats are
    NaN where not). available: all names the run has. damaged: first and last steps of ranges that the server could
    not read back and that are missing here. x: (N,) where the buckets lie on `axis`. `series["loss"]` is the mean.
    """

    steps: Int64
    mean: dict[str, Float64]
    min: dict[str, Float64]
    max: dict[str, Float64]
    last: dict[str, Float64]
    nonfinite: dict[str, Int64]
    present: dict[str, Bool]
    available: tuple[str, ...]
    damaged: tuple[tuple[int, int], ...] = ()
    axis: str = "step"
    x: Column | None = None

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> RunSeries:
        """Read the answer of GET /runs/{run}/series."""
        steps, axis, x = place_of(answer)
        rows = answer["series"]
        parsed = {
            part: {name: numbers(entry[part]) for name, entry in rows.items()}
            for part in ("mean", "min", "max", "last")
        }
        values = {part: {name: pair[0] for name, pair in entries.items()} for part, entries in parsed.items()}
        return cls(
            steps=steps,
            **values,
            nonfinite={name: np.array(entry["nonfinite"], np.int64) for name, entry in rows.items()},
            present={name: pair[1] for name, pair in parsed["mean"].items()},
            available=tuple(answer.get("available", rows)),
            damaged=ranges_of(answer),
            axis=axis,
            x=x,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the series that are here."""
        return tuple(self.mean)

    def __getitem__(self, name: str) -> Float64:
        if name not in self.mean:
            raise KeyError(f"there is no series {name!r} here, but {', '.join(self.available) or 'none'}")
        return self.mean[name]

    def columns(self) -> dict[str, Column]:
        """`step`, the axis, and for each name its mean under the name itself, `…_min`, `…_max` and `…_nonfinite`.

        A series that is itself called as one of these keeps the name; one that is called `step`, or as the axis, has
        `_value` behind it.
        """
        return _axes(self) | {label: values for label, _, values in self._labelled(("_nonfinite",))}

    def missing(self) -> dict[str, Bool]:
        """The three numbers of each name are missing where it has no value."""
        return {label: ~self.present[name] for label, name, _ in self._labelled(())}

    def _labelled(self, also: Sequence[str]) -> Iterator[tuple[str, str, Column]]:
        """Label, name and values of the columns beside `step`. also: parts beside the three that may be missing."""
        parts: Mapping[str, Mapping[str, Column]]
        parts = {"_min": self.min, "_max": self.max, "_nonfinite": self.nonfinite}
        for name in self.mean:
            yield f"{name}_value" if name in ("step", self.axis) else name, name, self.mean[name]
            for part in ("_min", "_max", *also):
                if name + part not in self.mean:
                    yield name + part, name, parts[part][name]

    def metadata(self) -> dict[str, str]:
        """`damaged`, as JSON."""
        return {"damaged": json.dumps(self.damaged)}


@dataclass(frozen=True)
class RunLayers(Table):
    """One statistic or metric of L layers over N buckets of steps.

    steps: (N,); layers, roles, depths: L entries; mean, min, max, nonfinite, present: (L, N), and damaged, as in
    RunSeries, as are axis and x. retired: first and last step and width of ranges of which the server has only so wide
    buckets left.
    """

    statistic: str
    steps: Int64
    layers: tuple[str, ...]
    roles: tuple[str, ...]
    depths: tuple[int, ...]
    mean: Float64
    min: Float64
    max: Float64
    nonfinite: Int64
    present: Bool
    damaged: tuple[tuple[int, int], ...] = ()
    retired: tuple[tuple[int, int, int], ...] = ()
    axis: str = "step"
    x: Column | None = None

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> RunLayers:
        """Read the answer of GET /runs/{run}/layers/{statistic}."""
        steps, axis, x = place_of(answer)
        shape = len(answer["layers"]), len(answer["x"])
        parts: dict[str, Float64] = {}
        present = np.zeros(shape, np.bool_)
        for part in ("mean", "min", "max"):
            parts[part] = np.full(shape, np.nan)
            for index, row in enumerate(answer[part]):
                parts[part][index], present[index] = numbers(row)
        return cls(
            statistic=answer["statistic"],
            steps=steps,
            layers=tuple(answer["layers"]),
            roles=tuple(answer["roles"]),
            depths=tuple(answer["depths"]),
            **parts,
            nonfinite=np.array(answer["nonfinite"], np.int64).reshape(shape),
            present=present,
            damaged=ranges_of(answer),
            retired=retired_of(answer),
            axis=axis,
            x=x,
        )

    def __getitem__(self, layer: str) -> Float64:
        if layer not in self.layers:
            raise KeyError(f"there is no layer {layer!r} here, but {', '.join(self.layers) or 'none'}")
        return np.asarray(self.mean[self.layers.index(layer)])

    def columns(self) -> dict[str, Column]:
        """One row per layer and bucket with a value: `step`, the axis, `layer`, `mean`, `min`, `max`, `nonfinite`."""
        layer, at = np.nonzero(self.present)
        return {
            **{name: places[at] for name, places in _axes(self).items()},
            "layer": np.array(self.layers, object)[layer],
            **{part: getattr(self, part)[layer, at] for part in ("mean", "min", "max", "nonfinite")},
        }

    def metadata(self) -> dict[str, str]:
        """`statistic`, and `damaged` and `retired` as JSON."""
        said = {"damaged": json.dumps(self.damaged), "retired": json.dumps(self.retired)}
        return {"statistic": self.statistic} | said


class RunSpectra(list[Spectrum], Table):
    """Spectra of one layer by step.

    retired: first and last step and width of ranges of which the server has one left in so many steps. damaged: first
    and last steps of ranges that it could not read back. x: (N,) where each lies on `axis`.
    """

    retired: tuple[tuple[int, int, int], ...] = ()
    damaged: tuple[tuple[int, int], ...] = ()
    axis: str = "step"
    x: Column | None = None

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> RunSpectra:
        """Read the answer of GET /runs/{run}/spectra."""
        spectra = cls(spectrum_of(item) for item in answer["items"])
        spectra.retired = retired_of(answer)
        spectra.damaged = ranges_of(answer)
        spectra.axis = answer.get("axis", "step")
        spectra.x = np.array(answer["x"]) if "x" in answer else None
        return spectra

    def columns(self) -> dict[str, Column]:
        """One row per spectrum: all members by their names, and the axis, where it is not the step, as the first.

        `index` and `singular_values` are arrays in the cells.
        """
        place = {} if self.axis == "step" or self.x is None else {self.axis: self.x}
        rows = {field.name: _column([getattr(one, field.name) for one in self]) for field in fields(Spectrum)}
        return place | rows

    def metadata(self) -> dict[str, str]:
        """`damaged` and `retired`, as JSON."""
        return {"damaged": json.dumps(self.damaged), "retired": json.dumps(self.retired)}


def _axes(of: RunSeries | RunLayers) -> dict[str, Column]:
    """The columns that say where a row lies."""
    return {"step": of.steps} if of.axis == "step" or of.x is None else {"step": of.steps, of.axis: of.x}


def _column(entries: list[Any]) -> Column:
    """Numbers as an array of them, texts and arrays as an array of objects."""
    if entries and isinstance(entries[0], (int, float)):
        return np.array(entries)
    column = np.empty(len(entries), object)
    for at, entry in enumerate(entries):
        column[at] = entry
    return column


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ImportError(f"this needs {name}, which is not installed: pip install {name}") from None


def _plain(column: Column) -> Any:
    """The form that all libraries read alike: lists of texts or of lists, else the array."""
    if column.dtype != object:
        return column
    return [entry.tolist() if isinstance(entry, np.ndarray) else entry for entry in column]
