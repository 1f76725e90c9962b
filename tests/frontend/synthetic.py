"""A made-up training run as core views: curves with NaN, a hole, alerts, layers, spectra and suggestions."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from gradspectra_core.alerts import Alert, Suggestion
from gradspectra_core.views import Buckets, LayerSeries, Series, Spectrum

SPIKE, LOST_FROM, LOST_TO, NAN_STEP = 812, 500, 560, 990
ROLES = ("q", "k", "v", "o", "up", "down")


def buckets(values: np.ndarray, spread: float = 0.0) -> Buckets:
    """Buckets of one value each (or of several, `spread` wide); NaN and inf are values that are there."""
    values = np.asarray(values, float)
    bad = ~np.isfinite(values)
    low, high = values * (1 - spread), values * (1 + spread)
    return Buckets(values, low, high, values, bad.astype(np.int64), np.ones(values.shape, bool))


def steps(last: int) -> np.ndarray:
    """Steps 1 to last without those that were lost."""
    x = np.arange(1, last + 1)
    return x[(x < LOST_FROM) | (x > LOST_TO)]


def series(last: int = 1200, *, every: int = 1) -> Series:
    """All scalars of the run, its loss with one NaN and a spike, its noise scale at each 8th step."""
    x = steps(last)[::every]
    noise = np.random.default_rng(0).standard_normal((4, len(x)))
    bump = np.exp(-np.clip(x - SPIKE, 0, None) / 25) * (x >= SPIKE)
    loss = 1.6 + 4.0 * np.exp(-x / 220) + 0.06 * noise[0] + 2.2 * bump
    loss[x == NAN_STEP] = np.nan
    norm = np.exp(0.25 * noise[1]) * (0.7 + 2.5 * np.exp(-x / 90)) * (1 + 24 * bump)
    rate = 3e-3 * np.minimum(1, x / 100) * (0.55 + 0.45 * np.cos(np.pi * np.minimum(1, x / 2000)))
    scale = np.where(x % 8 == 0, 40 * np.exp(x / 900 + 0.12 * noise[2]), np.nan)
    present = x % 8 == 0
    seconds = 0.052 * np.exp(0.08 * noise[3]) * (1 + 2 * (x % 100 == 0))
    columns = {
        "loss": buckets(loss, 0.02 if every > 1 else 0.0),
        "grad_norm": buckets(norm, 0.2 if every > 1 else 0.0),
        "clip_threshold": buckets(np.ones(len(x))),
        "learning_rate": buckets(rate),
        "examples": buckets(np.full(len(x), 32.0)),
        "tokens": buckets(np.full(len(x), 8192.0)),
        "step_seconds": buckets(seconds),
        "data_seconds": buckets(seconds * 0.06),
        "agent_seconds": buckets(seconds * 0.008),
        "cadence_layers": buckets(np.full(len(x), 4.0)),
        "cadence_spectra": buckets(np.full(len(x), 200.0)),
    }
    for name, factor in (("noise_scale", 1.0), ("noise_scale_low", 0.75), ("noise_scale_high", 1.4)):
        there = buckets(scale * factor)
        columns[name] = Buckets(there.mean, there.min, there.max, there.last, np.zeros(len(x), np.int64), present)
    return Series("step", x, columns)


def layer_names(blocks: int = 8) -> tuple[tuple[str, str, int], ...]:
    """Names, roles and depths of a small transformer."""
    rows = [("transformer.wte.weight", "embedding", -1)]
    for depth in range(blocks):
        rows.append((f"transformer.h.{depth}.ln_1.weight", "norm", depth))
        rows += [
            (f"transformer.h.{depth}.{'attn' if role in 'qkvo' else 'mlp'}.{role}_proj.weight", role, depth)
            for role in ROLES
        ]
    return (*rows, ("transformer.ln_f.weight", "norm", -1), ("lm_head.weight", "head", -1))


def layers(statistic: str = "grad_norm", last: int = 1200, *, blocks: int = 8, every: int = 4) -> LayerSeries:
    """One statistic of all layers: a spike that starts in block 5, one layer dead for a while, NaN at one step."""
    names, roles, depths = zip(*layer_names(blocks), strict=True)
    x = steps(last)
    x = x[x % every == 0]
    rng = np.random.default_rng(len(statistic))
    level = np.array(
        [0.3 + 0.12 * max(depth, 0) + (0.5 if role in "vo" else 0) for role, depth in zip(roles, depths, strict=True)]
    )
    values = np.exp(0.2 * rng.standard_normal((len(names), len(x)))) * 10 ** (level[:, None] - x / 1500)
    hit = (x >= SPIKE) & (x < SPIKE + 60)
    for i, depth in enumerate(depths):
        if depth >= min(5, blocks - 1):
            values[i, hit] *= 30
    if statistic == "effective_rank":
        values = np.clip(40 + 30 * values / values.max(), 1, None)
    dead = names.index("transformer.h.2.ln_1.weight") if blocks > 2 else 1
    values[dead, (x > 300) & (x < 420)] = 0.0
    bad = np.zeros(values.shape, np.int64)
    at = np.flatnonzero(x >= NAN_STEP)[:2]
    for i, depth in enumerate(depths):
        if depth >= 0 and depth <= 3 and statistic != "effective_rank":
            values[i, at] = np.nan
            bad[i, at] = 7
    present = np.ones(values.shape, bool)
    present[1, : len(x) // 6] = False
    return LayerSeries(statistic, "step", x, names, roles, depths, values, values * 0.9, values * 1.1, bad, present)


def spectra(
    layer: str = "transformer.h.0.attn.q_proj.weight", last: int = 1200, of: str = "gradient"
) -> list[Spectrum]:
    """Spectra each 50 steps, of falling rank."""
    out = []
    index = np.unique(np.concatenate((np.arange(32), np.linspace(32, 127, 64).astype(int))))
    for step in range(50, last + 1, 50):
        sigma = np.exp(-step / 2500) * (np.arange(1, 129) ** -(0.55 + step / 2400))
        share = sigma / sigma.sum()
        energy = np.cumsum(sigma**2) / np.sum(sigma**2)
        out.append(
            Spectrum(
                layer, of, step, 1, "gram-float64", 128, 384, float(sigma.sum()), float((sigma**2).sum()),
                float(sigma[0]), float((sigma**4).sum()), float(-(share * np.log(share)).sum()),
                int(np.searchsorted(energy, 0.9) + 1), int(np.searchsorted(energy, 0.99) + 1), index, sigma[index],
            )
        )  # fmt: skip
    return out


def alerts(run: str = "demo00000001") -> list[dict[str, Any]]:
    """Alerts as the interface gives them: a critical NaN, a gradient spike, a dead layer that has closed."""
    window = list(range(SPIKE - 30, SPIKE + 12))
    rows = [
        ("nonfinite", "critical", "open", NAN_STEP, None, "NaN in the gradient of transformer.h.3.attn.q_proj.weight",
         {"kinds": ["gradient"], "values": {"loss": "NaN"}, "where": "backward", "grew_most_before": []}),
        ("gradient_spike", "warning", "acknowledged", SPIKE, SPIKE + 41,
         f"gradient norm 17.9 at step {SPIKE}: 24.1 times its recent median 0.742, limit 1.48",
         {"series": "grad_norm", "median": 0.742, "spread": 0.18, "z": 14.2, "ratio": 24.1, "peak_step": SPIKE,
          "window": {"steps": window, "values": [0.7 + 0.1 * np.sin(s) + (17 if s >= SPIKE else 0) for s in window]}}),
        ("dead_layer", "warning", "closed", 304, 420, "the gradient of transformer.h.2.ln_1.weight is exactly zero",
         {}),
    ]  # fmt: skip
    out = []
    for rule, severity, state, opened, closed, message, evidence in rows:
        identity = hashlib.sha256(f"{run}{rule}".encode()).hexdigest()[:20]
        layer = None if rule == "gradient_spike" else message.split("of ")[1].split(" is")[0]
        alert = Alert(
            identity, run, 1, identity, rule, severity, state, (layer,) if layer else (), layer, opened,
            closed or opened, closed, 1_790_000_000.0 + opened, 17.9 if layer is None else None,
            1.48 if layer is None else None, message,
            "The gradient norm before clipping is many times its recent median. Adam divides by a second moment that "
            "has not yet seen it, so the next updates are too large.",
            "With clipping on, a single spike is harmless. Without: clip at about the recent median.", evidence,
        )  # fmt: skip
        out.append({name: getattr(alert, name) for name in Alert.__slots__})
    return out


def suggestions() -> list[dict[str, Any]]:
    """One multiplier per layer, three of four with enough evidence, and advice on the batch."""
    rng = np.random.default_rng(5)
    out = [
        Suggestion(
            "critical_batch", "run", None, "batch_size", 88.0, 61.0, 129.0, "medium", True, False, 900,
            {"noise_scale": 88.0, "batch": 32},
            "The noise scale of the whole gradient is 88 examples, the batch 32: a larger batch buys fewer steps.",
            "McCandlish et al. 2018",
        )
    ]  # fmt: skip
    for i, (name, role, _) in enumerate(layer_names()):
        enough = i % 4 != 3 and role != "norm"
        value = float(np.clip(np.exp2(rng.normal(0, 0.8)), 0.25, 4)) if enough else None
        level = ("high", "medium", "low")[i % 3] if enough else None
        out.append(
            Suggestion(
                "noise_variance", "layer", name, "learning_rate_multiplier", value, value and value * 0.8,
                value and value * 1.25, level, enough, False, 900,
                {"noise_scale": float(rng.uniform(10, 300)), "batch": 32, "alpha": 0.5}, "", "variance-based",
            )
        )  # fmt: skip
    return [{name: getattr(one, name) for name in Suggestion.__slots__} for one in out]
