"""What float64 makes of a layer, beside the row that a pass measures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from gradspectra.updates import Coefficients


def check_row(
    found: Mapping[str, float], arrays: Sequence[np.ndarray[Any, Any]], update: Coefficients, near_zero: float
) -> None:
    """Whether a row says what float64 does of gradient, weight, and Adam's two moments, all finite and none of it zero.

    near_zero: absolute error of ⟨g, w⟩, and a tenth of that of ⟨d, g⟩, sums whose terms may cancel.
    """
    g, w, m, v = (array.astype(np.float64) for array in arrays)
    d = m / (update.scale * np.sqrt(v) + update.epsilon) + update.decay * w
    close = pytest.approx
    assert found["grad_sq"] == found["whole_sq"] == close((g**2).sum(), rel=1e-6)
    assert found["grad_max"] == np.abs(g).max()
    assert found["weight_sq"] == close((w**2).sum(), rel=1e-6)
    assert found["update_sq"] == close((d**2).sum(), rel=1e-5)
    assert found["grad_l1"] == close(np.abs(g).sum(), rel=1e-6)
    assert found["grad_dot_weight"] == close((g * w).sum(), rel=1e-5, abs=near_zero)
    assert found["update_dot_grad"] == close((d * g).sum(), rel=1e-4, abs=10 * near_zero)
    assert found["first_sq"] == close((m**2).sum(), rel=1e-6)
    assert found["second_sum"] == close(v.sum(), rel=1e-6)
    assert found["grad_nonfinite"] == found["grad_zero_rows"] == 0
