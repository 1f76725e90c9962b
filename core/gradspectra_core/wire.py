"""The binary form of a batch: columns, layer statistics and spectra as raw blocks, presence as bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.checks import check_batch
from gradspectra_core.container import DTYPES, FORMAT, pack, unpack
from gradspectra_core.fields import (
    MAX_SESSION,
    check_name,
    expect_int,
    expect_list,
    expect_object,
    gaps_from_json,
    gaps_to_json,
    layer_table_from_json,
)
from gradspectra_core.limits import DEFAULT_LIMITS, Limits, WireError
from gradspectra_core.records import AGGREGATES, SPECTRUM_OF, Batch, Bool, Columns, LayerBlock, SpectrumBlock

__all__ = ["CONTENT_TYPE", "FORMAT", "Limits", "WireError", "decode_batch", "encode_batch", "pack", "unpack"]

CONTENT_TYPE = "application/vnd.gradspectra.batch"
_MAX_METHODS = 256
_SPECTRUM_INTEGERS = ("step", "layer", "rows", "columns", "length")

Blocks = dict[str, NDArray[Any]]


def encode_batch(batch: Batch) -> bytes:
    """Return the binary form of a batch, readable as a safetensors file. Layout: docs/wire.md."""
    blocks: Blocks = {"steps": batch.steps, "times": batch.times}
    meta: dict[str, Any] = {
        "session": batch.session,
        "sequence": batch.sequence,
        "complete_through": batch.complete_through,
        "scalars": batch.scalars.names,
        "counts": batch.counts.names,
    }
    for name, columns in (("scalars", batch.scalars), ("counts", batch.counts)):
        blocks[name] = columns.values
        blocks[f"{name}.present"] = _bits(columns.present)
    if batch.layer_table is not None:
        meta["layer_table"] = batch.layer_table.to_json()
    if batch.layers is not None:
        meta["layers"] = _encode_layers(batch.layers, blocks)
    if batch.spectra is not None:
        meta["spectra"] = _encode_spectra(batch.spectra, blocks)
    if batch.gaps:
        meta["gaps"] = gaps_to_json(batch.gaps)
    return pack(meta, blocks)


def decode_batch(buf: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS) -> Batch:
    """Read the binary form of a batch; arrays are read-only views of `buf` where possible.

    Raises WireError, and nothing else, for a body that is not a valid batch within `limits`.
    """
    meta, blocks = unpack(buf, limits=limits)
    steps = _block(blocks, "steps", "I64", (None,))
    shape = (len(steps),)
    return check_batch(
        Batch(
            session=check_name(meta.get("session"), "session", MAX_SESSION),
            sequence=expect_int(meta.get("sequence"), "sequence", 1),
            complete_through=expect_int(meta.get("complete_through"), "complete_through", 0),
            steps=steps,
            times=_block(blocks, "times", "F64", shape),
            scalars=_columns(meta, blocks, "scalars", "F64", shape, limits),
            counts=_columns(meta, blocks, "counts", "I64", shape, limits),
            layer_table=layer_table_from_json(meta.get("layer_table"), limits),
            layers=_decode_layers(expect_object(meta["layers"], "layers"), blocks, limits)
            if "layers" in meta
            else None,
            spectra=_decode_spectra(expect_object(meta["spectra"], "spectra"), blocks) if "spectra" in meta else None,
            gaps=gaps_from_json(meta.get("gaps", []), limits),
        ),
        limits,
    )


def _encode_layers(block: LayerBlock, blocks: Blocks) -> dict[str, Any]:
    blocks["layers.steps"] = block.steps
    blocks["layers.values"] = block.values
    blocks["layers.values.present"] = _bits(block.present)
    blocks["layers.counts"] = block.counts
    blocks["layers.counts.present"] = _bits(block.counts_present)
    return {"digest": block.digest, "statistics": block.statistics, "count_statistics": block.count_statistics}


def _decode_layers(value: object, blocks: Blocks, limits: Limits) -> LayerBlock:
    meta = expect_object(value, "layers")
    statistics = _names(meta, "statistics", "layers.", limits.max_statistics)
    count_statistics = _names(meta, "count_statistics", "layers.", limits.max_statistics)
    steps = _block(blocks, "layers.steps", "I64", (None,))
    values = _block(blocks, "layers.values", "F32", (len(statistics), len(steps), None))
    counts = _block(blocks, "layers.counts", "I64", (len(count_statistics), *values.shape[1:]))
    return LayerBlock(
        digest=meta.get("digest", ""),
        steps=steps,
        statistics=statistics,
        values=values,
        present=_presence(blocks, "layers.values", values.shape),
        count_statistics=count_statistics,
        counts=counts,
        counts_present=_presence(blocks, "layers.counts", counts.shape),
    )


def _encode_spectra(block: SpectrumBlock, blocks: Blocks) -> dict[str, Any]:
    for name in _SPECTRUM_INTEGERS:
        blocks[f"spectra.{name}"] = getattr(block, name)
    methods = tuple(dict.fromkeys(block.method))
    blocks["spectra.of"] = _codes(block.of, SPECTRUM_OF, "spectra.of")
    blocks["spectra.method"] = _codes(block.method, methods[:_MAX_METHODS], "spectra.method")
    blocks["spectra.aggregates"] = block.aggregates
    blocks["spectra.index"] = block.index
    blocks["spectra.values"] = block.values
    return {"digest": block.digest, "of": SPECTRUM_OF, "methods": methods}


def _decode_spectra(value: object, blocks: Blocks) -> SpectrumBlock:
    meta = expect_object(value, "spectra")
    step = _block(blocks, "spectra.step", "I64", (None,))
    shape = (len(step),)
    integers = {name: _block(blocks, f"spectra.{name}", "I64", shape) for name in _SPECTRUM_INTEGERS}
    values = _block(blocks, "spectra.values", "F32", (*shape, None))
    return SpectrumBlock(
        digest=meta.get("digest", ""),
        of=_texts(_block(blocks, "spectra.of", "U8", shape), meta.get("of"), "spectra.of"),
        method=_texts(_block(blocks, "spectra.method", "U8", shape), meta.get("methods"), "spectra.methods"),
        aggregates=_block(blocks, "spectra.aggregates", "F64", (*shape, len(AGGREGATES))),
        index=_block(blocks, "spectra.index", "I64", values.shape),
        values=values,
        **integers,
    )


def _columns(
    meta: dict[str, Any], blocks: Blocks, name: str, dtype: str, shape: tuple[int, ...], limits: Limits
) -> Columns:
    names = _names(meta, name, "", limits.max_scalars)
    values = _block(blocks, name, dtype, (len(names), *shape))
    return Columns(names, values, _presence(blocks, name, values.shape))


def _names(meta: dict[str, Any], key: str, prefix: str, most: int) -> tuple[str, ...]:
    """A list of names, which `check_batch` looks at."""
    return tuple(expect_list(meta.get(key), prefix + key, most))


def _block(blocks: Blocks, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Return a block of the given dtype and shape, where None stands for any extent. Raises WireError."""
    block = blocks.get(name)
    if block is None:
        raise WireError(name, "is missing")
    if block.dtype != DTYPES[dtype]:
        raise WireError(name, f"must have dtype {dtype}, got {block.dtype}")
    if block.shape != shape and not _fits(block.shape, shape):
        raise WireError(name, f"must have shape {_shape_text(shape)}, got {_shape_text(block.shape)}")
    return block


