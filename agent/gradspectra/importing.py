"""Sends a log that exists already as a recorder would, so that its run is derived and watched like any other."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from gradspectra_core.limits import DEFAULT_LIMITS

from gradspectra.errors import ServerAway
from gradspectra.http_client import HttpClient
from gradspectra.packing import Packer
from gradspectra.record import StepRecord
from gradspectra.recorder_input import COUNTS, MAX_INT64, scalars_and_counts
from gradspectra.run_request import RunRequest
from gradspectra.sender import Sender
from gradspectra.settings import access_token, server_address
from gradspectra.spool import Spool

MEANINGS = {
    "loss": ("train/loss", "train_loss", "training_loss", "loss/train", "Loss/train", "train/loss_step"),
    "eval_loss": ("eval/loss", "val/loss", "val_loss", "valid/loss", "validation_loss", "loss/val", "Loss/val"),
    "learning_rate": ("lr", "train/learning_rate", "train/lr", "lr-AdamW", "lr-Adam", "lr-SGD"),
    "grad_norm": ("train/grad_norm", "gradient_norm", "train/gradient_norm", "grad_2.0_norm_total"),
    "epoch": ("train/epoch",),
}
"""Names with a meaning here, and what other trackers and trainers call them; the first that a log has is taken."""
STEPS_AT_ONCE = 64
PATIENCE = 50.0
"""Seconds without progress after which an import is given up; a wait after a refusal is longer."""
_KEYWORDS = ("step", "layers", "spectra", "time")
"""What a recorder takes under these names is no scalar."""


class BadLog(ValueError):
    """A log that cannot be imported; says which file, where in it, and what stands there."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a log says of one step. time: seconds since 1970, None where it does not say; numbers by the log's names."""

    step: int
    time: float | None
    numbers: Mapping[str, float]


