"""Without a CUDA device Triton's kernels run in its interpreter, which it asks for when it is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
