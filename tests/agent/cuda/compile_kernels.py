"""Compiles the kernels for a processor that is not there, down to its machine code; prints how many bytes each has."""

from __future__ import annotations

import gradspectra.triton_kernels as kernels
from gradspectra.device_build import CHUNKS_AT_ONCE, OPTIONS, SAMPLE_AT_ONCE, WARPS
from gradspectra.device_table import ADAM
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
KIND = kernels.tl.float32
TYPES = {"words": "*i64", "numbers": "*fp64", "chunks": "*i64", "pieces": "*i64", "partials": "*fp32"}
TYPES |= {"results": "*fp32", "finite": "*fp64", "second": "*fp32", "chosen": "*i64", "sample": "*fp32"}
KINDS = {"GRADIENT": KIND, "WEIGHT": KIND, "FIRST": KIND, "SECOND": KIND}
EACH = {
    kernels.sums: KINDS | {"WIDTH": 256, "RULE": ADAM},
    kernels.layers: {"RULE": ADAM, "BLOCK_OF_CHUNKS": CHUNKS_AT_ONCE},
    kernels.samples: {"KIND": KIND, "BLOCK_OF_SAMPLE": SAMPLE_AT_ONCE},
}

for kernel, constants in EACH.items():
    types = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    code = compiled(source, target=TARGET, options={"num_warps": WARPS} | OPTIONS).asm["cubin"]
    print(kernel.__name__, len(code))
