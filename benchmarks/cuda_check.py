"""Everything about the agent that needs a CUDA device, in one go of less than ten minutes: prints JSON.

- `tests`: the tests of tests/agent/cuda, if pytest is there (an extra of the project, no part of torch).
- `runtime_calls`: what a step asks of the CUDA runtime with and without the agent, from torch's profiler: launches,
  copies, and calls that wait. A call that waits and that the plain step has not is the agent's fault. `-by-torch` is
  without Triton's kernels, and `fused` says whether these were in use.
- `overhead`: agent_overhead.py --device cuda, for a model whose steps the device fills and one whose steps it does not;
  the latter also without Triton's kernels.

Needs torch for CUDA and numpy; takes the project from its checkout, without installing it, and uses no network.
`python benchmarks/cuda_check.py --minutes 8`
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [ROOT / room for room in ("agent", "core")]
sys.path[:0] = [str(path) for path in (*ROOMS, ROOT / "benchmarks")]
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
STEPS = 16


def child(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run Python on these arguments with the project on its path."""
    paths = [str(path) for path in (*ROOMS, ROOT / "tests")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def tests(seconds: float) -> dict[str, Any]:
    """How the tests that need a device came out."""
    if importlib.util.find_spec("pytest") is None:
        return {"run": False, "why": "pytest is not installed"}
    alone = ("-p", "no:cacheprovider", "--confcutdir", "tests/agent")  # the settings of all tests need more libraries
    done = child("-m", "pytest", "-q", *alone, "tests/agent/cuda/test_cuda.py", seconds=seconds)
    return {"run": True, "passed": done.returncode == 0, "output": (done.stdout + done.stderr)[-3000:]}


def runtime_calls(watched: bool, fused: str = "triton", **options: Any) -> dict[str, Any]:
    """Calls of the CUDA runtime in a step of the demo's model, and copies to the host."""
    import gradspectra
    import torch
    from models import TASKS
    from torch.profiler import ProfilerActivity, profile

    os.environ["GRADSPECTRA_FUSED"] = fused
    task = TASKS["demo"]
    model = task.make().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    data = [[tensor.cuda() for tensor in task.draw(generator)] for _ in range(task.parts)]
    spool = tempfile.mkdtemp()
    watch = gradspectra.watch(model, optimizer, project="benchmark", spool=spool, enabled=watched, **options)

    def step() -> None:
        for x, y in data:
            loss = task.loss(model, x, y) / task.parts
            loss.backward()
            watch.log(loss=loss, examples=len(x))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    patience = time.monotonic() + 60
    for number in itertools.count():
        step()
        compiling = watched and watch.status()["fused"] == "being compiled"
        if number >= STEPS and (not compiling or time.monotonic() > patience):
            break
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            step()
    said = {"fused": watch.status()["fused"]} if watched else {}
    watch.close(0.0)
    os.environ.pop("GRADSPECTRA_FUSED")
    shutil.rmtree(spool, ignore_errors=True)
    calls = Counter(event.name for event in profiler.events() if event.name.startswith("cu"))
    copies = sum(event.name.startswith("Memcpy DtoH") for event in profiler.events())
    counted = {name: count / STEPS for name, count in sorted(calls.items())}
    return counted | {"copies to the host": copies / STEPS} | said


def overhead(task: str, minutes: float, fused: str = "triton") -> Any:
    """What agent_overhead.py says of this task, or how it failed."""
    os.environ["GRADSPECTRA_FUSED"] = fused
    variants = "plain,control,watch,watch-first-tier,watch-everything,clip,composer-style"
    fixed = ("--device", "cuda", "--steps", "4000", "--minutes", str(minutes), "--variants", variants)
    done = child("benchmarks/agent_overhead.py", "--task", task, *fixed, seconds=60 * minutes + 120)
    return json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-3000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="all of it together, about")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    until = time.monotonic() + 60 * options.minutes
    everything: dict[str, Any] = {"budget": None, "spectra": 4}
    found: dict[str, Any] = {
        "benchmark": "cuda_check",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tests": tests(60 * options.minutes / 3),
        "runtime_calls": {
            "plain": runtime_calls(False),
            "watch-everything": runtime_calls(True, **everything),
            "watch-everything-by-torch": runtime_calls(True, "auto", **everything),
            "watch": runtime_calls(True),
        },
    }
    plain = found["runtime_calls"]["plain"]
    watching = found["runtime_calls"]["watch-everything"]
    found["added_waits_a_step"] = {name: watching.get(name, 0.0) - plain.get(name, 0.0) for name in WAITING}
    print(json.dumps(found), file=sys.stderr)
    left = max((until - time.monotonic()) / 60, 1.0)
    found["overhead"] = {task: overhead(task, left / 3 - 0.3) for task in ("gpt-85m", "demo")}
    found["overhead"]["demo-by-torch"] = overhead("demo", left / 3 - 0.3, "auto")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
