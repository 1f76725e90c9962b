"""A small real training job for the system tests: a tiny GPT, each step measured, with a fault in its learning rate.

python job.py STEPS FAULT_AT. Server and spool come from the environment.
"""

from __future__ import annotations

import sys

import gradspectra
import torch
from gradspectra.demo.model import ByteGPT, draw, source_text
from torch.nn import functional

PARTS, EXAMPLES, CONTEXT = 2, 8, 32


def main(steps: int, fault_at: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    text, model = source_text(500_000), ByteGPT(width=64, depth=2, heads=2, context=CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    options = {"project": "system", "run": "production", "total_steps": steps}
    with gradspectra.watch(model, optimizer, budget=None, every=1, spectra=20, **options) as watch:
        for step in range(1, steps + 1):
            for _ in range(PARTS):
                x, y = draw(text, EXAMPLES, CONTEXT, generator)
                loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
                (loss / PARTS).backward()
                watch.log(loss=loss, examples=len(x), tokens=x.numel())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            rate = 1e-3 * min(1.0, step / 50) * (100 if fault_at <= step < fault_at + 4 else 1)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
