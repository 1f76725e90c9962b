"""The alert rules that run inside the training job, on the numbers it has on the host anyway: no server needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from gradspectra_core.alerts import Finding
from gradspectra_core.catalogue import RULES, identity
from gradspectra_core.detectors import LOCAL_RULES, DetectorSet, LayerObservation, Observation

from gradspectra.record import StepRecord


class LocalRules:
    """Judges each step's record as the server will, so that alerts have the same identity here and there.

    run, attempt: part of that identity; set them once the server has named them (`name`), before that the session's
    own key stands in.
    """

    def __init__(self, run: str = "", attempt: int = 1) -> None:
        self._run = run
        self._attempt = attempt
        self._detectors = DetectorSet(LOCAL_RULES)
        self._open: dict[tuple[str, int], dict[str, Any]] = {}

    def name(self, run: str, attempt: int) -> None:
        """Say how the server named the run; alerts from now on carry it."""
        self._run, self._attempt = run, attempt

    def observe(self, record: StepRecord) -> list[dict[str, Any]]:
        """Return the alerts that this step opens, makes worse or closes, as the objects of the REST interface."""
        return [self._alert(finding, record.time) for finding in self._detectors.observe(observation(record))]

    def _alert(self, finding: Finding, time: float) -> dict[str, Any]:
        key = finding.rule, finding.opened_step
        closing = finding.change == "close"
        before = self._open.pop(key, None) if closing else self._open.get(key)
        text = RULES[finding.rule]
        number = identity(self._run, self._attempt, finding)
        layers = list(finding.layers) or (before["layers"] if before else [])
        alert = {
            "id": number,
            "run": self._run,
            "attempt": self._attempt,
            "incident": number,
            "rule": finding.rule,
            "severity": finding.severity,
            "state": "closed" if closing else "open",
            "layers": layers,
            "first_layer": layers[0] if layers else None,
            "opened_step": finding.opened_step,
            "last_step": finding.step,
            "closed_step": finding.step if closing else None,
            "opened_at": before["opened_at"] if before else time,
            "value": finding.value,
            "threshold": finding.threshold,
            "message": finding.message,
            "meaning": text.meaning,
            "remedy": text.remedy,
            "evidence": finding.evidence,
        }
        if not closing:
            self._open[key] = alert
        return alert


def observation(record: StepRecord) -> Observation:
    """Return what the detectors see of a record."""
    layers = None
    if record.table is not None and (record.values is not None or record.counts_values is not None):
        width = len(record.table)
        values = np.zeros((0, width), np.float32) if record.values is None else record.values
        counts = np.zeros((0, width), np.int64) if record.counts_values is None else record.counts_values
        layers = LayerObservation.from_rows(
            record.table.names,
            (),
            record.statistics if record.values is not None else (),
            values,
            np.ones(values.shape, np.bool_) if record.present is None else record.present,
            record.count_statistics if record.counts_values is not None else (),
            counts,
            np.ones(counts.shape, np.bool_) if record.counts_present is None else record.counts_present,
        )
    return Observation(
        step=record.step,
        time=record.time,
        loss=record.scalars.get("loss"),
        grad_norm=record.scalars.get("grad_norm"),
        update_norm=record.scalars.get("update_norm"),
        layers=layers,
        skipped=bool(record.counts.get("skipped", 0)),
    )
