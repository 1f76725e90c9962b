"""The spectra whose turn it is at one step: each is taken once the optimizer of its layer has stepped."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Any

import torch
from gradspectra_core.records import SPECTRUM_OF

from gradspectra.flat import OneThread
from gradspectra.spectra import Candidate, Spectra
from gradspectra.step import OpenStep


class SpectraTurn:
    """Takes them, and keeps those that are still to come in the step."""

    def __init__(self) -> None:
        self._due: list[Candidate] | None = None

    def begins(self) -> None:
        """A step begins: what has its turn is still to be planned."""
        self._due = None

    def take(
        self,
        spectra: Spectra,
        step: OpenStep,
        parameters: frozenset[int],
        optimizer: Any = None,
        of: Container[str] = SPECTRUM_OF,
    ) -> None:
        """Take those of these parameters' layers, by identity, into the step.

        optimizer: theirs, None: not known. of: what alone is taken now; before the step no weights or updates are.
        """
        if self._due is None:
            self._due = spectra.due(step.number)
        if not self._due:
            return
        began, started = time.perf_counter(), step.device.start()
        waiting = []
        for candidate in self._due:
            if id(candidate.tensor.parameter) not in parameters or candidate.of not in of:
                waiting.append(candidate)
                continue
            with OneThread(), torch.no_grad():
                spectrum = spectra.take(candidate, step.number, optimizer)
            step.take_in(spectrum)
        self._due = waiting
        step.device.stop("spectra", started)
        step.spectra_cost += time.perf_counter() - began
