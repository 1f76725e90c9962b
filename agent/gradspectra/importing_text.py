"""Logs as text: CSV with a column per series, and JSON with one object a line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from gradspectra_core.jsonform import number_from_json

from gradspectra.importing import BadLog, Row, Survey, merged

Line = tuple[int, Mapping[str, Any]]
"""Number of a line, and what stands in it by name; None for nothing."""


@dataclass(slots=True)
class TextLog:
    """A CSV or JSON-lines file. form: "csv" or "jsonl". A last line that its writer has not finished is left out.

    step_column: name of the column (or key) with the step, a whole number that does not fall. time_column: of the one
    with seconds since 1970 or a date and time. columns: those to import, None for all others. numbers_only: leave out
    what is no number instead of refusing the file.
    """

    path: Path
    form: str
    step_column: str = "step"
    time_column: str | None = None
    columns: tuple[str, ...] | None = None
    numbers_only: bool = False
    _left_out: dict[str, int] = field(default_factory=dict)
    _finished: bool = True
    """Whether the line that was read last has an end."""
    _torn: str = ""

    @property
    def name(self) -> str:
        """Name of the file without its ending."""
        return self.path.stem

    @property
    def config(self) -> dict[str, Any]:
        """Such files say nothing of it."""
        return {}

    def survey(self) -> Survey:
        """Read all of it; raises BadLog for the first thing that is wrong."""
        found = Survey()
        self._left_out.clear()
        for line, row in self._pieces():
            found.note(row.step, row.numbers, f"{self.path}, line {line}")
        for name, count in self._left_out.items():
            found.remarks.append(f"{name!r} is no number on {count} lines and left out there")
        if self._torn:
            found.remarks.append(f"the last line is not finished and left out: {self._torn}")
        return found

    def rows(self) -> Iterator[Row]:
        """Give its steps; lines of one step are one."""
        return merged(row for _, row in self._pieces())

    def _pieces(self) -> Iterator[tuple[int, Row]]:
        last = None
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                lines = self._lines(file)
                for line, entries in _csv_lines(lines, self) if self.form == "csv" else _json_lines(lines, self):
                    row = self._row(line, entries)
                    if last is not None and row.step < last:
                        raise self.wrong(line, self.step_column, f"steps must not fall, got {row.step} after {last}")
                    last = row.step
                    if row.numbers:
                        yield line, row
        except UnicodeDecodeError as error:
            remedy = "unpack it (gunzip) or convert it (iconv -t utf-8) first"
            raise BadLog(f"{self.path}: is not UTF-8 text: {error}; {remedy}") from None
        except OSError as error:
            raise BadLog(f"{self.path}: cannot be read: {error.strerror or error}") from None
        except BadLog as error:
            if self._finished or last is None:
                raise
            self._torn = str(error)

    def _lines(self, file: Iterable[str]) -> Iterator[str]:
        for line in file:
            self._finished = line.endswith(("\n", "\r"))
            yield line

    def _row(self, line: int, entries: Mapping[str, Any]) -> Row:
        if entries.get(self.step_column) is None:
            raise self.wrong(line, self.step_column, "the step is missing; --step-column names another column")
        step = self._number(line, self.step_column, entries[self.step_column])
        if step is None or not step.is_integer() or abs(step) > 2**53:
            raise self.wrong(line, self.step_column, f"must be a whole number, got {entries[self.step_column]!r:.80}")
        moment = None if self.time_column is None else entries.get(self.time_column)
        numbers = {}
        for name, entry in entries.items():
            if entry is None or name in (self.step_column, self.time_column):
                continue
            if self.columns is None or name in self.columns:
                number = self._number(line, name, entry)
                if number is not None:
                    numbers[name] = number
        return Row(int(step), None if moment is None else self._moment(line, moment), numbers)

    def _number(self, line: int, name: str, entry: Any) -> float | None:
        """The number of an entry; None where it is none and such are to be left out."""
        try:
            number = float(entry) if self.form == "csv" else number_from_json(entry)
        except ValueError:
            number = None
        if number is not None:
            return number
        if self.numbers_only and name != self.step_column:
            self._left_out[name] = self._left_out.get(name, 0) + 1
            return None
        remedy = "" if name == self.step_column else "; choose by --columns, or leave such out by --numbers-only"
        raise self.wrong(line, name, f"must be a number, got {entry!r:.80}{remedy}")

    def _moment(self, line: int, entry: Any) -> float:
        try:
            seconds = float(entry)
        except OverflowError:
            seconds = math.inf
        except (TypeError, ValueError):
            try:
                seconds = datetime.fromisoformat(str(entry)).timestamp()
            except (ValueError, OverflowError):
                seconds = math.nan
        if not math.isfinite(seconds):
            raise self.wrong(
                line, self.time_column or "", f"must be seconds since 1970 or a date and time, got {entry!r:.80}"
            )
        return seconds

    def wrong(self, line: int, name: str, what: str) -> BadLog:
        """The error of one entry."""
        return BadLog(f"{self.path}, line {line}, {name!r}: {what}")


def _csv_lines(lines: Iterator[str], log: TextLog) -> Iterator[Line]:
    first = next(lines, "")
    mark = _separator(first, log.step_column)
    reader = csv.reader(chain([first], lines), delimiter=mark, skipinitialspace=True, strict=True)
    head: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadLog(f"{log.path}, line {reader.line_num}: is not CSV: {error}") from None
        if cells is None:
            return
        if not cells:
            continue
        if head is None:
            head = [name.strip() for name in cells]
            _check_head(head, log)
        elif len(cells) != len(head):
            wanted = f"{len(head)} cells as the first line has, got {len(cells)}"
            raise BadLog(f"{log.path}, line {reader.line_num}: must have {wanted}")
        else:
            named = zip(head, cells, strict=True)
            yield reader.line_num, {name: cell.strip() or None for name, cell in named if name}


def _separator(head: str, step_column: str) -> str:
    """What stands between the names in the first line: a comma, else a semicolon or a tab if that gives the step's."""
    for mark in ",;\t":
        with suppress(csv.Error):
            names = next(csv.reader([head], delimiter=mark, skipinitialspace=True), [])
            if step_column in map(str.strip, names):
                return mark
    return ","


