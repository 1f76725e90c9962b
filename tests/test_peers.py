"""The benchmark beside other trackers runs without them, and says what it left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_trackers_that_are_not_installed_are_left_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("mlflow", "trackio", "aim"):
        monkeypatch.setitem(sys.modules, name, None)
    import peers

    found = peers.others(1)
    assert list(found) == ["mlflow", "trackio", "aim"]
    for name, said in found.items():
        assert said.startswith(f"not measured: {name} cannot be imported here (")
    assert {len(row) for row in peers.numbers(2)} == {2800}
