"""Sends a log that exists already through a Recorder, so that an imported run is derived and watched like any other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from gradspectra_core.limits import DEFAULT_LIMITS

from gradspectra.errors import ServerAway
from gradspectra.recorder import Recorder
from gradspectra.recorder_input import COUNTS, MAX_INT64

MEANINGS = {
    "loss": ("train/loss", "train_loss", "training_loss", "loss/train", "Loss/train", "train/loss_step"),
    "eval_loss": ("eval/loss", "val/loss", "val_loss", "valid/loss", "validation_loss", "loss/val", "Loss/val"),
    "learning_rate": ("lr", "train/learning_rate", "train/lr", "lr-AdamW", "lr-Adam", "lr-SGD"),
    "grad_norm": ("train/grad_norm", "gradient_norm", "train/gradient_norm", "grad_2.0_norm_total"),
    "epoch": ("train/epoch",),
}
"""Names with a meaning here, and what other trackers and trainers call them; the first that a log has is taken."""
_KEYWORDS = ("self", "step", "layers", "spectra", "time")
MOST_WAITING = 2000
"""Steps that may wait to be sent; the reader then waits too, so that the recorder never drops any."""
PATIENCE = 60.0
"""Seconds without an answer after which an import is given up."""


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

    def survey(self) -> Survey:
        """Look over all of it; raises BadLog for the first thing that is wrong."""

    def rows(self) -> Iterator[Row]:
        """Give its steps, in order."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a log. left: steps that are not with the server yet, in the spool."""

    path: str
    run: str | None
    url: str | None
    steps: int
    left: int
    renamed: dict[str, str]
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a log becomes a run. names: log's name → ours; offset: added to each step; first_step: of the run."""

    names: dict[str, str]
    offset: int
    first_step: int


def plan(log: Log, survey: Survey, rename: Mapping[str, str], offset: int | None) -> Plan:
    """Decide names and steps. offset: None adds 1 where the log counts from 0, as steps count from 1 here.

    Raises BadLog where there is nothing to import or a number does not fit its name.
    """
    if not survey.names:
        raise BadLog(f"{log.path}: holds no numbers by step, there is nothing to import")
    for name in rename:
        if name not in survey.names:
            raise BadLog(f"{log.path}: has no {name!r} to rename, but {_listed(survey.names)}")
    if len(survey.names) > DEFAULT_LIMITS.max_scalars:
        most = DEFAULT_LIMITS.max_scalars
        raise BadLog(f"{log.path}: has {len(survey.names)} series, at most {most} can be imported; choose by --columns")
    added = (1 if survey.first_step == 0 else 0) if offset is None else offset
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


def send(log: Log, survey: Survey, planned: Plan, recorder_options: Mapping[str, Any]) -> Imported:
    """Send a log's steps, waiting where the server is slower than the file.

    recorder_options: of Recorder. Raises ServerAway where the server does not take them; what is spooled by then
    `gradspectra sync` sends. Nothing is lost: the log is still there.
    """
    names = planned.names
    recorder = Recorder(**recorder_options)
    try:
        for count, row in enumerate(log.rows()):
            numbers: dict[str, Any] = {names[name]: value for name, value in row.numbers.items() if name in names}
            recorder.record(row.step + planned.offset, time=row.time, **numbers)
            if count % 256 == 255:
                _wait_for_room(recorder)
    except BaseException:
        recorder.close(timeout=1.0, state="failed")
        raise
    recorder.close(timeout=PATIENCE)
    status = recorder.status()
    renamed = {name: ours for name, ours in names.items() if name != ours}
    remarks = list(survey.remarks)
    if planned.offset:
        remarks.append(f"each step is imported as step {planned.offset:+d}, because steps count from 1")
    return Imported(
        str(log.path), recorder.run_id, recorder.url, survey.steps, status["waiting_steps"], renamed, remarks
    )


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
    found = dict(rename)
    taken = {*found.values(), *(name for name in known if name not in found)}
    for ours, others in MEANINGS.items():
        first = next((name for name in others if name in known and name not in found), None)
        if first is not None and ours not in taken:
            found[first] = ours
            taken.add(ours)
    return {name: found.get(name, f"log/{name}" if name in _KEYWORDS else name) for name in known}


def _wait_for_room(recorder: Recorder) -> None:
    """Wait until few enough steps wait; raises ServerAway where nothing moves any more."""
    sent, since = -1, time.monotonic()
    while (status := recorder.status())["waiting_steps"] > MOST_WAITING:
        if status["sent_batches"] != sent:
            sent, since = status["sent_batches"], time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise ServerAway(f"the import stopped: {status['last_error'] or 'the server takes no more steps'}")
        time.sleep(0.02)


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