def _check_head(head: list[str], log: TextLog) -> None:
    """See that the first line names the columns that are asked for, each once."""
    asked = {"--step-column": log.step_column}
    if log.time_column is not None:
        asked["--time-column"] = log.time_column
    for option, name in [*asked.items(), *(("--columns", name) for name in log.columns or ())]:
        if name not in head:
            has = ", ".join(map(repr, head[:20]))
            raise BadLog(f"{log.path}, line 1: there is no column {name!r} ({option}), but {has}")
    for name in filter(None, head):  # one without a name is the index that pandas writes
        if head.count(name) > 1:
            raise BadLog(f"{log.path}, line 1: two columns are called {name!r}")


def _json_lines(lines: Iterable[str], log: TextLog) -> Iterator[Line]:
    """The objects of JSON lines, or of a list with an object on each line, as `gradspectra export` writes it."""
    listed = False
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or (listed and text == "]"):
            continue
        if number == 1 and text == "[":
            listed = True
            continue
        try:
            entries = json.loads(text.removesuffix(",") if listed else text)
            flat = dict(_flat(entries)) if isinstance(entries, dict) else None
        except (ValueError, RecursionError) as error:
            raise BadLog(f"{log.path}, line {number}: is not JSON: {error}, in {line.strip()[:80]!r}") from None
        if flat is None:
            raise BadLog(f"{log.path}, line {number}: must be an object, got {line.strip()[:80]!r}")
        yield number, flat


def _flat(entries: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values; of an object inside of another with the names joined by `/`."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{inside}{name}/")
        else:
            yield f"{inside}{name}", value