@dataclass(slots=True)
class Survey:
    """What a first look over a whole log found.

    names: in order of appearance. not_whole: name → where its first number stands that is no count, and what it is.
    remarks: what the reader of the import should know.
    """

    steps: int = 0
    first_step: int = 0
    last_step: int = 0
    names: dict[str, None] = field(default_factory=dict)
    not_whole: dict[str, tuple[str, float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def note(self, step: int, numbers: Mapping[str, float], where: str) -> None:
        """Take in some numbers of a step; steps come in order, one step may come in several pieces."""
        self.first_step = self.first_step if self.steps else step
        self.steps += step != self.last_step or not self.steps
        self.last_step = step
        for name, value in numbers.items():
            self.names.setdefault(name)
            if name not in self.not_whole and not (value >= 0 and value.is_integer() and value <= MAX_INT64):
                self.not_whole[name] = where, value


class Log(Protocol):
    """A log of one run."""

    @property
    def path(self) -> Path:
        """The file or folder, as messages name it."""

    @property
    def name(self) -> str:
        """What the run is called if nobody says otherwise."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What the log says of the run's configuration; known after `survey`."""

    def survey(self) -> Survey:
        """Look over all of it; raises BadLog for the first thing that is wrong."""

    def rows(self) -> Iterator[Row]:
        """Give its steps, in order."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a log. refused: batches of up to 64 steps that the server did not take."""

    path: str
    run: str
    url: str
    steps: int
    refused: int
    renamed: dict[str, str]
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a log becomes a run. names: log's name → ours; offset: added to each step; first_step: of the run."""

    names: dict[str, str]
    offset: int
    first_step: int


def plans_of(
    found: Sequence[tuple[Log, Survey]], rename: Mapping[str, str], columns: Sequence[str], offset: int | None
) -> list[tuple[Log, Survey, Plan]]:
    """Decide names and steps of logs that are imported together; those without any number are left out.

    rename: log's name → ours; columns: names that were asked for. offset: None adds 1 where a log counts from 0, as
    steps count from 1 here. Raises BadLog where there is nothing to import, or a name or number does not fit.
    """
    full = [(log, survey) for log, survey in found if survey.names]
    names = {name: None for _, survey in full for name in survey.names}
    path = found[0][0].path
    if not full:
        called = f" called {_listed(columns)} (--columns)" if columns else ""
        raise BadLog(f"{path}: holds no numbers by step{called}, there is nothing to import")
    for option, name in [("--rename", name) for name in rename] + [("--columns", name) for name in columns]:
        if name not in names:
            raise BadLog(f"{path}: there are no numbers called {name!r} ({option}), but {_listed(names)}")
    added = int(any(survey.first_step == 0 for _, survey in full)) if offset is None else offset
    return [(log, survey, _plan(log, survey, rename, added)) for log, survey in full]


def _plan(log: Log, survey: Survey, rename: Mapping[str, str], added: int) -> Plan:
    if len(survey.names) > DEFAULT_LIMITS.max_scalars:
        most = DEFAULT_LIMITS.max_scalars
        raise BadLog(f"{log.path}: has {len(survey.names)} series, at most {most} can be imported; choose by --columns")
    if survey.first_step + added < 1:
        raise BadLog(f"{log.path}: its first step is {survey.first_step}, and steps count from 1; use --step-offset")
    names = _our_names(survey.names, rename)
    of: dict[str, str] = {}
    for name, ours in names.items():
        if of.setdefault(ours, name) != name:
            raise BadLog(f"{log.path}: {of[ours]!r} and {name!r} would both be {ours!r}; use --rename or --columns")
        if not ours or not ours.isprintable() or len(ours) > DEFAULT_LIMITS.max_name:
            raise BadLog(
                f"{log.path}: the name {ours[:80]!r} must be printable and of 1 to 512 characters; use --rename"
            )
        if ours in COUNTS and name in survey.not_whole:
            where, value = survey.not_whole[name]
            raise BadLog(f"{where}: {name!r} becomes {ours!r}, which must be whole and not negative, got {value}")
    return Plan(names, added, survey.first_step + added)


def send(log: Log, survey: Survey, planned: Plan, request: RunRequest, server: str | None = None) -> Imported:
    """Send a log's steps as records of a recorder are sent, but here and now: nothing waits on disk or in a thread.

    Raises ServerAway where the server refuses, or stays away for PATIENCE seconds; the run then counts as failed.
    """
    packer, spool = Packer(planned.first_step - 1), Spool(None)
    http = HttpClient(server_address(server), access_token())
    sender = Sender(http, spool, request, _ignore, kept="the import waits")
    records = _records(islice(log.rows(), survey.steps), planned)  # a log that is still written to may have grown since
    try:
        while some := list(islice(records, STEPS_AT_ONCE)):
            for batch in packer.pack(some):
                spool.append(batch)
            _send_all(sender)
        if not sender.finish("finished"):
            raise ServerAway(f"the end of the run could not be told: {sender.last_error}")
    except BaseException:
        sender.finish("failed")
        raise
    finally:
        http.close()
    remarks = list(survey.remarks)
    if planned.offset:
        remarks.append(f"each step is imported as step {planned.offset:+d}, because steps count from 1")
    run = sender.run or {}
    renamed = {name: ours for name, ours in planned.names.items() if name != ours}
    return Imported(str(log.path), str(run["id"]), str(run["url"]), survey.steps, sender.refused, renamed, remarks)


def _records(rows: Iterable[Row], planned: Plan) -> Iterator[StepRecord]:
    """A step that the log has no time of has that of the step before it; now, where there is none."""
    time: float | None = None
    for row in rows:
        time = time if row.time is None else row.time
        known = {planned.names[name]: value for name, value in row.numbers.items() if name in planned.names}
        numbers, counts = scalars_and_counts(known)
        yield StepRecord(row.step + planned.offset, clock.time() if time is None else time, numbers, counts)


def _send_all(sender: Sender) -> None:
    """Send what waits; raises ServerAway where the server refuses it, or nothing moves for PATIENCE seconds."""
    patient_until = clock.monotonic() + PATIENCE
    while sender.run is None or sender.spool.waiting_bytes:
        if sender.advance():
            patient_until = clock.monotonic() + PATIENCE
        elif sender.next_try > patient_until:
            raise ServerAway(f"the import is not whole: {sender.last_error}")
        else:
            clock.sleep(max(0.0, sender.next_try - clock.monotonic()))


def _ignore(_: dict[str, Any]) -> None:
    """Alerts in the answers are for a running job."""


def merged(pieces: Iterable[Row]) -> Iterator[Row]:
    """Join neighbours of one step; of a number that is there twice the last counts, of the times the first."""
    waiting: Row | None = None
    for piece in pieces:
        if waiting is not None and piece.step == waiting.step:
            time = piece.time if waiting.time is None else waiting.time
            waiting = replace(waiting, time=time, numbers={**waiting.numbers, **piece.numbers})
            continue
        if waiting is not None:
            yield waiting
        waiting = piece
    if waiting is not None:
        yield waiting


def _our_names(names: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Log's name → ours: as told, else by MEANINGS, where no other name of the log has that meaning already."""
    known = list(names)
    found = {name: ours for name, ours in rename.items() if name in known}
    taken = {*found.values(), *(name for name in known if name not in found)}
    for ours, others in MEANINGS.items():
        first = next((name for name in others if name in known and name not in found), None)
        if first is not None and ours not in taken:
            found[first] = ours
            taken.add(ours)
    return {name: found.get(name, f"log/{name}" if name in _KEYWORDS else name) for name in known}


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
