"""What the detectors see of one step: the run's numbers and, where it was recorded, one row of layer statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.records import Bool

Numbers = NDArray[Any]
"""(L,) values of one statistic, one per layer."""


@dataclass(frozen=True, slots=True)
class LayerObservation:
    """The layer statistics of one step that the detectors read, for L layers in the order of the layer table.

    grad_sq, grad_max, weight_sq: (L,) floats, grad_nonfinite, act_nonfinite: (L,) integers; None where the statistic
    was not taken at all. `*_present`: (L,) bool, False where this layer has no value; None means that all have one.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...] = ()
    grad_sq: Numbers | None = None
    grad_max: Numbers | None = None
    grad_nonfinite: Numbers | None = None
    weight_sq: Numbers | None = None
    grad_sq_present: Bool | None = None
    grad_max_present: Bool | None = None
    grad_nonfinite_present: Bool | None = None
    weight_sq_present: Bool | None = None
    act_nonfinite: Numbers | None = None
    act_nonfinite_present: Bool | None = None

    @classmethod
    def from_rows(
        cls,
        names: tuple[str, ...],
        roles: tuple[str, ...],
        statistics: Sequence[str],
        values: Numbers,
        present: Bool,
        count_statistics: Sequence[str] = (),
        counts: Numbers | None = None,
        counts_present: Bool | None = None,
    ) -> LayerObservation:
        """Pick the statistics the detectors read out of one step's rows, as records carry them.

        values, present: (K, L) for the K names in `statistics`; counts, counts_present: (J, L) for the J names
        in `count_statistics`. Names that the detectors do not read are left out.
        """
        fields: dict[str, Any] = {}
        for name in ("grad_sq", "grad_max", "weight_sq"):
            if name in statistics:
                row = statistics.index(name)
                fields[name], fields[f"{name}_present"] = values[row], present[row]
        for name in ("grad_nonfinite", "act_nonfinite"):
            if name in count_statistics and counts is not None and counts_present is not None:
                row = count_statistics.index(name)
                fields[name], fields[f"{name}_present"] = counts[row], counts_present[row]
        return cls(names, roles, **fields)

    def total_norm(self) -> float | None:
        """Norm of the whole gradient from the layers' sums of squares; None where no layer has one."""
        if self.grad_sq is None:
            return None
        squares = self.grad_sq if self.grad_sq_present is None else self.grad_sq[self.grad_sq_present]
        with np.errstate(invalid="ignore"):  # of numbers that are none of sums of squares
            return float(np.sqrt(squares.sum(dtype=np.float64))) if squares.size else None


@dataclass(frozen=True, slots=True)
class Observation:
    """One step as the detectors see it.

    None means that the number is absent; NaN and ±inf are values. time: seconds since 1970 by the job's clock.
    grad_norm: before clipping. skipped: the loss scaler found overflow and skipped this step's update. learning_rate:
    of the first parameter group.
    """

    step: int
    time: float = 0.0
    loss: float | None = None
    grad_norm: float | None = None
    update_norm: float | None = None
    layers: LayerObservation | None = None
    skipped: bool = False
    learning_rate: float | None = None

    @property
    def gradient_norm(self) -> float | None:
        """Return grad_norm, or the norm from the layers where only these were recorded."""
        if self.grad_norm is None and self.layers is not None:
            return self.layers.total_norm()
        return self.grad_norm
