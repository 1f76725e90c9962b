"""The registry of named numbers: nothing doubled, everything described, and the metrics computed on read."""

import subprocess
import sys

import numpy as np
import pytest
from gradspectra_core.statistics import METRICS, RUN_METRICS, SCALARS, STATISTICS

REGISTRIES = {"SCALARS": SCALARS, "STATISTICS": STATISTICS, "METRICS": METRICS, "RUN_METRICS": RUN_METRICS}


@pytest.mark.parametrize("registry", REGISTRIES)
def test_entries_stand_under_their_name_with_scope_type_and_one_sentence(registry: str):
    for name, entry in REGISTRIES[registry].items():
        assert entry.name == name
        assert entry.scope == ("run" if registry in ("SCALARS", "RUN_METRICS") else "layer")
        assert entry.dtype in ("float32", "float64", "int64")
        assert entry.description.endswith(".")
        assert len(entry.description) <= 110


def test_a_layer_or_run_number_is_measured_or_derived_but_not_both():
    assert not set(STATISTICS) & set(METRICS)
    assert not set(SCALARS) & set(RUN_METRICS)


def test_counts_are_whole_numbers():
    whole = {name for name, entry in {**SCALARS, **STATISTICS}.items() if entry.dtype == "int64"}
    assert whole == {
        "examples", "parts", "tokens", "skipped", "cadence_layers", "cadence_second", "cadence_spectra",
        "grad_nonfinite", "grad_zero_rows",
    }  # fmt: skip


def test_metrics_on_read_are_functions_of_statistics():
    on_read = {name: metric for name, metric in METRICS.items() if metric.function}
    assert set(on_read) == {"grad_norm", "weight_norm", "update_norm", "update_ratio", "drift_norm", "drift_ratio"}
    for metric in on_read.values():
        assert set(metric.inputs) <= set(STATISTICS)
    numbers = np.array([[9, 0, np.inf, np.nan, -1]], np.float32)
    assert on_read["grad_norm"].function(numbers)[0] == pytest.approx([3, 0, np.inf, np.nan, np.nan], nan_ok=True)
    ratio = on_read["update_ratio"].function(np.array([4, 1, 0], np.float32), np.array([16, 0, 0], np.float32))
    assert ratio == pytest.approx([0.5, np.inf, np.nan], nan_ok=True)
    assert ratio.dtype == np.float64
    assert on_read["drift_ratio"].function(np.float32([2]), np.float32([8])) == pytest.approx([0.5])


def test_importing_core_loads_numpy_and_nothing_else_from_outside():
    code = (
        "import sys; before = set(sys.modules); import gradspectra_core.wire, gradspectra_core.jsonform, "
        "gradspectra_core.noise, gradspectra_core.multipliers, gradspectra_core.buckets, gradspectra_core.statistics, "
        "gradspectra_core.spectrum, gradspectra_core.identity; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(n for n in new if n not in sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['gradspectra_core', 'numpy']"
