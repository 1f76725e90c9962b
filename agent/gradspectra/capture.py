"""CUDA graphs: while a stream is captured nothing of the agent may get into the graph."""

from __future__ import annotations

from typing import Any

import torch


def capturing() -> bool:
    """Whether the stream that this thread works on is being captured."""
    cuda: Any = torch.cuda
    return bool(cuda.is_initialized() and cuda.is_current_stream_capturing())
