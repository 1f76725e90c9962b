"""Which blocks of a fused tensor are layers of their own, and as what matrix a layer is seen."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gradspectra_core.layers import Layer, role_of

FusedBlock = tuple[str, int, int, int]
"""(suffix, axis, start, stop): the layer's name is the tensor's name + suffix (`[q]`), its rows start:stop on axis."""

_QKV = re.compile(r"(?:^|\.)(c_attn|in_proj|w_?qkv|qkv|qkv_proj|to_qkv|qkv_w|in_proj_qkv)(?:\.weight|_weight)?$", re.I)
_KV = re.compile(r"(?:^|\.)(w?kv|kv_proj|to_kv)\.weight$", re.I)
_GATED = re.compile(r"(?:^|\.)(gate_up_proj|w12)\.weight$", re.I)
_QKV_THIRDS_FIRST = frozenset(("qkv", "to_qkv", "in_proj"))
_EXPERTS = re.compile(r"experts?(?!\w*\.\d)", re.I)
"""In a name, unless the experts are numbered modules (`experts.3.w1`), of which each has its own tensors."""
_OF_EXPERTS = re.compile(r"[Ee]xpert|MoE|[Mm]oe(?:Block|Layer|MLP|FFN)?$")
_NO_EXPERTS = frozenset(("conv", "embedding", "norm", "bias"))


def fused_blocks(name: str, shape: Sequence[int], module_kind: str = "") -> tuple[FusedBlock, ...]:
    """Blocks of a tensor in which several projections are stored one after another; () for any other tensor.

    name, shape: of the parameter. module_kind: class name of its module. Fused queries, keys and values give [q],
    [k] and [v], also with fewer keys and values than queries; fused gates give [gate] and [up]; experts in one
    tensor give `expert_blocks`. Rows are outputs, but columns in the transposed `Conv1D` of GPT-2. Layouts that
    interleave heads (`query_key_value`) are no blocks of rows and are left whole.
    """
    if len(shape) < 2 or min(shape) < 1:
        return ()
    if experts := expert_blocks(name, shape, module_kind):
        return experts
    found = _QKV.search(name)
    if found and not _is_mamba(name):
        return _split_qkv(found[1].lower(), shape, module_kind)
    if _KV.search(name):
        return _equal_blocks(("k", "v"), 0, shape[0])
    if _GATED.search(name):
        return _equal_blocks(("gate", "up"), 0, shape[0])
    return ()


def expert_blocks(name: str, shape: Sequence[int], module_kind: str = "") -> tuple[FusedBlock, ...]:
    """Blocks [0], [1] … of a tensor (experts, rows, columns) that holds weights of several experts; () for others.

    Arguments are those of `fused_blocks`. Experts are told by the tensor's or its module's name.
    """
    if len(shape) != 3 or shape[0] < 2 or not (_EXPERTS.search(name) or _OF_EXPERTS.search(module_kind)):
        return ()
    if "conv" in module_kind.lower() or role_of(name, shape, module_kind) in _NO_EXPERTS:
        return ()
    return tuple((f"[{expert}]", 0, expert, expert + 1) for expert in range(shape[0]))


def _is_mamba(name: str) -> bool:
    """`in_proj.weight` is the input of a state-space block; attention stores `in_proj_weight`."""
    return name.endswith("in_proj.weight") or name == "in_proj"


def _split_qkv(token: str, shape: Sequence[int], module_kind: str) -> tuple[FusedBlock, ...]:
    transposed = module_kind == "Conv1D" or (token == "c_attn" and not module_kind and shape[1] == 3 * shape[0])
    axis = 1 if transposed and len(shape) == 2 else 0
    size, width = shape[axis], shape[1 - axis]
    grouped = width < size < 3 * width and (size - width) % 2 == 0
    if size % 3 == 0 and (token in _QKV_THIRDS_FIRST or not grouped):
        return _equal_blocks(("q", "k", "v"), axis, size)
    if grouped:
        narrow = (size - width) // 2
        return (
            ("[q]", axis, 0, width),
            ("[k]", axis, width, width + narrow),
            ("[v]", axis, width + narrow, size),
        )
    return ()


def _equal_blocks(names: tuple[str, ...], axis: int, size: int) -> tuple[FusedBlock, ...]:
    if size % len(names):
        return ()
    part = size // len(names)
    return tuple((f"[{name}]", axis, index * part, (index + 1) * part) for index, name in enumerate(names))


def block_shape(shape: Sequence[int], block: FusedBlock) -> tuple[int, ...]:
    """Shape of one block of a tensor of the given shape."""
    _, axis, start, stop = block
    return (*shape[:axis], stop - start, *shape[axis + 1 :])


def matrix_shape(layer: Layer) -> tuple[int, int] | None:
    """Rows and columns of the matrix that the layer's spectrum is taken of; None where it has none.

    A convolution (out, in, k, k) is (out, in·k·k), one of several tensors in one, as an expert (1, out, in) is,
    (out, in). Of experts that are not split (experts, out, in) the matrix is one expert's. Vectors, scalars and
    empty tensors have no spectrum.
    """
    shape = layer.shape
    if len(shape) < 2 or min(shape) < 1:
        return None
    if len(shape) == 3 and layer.role != "conv" and (shape[0] == 1 or "expert" in layer.name):
        return shape[1], shape[2]
    return shape[0], math.prod(shape[1:])
