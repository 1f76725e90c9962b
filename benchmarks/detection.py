"""How often the alert rules cry wolf, how soon they see what is broken, and what an interval is worth; prints JSON.

python benchmarks/detection.py [--healthy 200] [--broken 50] [--seed 0]

Each run trains a noisy quadratic of 100 entries by SGD with momentum or Adam: loss, gradient norm, update norm and
learning rate of 1,000 to 4,000 steps go to all rules as the server sees them. Healthy runs take each of three laws of
noise and five schedules in turn: `false_alarms_per_1000` are alerts opened per 1,000 steps, by rule. Broken runs carry
one fault each from a step on: `seen` is the share in which a rule opened an alert then, `delay` the median of steps
until it did.

`intervals` are those of the noise scale, of layers of 20 entries whose noise scale is a multiple of the batch, in four
parts, after so many recorded steps: `covered`, where there is an interval, `given`, narrow enough for a confidence, and
`wrong`, given and without the truth in it, as shares of 2,000 layers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gradspectra_core.detectors import ALL_RULES, DetectorSet, LayerObservation, Observation
from gradspectra_core.noise import NoiseAverage, noise_terms

ENTRIES = 100
CURVATURE = np.geomspace(0.01, 1.0, ENTRIES)
MOMENTUM = 0.9
PEAK_RATE = {"sgd": 0.005, "adam": 0.01}
LAYERS = tuple(f"layers.{at}.weight" for at in range(6))
LAYERS_EVERY = 8

Series = dict[str, np.ndarray]


def normal(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Normal noise."""
    return rng.normal(size=size)


