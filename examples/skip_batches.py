"""Skip the batches that broke a run: stop at an alert, write down what was fed, start again without it.

Run it twice. The first start meets a broken batch and stops at the alert; the second goes on from the last checkpoint
before it, as a new attempt of the same run, and leaves out what skip.json names. A few seconds each on a CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gradspectra
import torch
from torch import nn
from torch.nn import functional

BROKEN, SAVE_EVERY = 230, 50
SUSPECTS = 2
"""Batches left out for each alert: that of the step at which it opened, and the one before."""


def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The data in their fixed order; one batch has targets in another unit."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(index))
    y = x.sin().sum(1, keepdim=True)
    return x, 1000 * y if index == BROKEN else y


def checkpoint_before(folder: Path, step: float) -> dict[str, Any] | None:
    """The newest checkpoint of an earlier step; None without one."""
    taken = {int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.pt")}
    newest = max((t for t in taken if t < step), default=None)
    return None if newest is None else torch.load(taken[newest], weights_only=True)


def train(folder: Path, steps: int) -> None:
    notes = folder / "skip.json"
    skip = json.loads(notes.read_text()) if notes.exists() else {"batches": [], "alert_step": steps + 1}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    saved = checkpoint_before(folder, skip["alert_step"])
    fed: dict[int, int] = {}

    def write_down(alert: dict[str, Any]) -> None:
        step = alert["opened_step"]
        found = [fed[s] for s in range(step - SUSPECTS + 1, step + 1) if s in fed]
        notes.write_text(json.dumps({"batches": sorted({*skip["batches"], *found}), "alert_step": step}))

    with gradspectra.watch(
        model,
        optimizer,
        project="examples",
        run="skip-batches",
        total_steps=steps,
        resume="auto" if saved else None,
        on_alert=write_down,
        stop_on="warning",
    ) as watch:
        first, index = 1, 0
        if saved:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            watch.load_state_dict(saved["watch"])
            first, index = saved["watch"]["step"] + 1, saved["next_batch"]
            print(f"going on from step {first - 1} without the batches {skip['batches']}")
        for step in range(first, steps + 1):
            while index in skip["batches"]:
                index += 1
            fed[step] = index
            x, y = batch(index)
            index += 1
            loss = functional.mse_loss(model(x), y)
            loss.backward()
            watch.log(loss=loss, examples=len(x))
            optimizer.step()
            optimizer.zero_grad()
            if step % SAVE_EVERY == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "next_batch": index}
                torch.save(state | {"watch": watch.state_dict()}, folder / f"step-{step}.pt")
    print(f"final loss {loss.item():.3f} after {steps} steps; the run is at {watch.url}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("skip-batches"), help="checkpoints and skip.json")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    try:
        train(options.folder, options.steps)
    except gradspectra.InstabilityError as error:
        print(f"stopped at {error}; start again to go on without the batches in {options.folder / 'skip.json'}")


if __name__ == "__main__":
    main()