def _fits(have: tuple[int, ...], want: tuple[int | None, ...]) -> bool:
    return len(have) == len(want) and all(
        extent is None or extent == there for extent, there in zip(want, have, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if extent is None else str(extent) for extent in shape) + ")"


def _bits(present: Bool) -> NDArray[np.uint8]:
    return np.packbits(present, bitorder="little")


def _presence(blocks: Blocks, name: str, shape: tuple[int, ...]) -> Bool:
    size = math.prod(shape)
    packed = _block(blocks, f"{name}.present", "U8", ((size + 7) // 8,))
    return np.unpackbits(packed, count=size, bitorder="little").view(np.bool_).reshape(shape)


def _codes(texts: tuple[str, ...], known: tuple[str, ...], field: str) -> NDArray[np.uint8]:
    position = {text: index for index, text in enumerate(known)}
    try:
        return np.array([position[text] for text in texts], np.uint8)
    except KeyError as error:
        raise WireError(field, f"must be one of {', '.join(known)}, got {error.args[0]!r}") from error


def _texts(codes: NDArray[np.uint8], texts: object, field: str) -> tuple[str, ...]:
    known = expect_list(texts, field, _MAX_METHODS)
    for text in known:
        check_name(text, field, 64)
    if len(codes) and codes.max() >= len(known):
        raise WireError(field, f"has {len(known)} entries, entry {codes.max()} is referred to")
    return tuple(known[code] for code in codes.tolist())
