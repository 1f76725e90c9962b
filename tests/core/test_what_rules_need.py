"""A rule opens on any one of the numbers that the catalogue says it needs, and never without them."""

import math

import numpy as np
import pytest
from gradspectra_core.catalogue import RULES
from gradspectra_core.detectors import ALL_RULES, DetectorSet, LayerObservation, Observation, default_thresholds

SERIES = ("loss", "grad_norm", "update_norm", "learning_rate")
STATISTICS = ("grad_sq", "grad_max", "weight_sq")
COUNTS = ("grad_nonfinite", "act_nonfinite")
ALL = {*SERIES, *STATISTICS, *COUNTS, "skipped"}


def faulty(names: set[str]) -> list[Observation]:
    """300 steps that record these numbers alone: 20 times as large from step 200 on, a dead layer, a NaN at the end."""
    rng = np.random.default_rng(1)
    return [_observation(names, step, float(np.exp(0.05 * rng.normal()))) for step in range(1, 301)]


def _observation(names: set[str], step: int, noise: float) -> Observation:
    here, bad = step >= 200, step == 300
    size = math.nan if bad else noise * (20.0 if here else 1.0)
    every = {"loss": size, "grad_norm": size, "update_norm": size, "learning_rate": 0.1}
    rows = {"grad_sq": size, "grad_max": 0.0 if here else 1.0, "weight_sq": size}
    counts = {"grad_nonfinite": int(bad), "act_nonfinite": int(bad)}
    own, own_counts = [n for n in STATISTICS if n in names], [n for n in COUNTS if n in names]
    layers = None
    if own or own_counts:
        layers = LayerObservation.from_rows(
            ("a", "b"),
            (),
            own,
            np.array([[rows[n], 1.0] for n in own]).reshape(-1, 2),
            np.ones((len(own), 2), np.bool_),
            own_counts,
            np.array([[counts[n], 0] for n in own_counts]).reshape(-1, 2),
            np.ones((len(own_counts), 2), np.bool_),
        )
    return Observation(step, layers=layers, **{name: every[name] for name in SERIES if name in names})


def opens(rule: str, names: set[str]) -> bool:
    detectors = DetectorSet((rule,))
    return any(finding.change == "open" for one in faulty(names) for finding in detectors.observe(one))


@pytest.mark.parametrize(("rule", "name"), [(rule.name, name) for rule in RULES.values() for name in rule.needs])
def test_a_rule_opens_on_any_one_of_what_it_needs(rule: str, name: str) -> None:
    assert opens(rule, {name})


@pytest.mark.parametrize("rule", ALL_RULES)
def test_a_rule_opens_nothing_where_none_of_what_it_needs_is_recorded(rule: str) -> None:
    assert not opens(rule, ALL - set(RULES[rule].needs))
    assert set(RULES[rule].needs) | set(RULES[rule].uses) <= ALL


def test_thresholds_are_those_that_a_rule_starts_with() -> None:
    assert default_thresholds("loss_spike") == {"z": 6.0, "ratio": 1.2, "confirm_z": 12.0}
    default_thresholds("loss_spike")["z"] = 0.0
    assert default_thresholds("loss_spike")["z"] == 6.0
    with pytest.raises(ValueError, match="no rule is named 'boredom'; there are nonfinite"):
        default_thresholds("boredom")
