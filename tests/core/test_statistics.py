"""The registry of named numbers: nothing doubled, everything described, and the metrics computed on read."""

import subprocess
import sys

import numpy as np
import pytest
import reference
from gradspectra_core.statistics import METRICS, RUN_METRICS, SCALARS, STATISTICS, rotation

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
        "device_memory_bytes", "device_memory_peak_bytes", "process_memory_bytes",
        "grad_nonfinite", "grad_zero_rows", "act_nonfinite",
    }  # fmt: skip


def test_metrics_on_read_are_functions_of_statistics():
    on_read = {name: metric for name, metric in METRICS.items() if metric.function}
    assert set(on_read) == {
        "grad_norm", "weight_norm", "update_norm", "update_ratio", "drift_norm", "drift_ratio", "rotation",
    }  # fmt: skip
    for metric in on_read.values():
        assert set(metric.inputs) <= set(STATISTICS)
    numbers = np.array([[9, 0, np.inf, np.nan, -1]], np.float32)
    assert on_read["grad_norm"].function(numbers)[0] == pytest.approx([3, 0, np.inf, np.nan, np.nan], nan_ok=True)
    ratio = on_read["update_ratio"].function(np.array([4, 1, 0], np.float32), np.array([16, 0, 0], np.float32))
    assert ratio == pytest.approx([0.5, np.inf, np.nan], nan_ok=True)
    assert ratio.dtype == np.float64
    assert on_read["drift_ratio"].function(np.float32([2]), np.float32([8])) == pytest.approx([0.5])


def test_what_is_stored_of_layers_is_float32_and_what_is_computed_or_of_the_run_float64():
    stored = {"effective_rank", "stable_rank", "participation_ratio", "noise_scale"}
    assert {name for name, metric in METRICS.items() if metric.dtype == "float32"} == stored
    assert {metric.dtype for metric in RUN_METRICS.values()} == {"float64"}


def turned(angle: float, size: float = 1.0, entries: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """A start and the weights after turning by an angle and growing to `size` times, in float64."""
    rng = np.random.default_rng(0)
    start, other = rng.normal(size=(2, entries))
    other -= other @ start / (start @ start) * start
    other *= np.linalg.norm(start) / np.linalg.norm(other)
    return start, size * (np.cos(angle) * start + np.sin(angle) * other)


@pytest.mark.parametrize("size", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.1, 1.0, np.pi / 2, 3.0])
def test_rotation_is_that_of_float64_also_of_small_angles_from_float32_sums(angle: float, size: float):
    start, now = turned(angle, size)
    sums = [np.float32([total]) for total in (np.square(now - start).sum(), np.square(now).sum(), now @ start)]
    expected = reference.rotation(now.tolist(), start.tolist())
    assert rotation(*sums)[0] == pytest.approx(expected, rel=1e-3, abs=3e-7 if size != 1.0 else 1e-9)


@pytest.mark.parametrize(("size", "error"), [(1.0, 4e-3), (1.2, 0.02)])
def test_rotation_from_a_sample_suits_the_norm_of_the_whole(size: float, error: float):
    start, now = turned(0.3, size, 400_000)
    kept = np.arange(400_000) % 61 == 0
    drift, product = (np.array([a[kept].sum() * len(kept) / kept.sum()]) for a in (np.square(now - start), now * start))
    assert rotation(drift, np.array([now @ now]), product)[0] == pytest.approx(1 - np.cos(0.3), abs=error)


def test_a_layer_that_started_from_zero_or_is_zero_has_no_rotation():
    now = np.float32([4.0, 4.0, 0.0, np.nan, np.inf])
    drift, product = np.float32([4.0, 4.000001, 9.0, 1.0, np.inf]), np.float32([0.0, 0.0, 0.0, 1.0, np.inf])
    assert np.isnan(rotation(drift, now, product)).all()


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