def student_t3(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Student's t with three degrees of freedom, of variance 1: each entry by itself has heavy tails."""
    return rng.standard_t(3, size) / math.sqrt(3)


def lognormal(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Normal noise whose size changes from batch to batch: its logarithm has a standard deviation of 1."""
    return rng.normal(size=size) * rng.lognormal(sigma=1.0, size=(*size[:-1], 1))


LAWS = {"normal": normal, "student t, 3": student_t3, "lognormal, 1": lognormal}


def _cosine(x: np.ndarray) -> np.ndarray:
    return 0.01 + 0.99 * 0.5 * (1 + np.cos(math.pi * x))


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "warm-up and cosine": lambda x: np.minimum(x / 0.05 + 1e-3, 1.0) * _cosine(x),
    "cosine with restarts": lambda x: _cosine(4 * x % 1.0),
    "steps": lambda x: 0.1 ** np.searchsorted((0.5, 0.75), x, side="right"),
    "warm-up, plateau, decay": lambda x: np.minimum(np.minimum(x / 0.05 + 1e-3, 1.0), np.maximum(5 * (1 - x), 0.01)),
}
"""Share of the peak learning rate at a share of the run, from 0 to 1."""


def trained(
    rng: np.random.Generator, steps: int, law: str, schedule: str, optimizer: str, sharper: np.ndarray | None = None
) -> Series:
    """One run. sharper: (steps,) by which the curvature is multiplied."""
    rate = PEAK_RATE[optimizer] * SCHEDULES[schedule](np.arange(steps) / steps)
    noise = LAWS[law](rng, (steps, ENTRIES)) * rng.uniform(0.02, 0.1)
    of_loss = rng.uniform(0.01, 0.15) * (LAWS["student t, 3" if law == "student t, 3" else "normal"](rng, (steps,)))
    floor, x = rng.uniform(0.3, 3.0), rng.normal(size=ENTRIES) * 2.0
    first, second = np.zeros(ENTRIES), np.zeros(ENTRIES)
    series = {name: np.zeros(steps) for name in ("loss", "grad_norm", "update_norm")}
    for at in range(steps):
        curvature = CURVATURE if sharper is None else CURVATURE * sharper[at]
        gradient = curvature * x + noise[at]
        if optimizer == "sgd":
            first = MOMENTUM * first + gradient
            update = rate[at] * first
        else:
            first = MOMENTUM * first + (1 - MOMENTUM) * gradient
            second = 0.99 * second + 0.01 * gradient**2
            scale = np.sqrt(second / (1 - 0.99 ** (at + 1))) + 1e-8
            update = rate[at] * first / (1 - MOMENTUM ** (at + 1)) / scale
        series["loss"][at] = (floor + 0.5 * float(curvature @ np.square(x))) * math.exp(of_loss[at])
        series["grad_norm"][at], series["update_norm"][at] = np.linalg.norm(gradient), np.linalg.norm(update)
        x = np.clip(x - update, -1e100, 1e100)
    return series | {"learning_rate": rate}


def observations(series: Series, dead_from: int | None = None) -> Iterator[Observation]:
    """The run as the rules see it, layers at every eighth step; one of them is dead from a step on."""
    columns = {name: values.tolist() for name, values in series.items()}
    for at in range(len(series["loss"])):
        layers = None
        if (at + 1) % LAYERS_EVERY == 0:
            largest = np.full(len(LAYERS), min(columns["grad_norm"][at], 1e18), np.float32)
            largest[2] *= dead_from is None or at + 1 < dead_from
            counts = np.zeros(len(LAYERS), np.int64)
            layers = LayerObservation(LAYERS, (), np.square(largest), largest, counts, np.ones_like(largest))
        yield Observation(at + 1, layers=layers, **{name: values[at] for name, values in columns.items()})


def alerts(series: Series, dead_from: int | None = None) -> list[tuple[str, int]]:
    """Rule and step of each alert that opens."""
    detectors = DetectorSet()
    found = (finding for one in observations(series, dead_from) for finding in detectors.observe(one))
    return [(finding.rule, finding.step) for finding in found if finding.change == "open"]


def bad_batch(rng: np.random.Generator, series: Series, at: int) -> None:
    """Three steps of bad data: a gradient of 4 to 20 times its size, a loss of 1.5 to 4 times."""
    series["grad_norm"][at : at + 3] *= rng.uniform(4, 20)
    series["loss"][at : at + 3] *= rng.uniform(1.5, 4)


def jump(rng: np.random.Generator, series: Series, at: int) -> None:
    """The loss jumps to 1.5 to 4 times and stays; the gradient to the root of that."""
    times = rng.uniform(1.5, 4)
    series["loss"][at:] *= times
    series["grad_norm"][at:] *= math.sqrt(times)


def climb(rng: np.random.Generator, series: Series, at: int) -> None:
    """The loss doubles every 50 to 1,000 steps up to four times; no step of it stands out."""
    since = np.arange(len(series["loss"]) - at)
    times = np.minimum(2.0 ** (since / np.exp(rng.uniform(math.log(50), math.log(1000)))), 4.0)
    series["loss"][at:] *= times
    series["grad_norm"][at:] *= np.sqrt(times)


def long_update(rng: np.random.Generator, series: Series, at: int) -> None:
    """Three updates of 4 to 20 times their length, at an unchanged learning rate."""
    series["update_norm"][at : at + 3] *= rng.uniform(4, 20)


def not_finite(rng: np.random.Generator, series: Series, at: int) -> None:
    """The loss is NaN or infinite from a step on."""
    series["loss"][at:] = rng.choice([math.nan, math.inf])


FAULTS = {one.__name__.replace("_", " "): one for one in (bad_batch, jump, climb, long_update, not_finite)}
NO_STEP = ("dead layer", "too sharp")
"""Faults that are not a change of the series: a gradient of zero, and a curvature past what SGD's rate can bear."""


def broken(rng: np.random.Generator, kind: str, number: int) -> tuple[list[tuple[str, int]], int]:
    """Alerts of a run with one fault, and the step that it begins at."""
    steps, at = 2000, int(rng.integers(600, 900))
    schedule, law = list(SCHEDULES)[number % len(SCHEDULES)], list(LAWS)[number % len(LAWS)]
    sharper = None
    if kind == "too sharp":
        limit = 2 * (1 + MOMENTUM) / PEAK_RATE["sgd"] / CURVATURE[-1]
        beyond = limit * (1 + np.exp(rng.uniform(math.log(1e-3), math.log(0.1))))
        sharper = np.geomspace(1.0, beyond, 400)[np.clip(np.arange(steps) - at, 0, 399)]
        schedule = "constant"
    optimizer = "sgd" if sharper is not None or number % 2 else "adam"
    with np.errstate(over="ignore"):
        series = trained(rng, steps, law, schedule, optimizer, sharper)
    if kind in FAULTS:
        FAULTS[kind](rng, series, at)
    return alerts(series, at + 1 if kind == "dead layer" else None), at + 1


def healthy_figures(runs: int, seed: int) -> dict[str, Any]:
    """Alerts per 1,000 steps of healthy runs, by rule, and by law and schedule of each rule that opened any."""
    steps_of: Counter[str] = Counter()
    opened: Counter[tuple[str, str]] = Counter()
    for number in range(runs):
        rng = np.random.default_rng([seed, number])
        steps = int(rng.integers(1000, 4001))
        law, schedule = list(LAWS)[number % 3], list(SCHEDULES)[number // 3 % 5]
        series = trained(rng, steps, law, schedule, ("sgd", "adam")[number // 15 % 2])
        groups = "all", law, schedule
        steps_of.update(dict.fromkeys(groups, steps))
        opened.update((group, rule) for rule, _ in alerts(series) for group in groups)

    def rate(group: str, rule: str) -> float:
        return round(1000 * opened[group, rule] / steps_of[group], 4)

    return {
        "runs": runs,
        "steps": steps_of["all"],
        "false_alarms_per_1000": {rule: rate("all", rule) for rule in ALL_RULES},
        "by_group": {
            group: {rule: rate(group, rule) for rule in ALL_RULES if opened["all", rule]}
            for group in (*LAWS, *SCHEDULES)
            if steps_of[group]
        },
    }


def broken_figures(kind: str, runs: int, seed: int) -> dict[str, Any]:
    """Share of runs in which each rule saw the fault, and the median of its delays."""
    delays: dict[str, list[int]] = {}
    for number in range(runs):
        found, since = broken(np.random.default_rng([seed, number, len(kind)]), kind, number)
        first = {rule: step for rule, step in reversed(found) if step >= since}
        for rule, step in {**first, "any rule": min(first.values(), default=0)}.items():
            if step:
                delays.setdefault(rule, []).append(step - since)
    return {
        rule: {"seen": round(len(own) / runs, 3), "delay": float(np.median(own))}
        for rule, own in sorted(delays.items(), key=lambda item: -len(item[1]))
    }


def interval_figures(steps: int, times: float, seed: int, layers: int = 2000) -> dict[str, float]:
    """Shares of layers whose interval holds the truth, is given at all, and is given but wrong."""
    rng, parts, examples, entries = np.random.default_rng([seed, steps]), 4, 8, 20
    truth, average = times * parts * examples, NoiseAverage(layers)
    spread = math.sqrt(truth / entries / examples)
    for _ in range(steps):
        gradients = 1 / math.sqrt(entries) + spread * rng.normal(size=(parts, layers, entries))
        part_sq, grad_sq = np.square(gradients).sum(-1).mean(0), np.square(gradients.mean(0)).sum(-1)
        average.update(*noise_terms(part_sq, grad_sq, [1 / parts] * parts, [examples] * parts))
    low, high = average.interval()
    holds, known = (low <= truth) & (truth <= high), np.isfinite(low)
    given = np.array([word is not None for word in average.confidence()])
    shares = {"covered": holds[known].mean(), "given": given.mean(), "wrong": (given & ~holds).mean()}
    return {name: round(float(share), 4) for name, share in shares.items()}


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--healthy", type=int, default=200, help="healthy runs")
    parser.add_argument("--broken", type=int, default=50, help="runs with each fault")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = (*FAULTS, *NO_STEP)
    figures = {
        "healthy": healthy_figures(options.healthy, options.seed),
        "broken": {kind: broken_figures(kind, options.broken, options.seed + 1) for kind in kinds},
        "intervals": {
            f"{steps} steps, {times:g} times the batch": interval_figures(steps, times, options.seed)
            for steps in (8, 20, 100)
            for times in (0.3, 3, 10, 30)
        },
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
