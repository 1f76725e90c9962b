"""Ranks of the gradient's spectra, as layer metrics at the steps where spectra were taken."""

from __future__ import annotations

import numpy as np
from gradspectra_core.records import AGGREGATES, LayerBlock, SpectrumBlock
from gradspectra_core.spectrum import effective_rank_from, participation_ratio_from, stable_rank_from

RANKS = ("effective_rank", "stable_rank", "participation_ratio")


def rank_metrics(spectra: SpectrumBlock, layers: int) -> LayerBlock | None:
    """Derive RANKS from the aggregates of N gradient spectra over a table of `layers` layers.

    Returns a block (3, T, L) over the T steps that have a spectrum, present where a layer has one and its rank is
    a number (a gradient of zeros has none); None without gradient spectra.
    """
    chosen = np.array([of == "gradient" for of in spectra.of], np.bool_)
    if not chosen.any():
        return None
    steps, row = np.unique(spectra.step[chosen], return_inverse=True)
    layer = spectra.layer[chosen]
    column = {name: spectra.aggregates[chosen, i] for i, name in enumerate(AGGREGATES)}
    ranks = np.stack(
        (
            effective_rank_from(column["entropy"]),
            stable_rank_from(column["frobenius_sq"], column["operator"]),
            participation_ratio_from(column["frobenius_sq"], column["fourth"]),
        )
    )
    shape = len(RANKS), len(steps), layers
    values, present = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    present[:, row, layer] = np.isfinite(ranks)
    values[:, row, layer] = np.where(np.isfinite(ranks), ranks, 0.0)
    nothing = (0, len(steps), layers)
    return LayerBlock(
        spectra.digest, steps, RANKS, values, present, (), np.zeros(nothing, np.int64), np.zeros(nothing, np.bool_)
    )
