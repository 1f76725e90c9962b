"""The demo's training job: a small GPT on real text, with one deliberate fault: a learning rate thirty times too high.

Started by `gradspectra demo`; alone: `python -m gradspectra.demo.training --help`. Server and token come from the
environment, as in any other job.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence

import torch
from torch.nn import functional

import gradspectra
from gradspectra.demo.model import ByteGPT, draw, source_text
from gradspectra.demo.stopping import Stop, leave

PARTS = 4
EXAMPLES_PER_PART = 4
PEAK_RATE = 1e-3
WARMUP_STEPS = 50
FAULT_FACTOR = 30.0
FAULT_STEPS = 6


def learning_rate(step: int, total_steps: int, fault_at: int) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak; thirty times that for six steps from `fault_at` on."""
    progress = min(1.0, step / total_steps)
    rate = PEAK_RATE * min(1.0, step / WARMUP_STEPS) * (0.55 + 0.45 * math.cos(math.pi * progress))
    return rate * FAULT_FACTOR if fault_at <= step < fault_at + FAULT_STEPS else rate


def train(options: argparse.Namespace) -> None:
    """Train until the last step or until asked to stop; prints a line every 50 steps."""
    stop = Stop()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # the rest is for the server and the browser
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    text = source_text()
    model = ByteGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.1)
    with gradspectra.watch(
        model,
        optimizer,
        project="demo",
        run=options.run,
        config={"peak_rate": PEAK_RATE, "parts": PARTS, "examples_per_part": EXAMPLES_PER_PART, "seed": options.seed},
        tags=["demo"],
        notes=f"Learning rate {FAULT_FACTOR:g} times too high for {FAULT_STEPS} steps from step {options.fault_at} on.",
        total_steps=options.steps,
        budget=options.budget,
    ) as watch:
        for step in range(1, options.steps + 1):
            began = time.monotonic()
            for _ in range(PARTS):
                x, y = draw(text, EXAMPLES_PER_PART, model.context, generator)
                loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
                (loss / PARTS).backward()  # type: ignore[no-untyped-call]
                watch.log(loss=loss, examples=len(x), tokens=x.numel())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate(step, options.steps, options.fault_at)
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                print(f"step {step:5d} of {options.steps}   loss {loss.item():.3f}", flush=True)
            stop.sleep(1 / options.pace - (time.monotonic() - began))
            if stop.asked:
                break


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m gradspectra.demo.training", description=__doc__)
    parser.add_argument("--run", default=time.strftime("byte-gpt-%H%M%S"), help="name of the run")
    parser.add_argument("--steps", type=int, default=6000, help="length of the run (default 6000: ten minutes)")
    parser.add_argument("--fault-at", type=int, default=450, help="step at which the learning rate jumps (default 450)")
    parser.add_argument("--pace", type=float, default=10.0, help="at most this many steps a second (default 10)")
    parser.add_argument("--budget", type=float, default=0.01, help="share of step time for the agent (default 0.01)")
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
    leave()
