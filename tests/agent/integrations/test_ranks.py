"""Two processes of each trainer: rank 0 measures the step of both."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from agent.ways.way import way

pytestmark = pytest.mark.slow


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def trained(trainer: str, *launcher: str) -> None:
    """Start both; the program itself checks each step."""
    if importlib.util.find_spec(trainer) is None:
        pytest.skip(f"{trainer} is not installed: pip install 'gradspectra[integrations]'")
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MASTER_PORT": port()}
    command = [sys.executable, *launcher, "-m", "agent.integrations.ranks", trainer]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"steps"'))
    assert told == {"steps": [1, 2, 3], "closed": "finished"}


def by_torchrun(trainer: str) -> None:
    trained(trainer, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port()}")


@way("Accelerate (integrations.accelerate.watch)")
def test_two_processes_of_accelerate():
    by_torchrun("accelerate")


@way("Hugging Face Trainer (GradSpectraCallback)")
def test_two_processes_of_a_trainer():
    by_torchrun("transformers")


@way("Lightning (GradSpectraCallback)")
def test_two_processes_of_lightning_s_strategy():
    trained("lightning")
