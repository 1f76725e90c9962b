"""A training job for page_latency.py: the demo's model under the agent, which tells the time of each optimizer step.

python benchmarks/stepping_job.py SERVER [--rate 10] [--seconds 30] prints the run's id, then "step seconds-since-1970".
"""

from __future__ import annotations

import argparse
import tempfile
import time

import gradspectra
import torch
from gradspectra.demo.model import ByteGPT, draw, source_text
from torch.nn import functional


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server")
    parser.add_argument("--rate", type=float, default=10.0, help="steps per second at most")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator, text, model = torch.Generator().manual_seed(0), source_text(), ByteGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    end, step = time.monotonic() + options.seconds, 0
    with (
        tempfile.TemporaryDirectory() as spool,
        gradspectra.watch(model, optimizer, project="latency", run="job", server=options.server, spool=spool) as watch,
    ):
        while time.monotonic() < end:
            began = time.monotonic()
            x, y = draw(text, 8, model.context, generator)
            loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            watch.log(loss=loss, examples=len(x))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            now, step = time.time(), step + 1
            if step == 1:
                print(_named(watch), flush=True)
            print(step, now, flush=True)
            optimizer.zero_grad()
            time.sleep(max(0.0, 1 / options.rate - (time.monotonic() - began)))


def _named(watch: gradspectra.Watch) -> str:
    """The run's id, as soon as the server has given it."""
    while watch.url is None:
        time.sleep(0.05)
    return watch.run_id


if __name__ == "__main__":
    main()
