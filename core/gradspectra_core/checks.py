"""What must hold in every batch, whichever form it came in; a batch that breaks one rule is refused whole."""

from __future__ import annotations

import numpy as np

from gradspectra_core.fields import MAX_SESSION, check_name, check_names, expect_int
from gradspectra_core.layers import LayerTable
from gradspectra_core.limits import Limits, WireError, shown
from gradspectra_core.records import (
    AGGREGATES,
    DRAWN_SINGULAR_VALUES,
    SPECTRUM_OF,
    Batch,
    Columns,
    Int64,
    LayerBlock,
    SpectrumBlock,
)

GAP_OF = ("all", "layers", "spectra")
_DIGEST_DIGITS = frozenset("0123456789abcdef")
_MAX_EXTENT = 1 << 40


def check_batch(batch: Batch, limits: Limits) -> Batch:
    """Return the batch if everything about it holds, else raise WireError naming the field.

    Array shapes must agree already, as both decoders see to.
    """
    check_name(batch.session, "session", MAX_SESSION)
    expect_int(batch.sequence, "sequence", 1)
    expect_int(batch.complete_through, "complete_through", 0)
    if len(batch.steps) > limits.max_steps:
        raise WireError("steps", f"must be at most {limits.max_steps}, got {len(batch.steps)}")
    _check_steps(batch.steps, "steps")
    if not np.isfinite(batch.times).all():
        raise WireError("times", "must be finite")
    _check_columns(batch.scalars, "scalars", limits)
    _check_columns(batch.counts, "counts", limits)
    both = set(batch.scalars.names).intersection(batch.counts.names)
    if both:
        raise WireError("counts", f"must not repeat the name of a scalar, got {min(both)!r}")
    if batch.layers is not None:
        _check_layers(batch.layers, batch.steps, batch.layer_table, limits)
    if batch.spectra is not None:
        _check_spectra(batch.spectra, batch.layer_table, limits)
    for gap in batch.gaps:
        if gap.what not in GAP_OF:
            raise WireError("gaps.what", f"must be one of {', '.join(GAP_OF)}, got {gap.what!r}")
    return batch


def _check_steps(steps: Int64, field: str) -> None:
    if not len(steps):
        return
    if steps[0] < 1:
        raise WireError(field, f"count from 1, got {steps[0]}")
    falls = steps[1:] <= steps[:-1]
    if len(falls) and falls.any():
        at = int(falls.argmax())
        raise WireError(field, f"must increase strictly, got {steps[at]} and then {steps[at + 1]}")


def _check_columns(columns: Columns, field: str, limits: Limits) -> None:
    check_names(list(columns.names), field, limits.max_name, limits.max_scalars)


def check_digest(digest: object, field: str) -> str:
    """Return `digest` if it can be the digest of a layer table, else raise WireError."""
    if not isinstance(digest, str) or len(digest) != 16 or not _DIGEST_DIGITS.issuperset(digest):
        raise WireError(field, f"must be 16 hexadecimal digits, got {shown(digest)}")
    return digest


def _check_layers(block: LayerBlock, steps: Int64, table: LayerTable | None, limits: Limits) -> None:
    check_digest(block.digest, "layers.digest")
    names = check_names(list(block.statistics), "layers.statistics", limits.max_name, limits.max_statistics)
    more = check_names(list(block.count_statistics), "layers.count_statistics", limits.max_name, limits.max_statistics)
    both = set(names).intersection(more)
    if both:
        raise WireError("layers.count_statistics", f"must not repeat the name of a statistic, got {min(both)!r}")
    _check_steps(block.steps, "layers.steps")
    if not _is_subset(block.steps, steps):
        raise WireError("layers.steps", "must all be among the steps of the batch")
    count = block.values.shape[2]
    if count > limits.max_layers:
        raise WireError("layers.values", f"must be of at most {limits.max_layers} layers, got {count}")
    if table is not None and table.digest == block.digest and len(table) != count:
        raise WireError("layers.values", f"must be of the {len(table)} layers of the table, got {count}")


def _is_subset(few: Int64, many: Int64) -> bool:
    """Whether strictly increasing `few` all occur in strictly increasing `many`."""
    if len(few) >= len(many):
        return few.tobytes() == many.tobytes()
    if not len(few):
        return True
    at = many.searchsorted(few).clip(max=len(many) - 1)
    return bool((many[at] == few).all())


def _check_spectra(block: SpectrumBlock, table: LayerTable | None, limits: Limits) -> None:
    check_digest(block.digest, "spectra.digest")
    count = len(block.step)
    if count > limits.max_spectra:
        raise WireError("spectra", f"must be at most {limits.max_spectra}, got {count}")
    for of in set(block.of):
        if of not in SPECTRUM_OF:
            raise WireError("spectra.of", f"must be one of {', '.join(SPECTRUM_OF)}, got {shown(of)}")
    for method in set(block.method):
        check_name(method, "spectra.method", 64)
    if not count:
        return
    known = table is not None and table.digest == block.digest
    layers = len(table) if known and table is not None else limits.max_layers
    _check_range(block.step, "spectra.step", 1, None)
    _check_range(block.layer, "spectra.layer", 0, layers - 1)
    _check_range(block.rows, "spectra.rows", 1, _MAX_EXTENT)
    _check_range(block.columns, "spectra.columns", 1, _MAX_EXTENT)
    _check_singular_values(block)


def _check_singular_values(block: SpectrumBlock) -> None:
    width = block.values.shape[1]
    if width > DRAWN_SINGULAR_VALUES:
        raise WireError("spectra.values", f"must be at most {DRAWN_SINGULAR_VALUES} a spectrum, got {width}")
    _check_range(block.length, "spectra.length", 0, width)
    ranks = np.minimum(block.rows, block.columns)
    used = np.arange(width) < block.length[:, None]
    if ((block.index < 0) | (block.index >= ranks[:, None]))[used].any():
        raise WireError("spectra.index", "must lie between 0 and the smaller side of the matrix, exclusive")
    if (block.index[:, 1:] <= block.index[:, :-1])[used[:, 1:]].any():
        raise WireError("spectra.index", "must increase strictly")
    if (block.values < 0)[used].any():
        raise WireError("spectra.values", "must not be negative")
    for name in ("k90", "k99"):
        energy_ranks = block.aggregates[:, AGGREGATES.index(name)]
        whole = (energy_ranks >= 0) & (energy_ranks <= ranks) & (energy_ranks == np.floor(energy_ranks))
        if not whole.all():
            raise WireError(f"spectra.{name}", "must be whole numbers from 0 to the smaller side of the matrix")


def _check_range(values: Int64, field: str, least: int, most: int | None) -> None:
    if values.min() < least:
        raise WireError(field, f"must be at least {least}, got {values.min()}")
    if most is not None and values.max() > most:
        raise WireError(field, f"must be at most {most}, got {values.max()}")
