"""A row of the table 'what works under what' of docs/agent.md: each is the claim of the tests that carry its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest
from agent.watched_training import assert_close, column
from agent.ways.plain import Expected
from gradspectra.record import StepRecord

Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass(frozen=True)
class Way:
    """One way to train: whether gradients and weights, update_sq, part_sq and the second tier are measured."""

    name: str
    layers: bool = True
    updates: bool = True
    parts: bool = True
    second: bool = True

    def check(
        self,
        record: StepRecord,
        expected: Expected,
        rel: float = 1e-5,
        parts: bool | None = None,
        update: float = 2e-3,
        weights: Sequence[float] | None = None,
        second: bool | None = None,
    ) -> None:
        """The record has the numbers of the plain step, and lacks those that this way does not allow.

        rel, update: tolerated relative error of the gradient's numbers and of update_sq. parts: whether part_sq is
        expected of this very step; by default if the way has it and the step has several parts. weights: of the parts
        in the loss, if not equal. second: whether the second tier's numbers of the gradient are expected of this step;
        by default if the way has them.
        """
        assert_close(column(record, "grad_sq"), expected.grad_sq, rel, 1e-12)
        assert_close(column(record, "grad_max"), expected.grad_max, rel, 1e-9)
        assert_close(column(record, "weight_sq"), expected.weight_sq, 1e-5)
        assert record.scalars["grad_norm"] == pytest.approx(expected.norm, rel=rel)
        assert {0, None} >= set(column(record, "grad_nonfinite").values())
        if self.updates:
            assert_close(column(record, "update_sq"), expected.update_sq, update, 1e-12)
        else:
            assert set(column(record, "update_sq").values()) == {None}
        if self.parts and len(expected.parts) > 1 if parts is None else parts:
            assert_close(column(record, "part_sq"), expected.part_sq(weights), rel, 1e-12)
        else:
            assert set(column(record, "part_sq").values()) == {None}
        if self.second if second is None else second:
            assert_close(column(record, "grad_l1"), expected.grad_l1, rel, 1e-7)
            self._check_products(column(record, "grad_dot_weight"), expected, max(rel, 1e-4))
        else:
            assert "grad_l1" not in record.statistics or set(column(record, "grad_l1").values()) == {None}

    @staticmethod
    def _check_products(measured: dict[str, float | None], expected: Expected, rel: float) -> None:
        """⟨ḡ, W⟩ is right to this part of ‖ḡ‖‖W‖."""
        for name, gradient in expected.gradient.items():
            weight = expected.after[name]
            if gradient is None or weight is None:
                assert measured.pop(name) is None
                continue
            size = float(np.linalg.norm(gradient) * np.linalg.norm(weight))
            assert measured.pop(name) == pytest.approx(float((gradient * weight).sum()), abs=rel * size + 1e-12)
        assert not measured


def way(name: str, **measured: bool) -> Callable[[Test], Test]:
    """Say that a test stands behind the row of this name; its fixture `the_way` gives the claim to be checked."""
    return pytest.mark.way(Way(name, **measured))


@pytest.fixture
def the_way(request: pytest.FixtureRequest) -> Way:
    """The row of the table that this test stands behind."""
    marker = request.node.get_closest_marker("way")
    assert marker is not None, "a test of a way to train is marked with @way(...)"
    found: Way = marker.args[0]
    return found
