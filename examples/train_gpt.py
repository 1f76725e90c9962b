"""Train a byte-level GPT of a million parameters on Python's own sources, as one would at work.

python examples/train_gpt.py [--steps 3000] [--checkpoint gpt.pt]; started again with the same checkpoint it resumes the
run as a new attempt. It ends itself at a critical alert: try --rate 0.03.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import gradspectra
import torch
from gradspectra.demo.model import ByteGPT, draw, source_text
from torch.nn import functional

PARTS, EXAMPLES = 2, 16


def rate_at(step: int, options: argparse.Namespace) -> float:
    """Warm-up over 100 steps, then a cosine down to a tenth."""
    return options.rate * min(1.0, step / 100) * (0.55 + 0.45 * math.cos(math.pi * step / options.steps))


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    text, model = source_text(), ByteGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.95), weight_decay=0.1)
    saved = torch.load(options.checkpoint, weights_only=True) if options.checkpoint.exists() else None
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    first = saved["step"] + 1 if saved else 1

    with gradspectra.watch(
        model,
        optimizer,
        project="examples",
        run="byte-gpt",
        config=vars(options) | {"checkpoint": str(options.checkpoint)},
        total_steps=options.steps,
        resume=saved["run"] if saved else None,
        start_step=first - 1,
        on_alert=lambda alert: print("alert:", alert["message"]),
        stop_on="critical",
    ) as watch:
        generator = torch.Generator().manual_seed(options.seed + first)
        for step in range(first, options.steps + 1):
            for _ in range(PARTS):
                x, y = draw(text, EXAMPLES, model.context, generator)
                loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
                (loss / PARTS).backward()
                watch.log(loss=loss, examples=len(x), tokens=x.numel())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, options)
            optimizer.step()
            optimizer.zero_grad()
            if step % options.save_every == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state | {"step": step, "run": watch.run_id}, options.checkpoint)
                print(f"step {step}: loss {loss.item():.3f}, agent overhead {watch.overhead:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500, help="steps from one checkpoint to the next")
    parser.add_argument("--checkpoint", type=Path, default=Path("gpt.pt"))
    try:
        train(parser.parse_args())
    except gradspectra.InstabilityError as error:
        print(f"stopped: {error}")


if __name__ == "__main__":
    main()
