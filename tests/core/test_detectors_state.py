"""A restart neither forgets nor repeats: any stream cut at any point gives the findings of the whole."""

import json
import math

import numpy as np
from gradspectra_core.alerts import SEVERITIES
from gradspectra_core.catalogue import RULES, identity
from gradspectra_core.detectors import ALL_RULES, DetectorSet, LayerObservation, Observation
from hypothesis import given, settings
from hypothesis import strategies as st

number = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 5e-324]))


@st.composite
def streams(draw: st.DrawFn) -> list[Observation]:
    """A noisy run with faults of every kind strewn over it, and layers that change once."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length = draw(st.integers(1, 160))
    faults = draw(st.dictionaries(st.integers(0, length - 1), st.tuples(number, number, number), max_size=12))
    jumps = draw(st.lists(st.integers(0, length - 1), max_size=3))
    change = draw(st.integers(0, length))
    dead_from = draw(st.integers(0, length))
    rises_from = draw(st.integers(0, length))
    stream, step = [], 0
    for i in range(length):
        step += 1 + (5000 if i in jumps else 0)
        loss, norm, update = np.exp(0.05 * rng.standard_t(3, 3)).tolist()
        if i in jumps:
            loss, norm, update = 5 * loss, 7 * norm, 4 * update
        loss *= 4.0 if i >= rises_from else 1.0
        loss, norm, update = faults.get(i, (loss, norm, update))
        rate = float(rng.choice([1e-3, 3e-3])) if rng.random() < 0.9 else None
        layers = None if i % 2 else _layers(rng, ("a", "b", "c") if i < change else ("c", "d"), i >= dead_from)
        stream.append(Observation(step, 0.0, loss, norm, update, layers, bool(rng.random() < 0.05), rate))
    return stream


def _layers(rng: np.random.Generator, names: tuple[str, ...], dead: bool) -> LayerObservation:
    count = len(names)
    grad = np.where(rng.random(count) < 0.02, np.nan, np.exp(rng.normal(size=count))).astype(np.float32)
    grad[-1] = 0.0 if dead else 1.0
    here = rng.random(count) < 0.9
    bad = (rng.random(count) < 0.02).astype(np.int64)
    every = np.ones(count, np.bool_)
    return LayerObservation(names, names, grad**2, grad, bad, grad, here, here, every, here, bad[::-1], here)


@settings(max_examples=150)
@given(streams(), st.data())
def test_a_stream_cut_anywhere_gives_the_findings_of_the_whole(stream, data):
    whole = DetectorSet()
    expected = [finding for observation in stream for finding in whole.observe(observation)]
    cuts = set(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    pieces = DetectorSet()
    found = []
    for i, observation in enumerate(stream):
        if i in cuts:
            pieces = DetectorSet.restore(json.loads(json.dumps(pieces.state(), allow_nan=False)))
        found += pieces.observe(observation)
    assert found == expected
    assert pieces.state() == whole.state()


@settings(max_examples=100)
@given(streams(), st.data())
def test_an_episode_that_is_forgotten_is_not_heard_of_again(stream, data):
    cut = data.draw(st.integers(0, len(stream)))
    detectors, known = DetectorSet(), set()
    for at, observation in enumerate(stream):
        if at == cut:
            for rule, opened in known:
                detectors.forget(rule, opened)
            known.clear()
        for finding in detectors.observe(observation):
            place = finding.rule, finding.opened_step
            assert (place in known) == (finding.change != "open")
            (known.remove if finding.change == "close" else known.add)(place)


def test_a_rule_that_the_state_does_not_know_begins_anew():
    old = DetectorSet(("nonfinite", "loss_spike"))
    old.observe(Observation(1, loss=math.nan))
    taken_over = DetectorSet.restore(old.state(), ALL_RULES)
    assert taken_over.rules == ALL_RULES
    assert taken_over.observe(Observation(2, loss=math.nan)) == [], "the episode goes on"
    assert DetectorSet.restore(old.state()).rules == ("nonfinite", "loss_spike")


@settings(max_examples=100)
@given(streams())
def test_every_episode_opens_once_worsens_only_and_closes_once(stream):
    detectors = DetectorSet()
    open_alerts: dict[str, str] = {}
    seen: set[str] = set()
    for observation in stream:
        for finding in detectors.observe(observation):
            alert = identity("run", 1, finding)
            json.dumps([finding.value, finding.threshold, finding.evidence], allow_nan=False)
            if finding.change == "open":
                assert alert not in seen
                seen.add(alert)
                assert SEVERITIES.index(finding.severity) >= SEVERITIES.index(RULES[finding.rule].severity)
            else:
                assert SEVERITIES.index(finding.severity) >= SEVERITIES.index(open_alerts[alert])
            open_alerts[alert] = finding.severity
            if finding.change == "close":
                del open_alerts[alert]
            assert finding.step == observation.step
            assert finding.opened_step <= finding.step


def test_every_rule_has_its_words():
    assert tuple(RULES) == ALL_RULES
    for rule in RULES.values():
        assert min(len(rule.meaning), len(rule.remedy), len(rule.source)) > 20
        assert rule.severity in SEVERITIES


def test_an_alert_has_the_same_identity_while_its_layers_change():
    detectors = DetectorSet(("nonfinite",))
    (opened,) = detectors.observe(Observation(1, loss=1.0, grad_norm=math.nan))
    layers = LayerObservation(("a", "b"), grad_nonfinite=np.array([1, 0]))
    (updated,) = detectors.observe(Observation(2, loss=1.0, layers=layers))
    assert updated.layers == ("a",)
    assert identity("r", 1, opened) == identity("r", 1, updated)
    assert identity("r", 2, opened) != identity("r", 1, opened)
