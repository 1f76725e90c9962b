"""The examples run as they stand against a server that was just started, and their runs are there afterwards."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.services import BIN, Rest, clean_environment, eventually, free_port, running

EXAMPLES = Path(__file__).parents[2] / "examples"
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[Rest]:
    """A server with a data folder of its own."""
    port = free_port()
    command = [str(BIN / "gradspectra"), "serve", "--port", str(port), "--data", str(tmp_path / "data")]
    with running(command, tmp_path / "serve.log", clean_environment()):
        rest = Rest(f"http://127.0.0.1:{port}")
        eventually(rest.up, 120, "the server answers")
        yield rest


def run_example(rest: Rest, folder: Path, name: str, *options: str) -> str:
    """Run an example to its end and return what it printed."""
    spool = str(folder / "spool")
    environment = clean_environment(GRADSPECTRA_SERVER=rest.address, GRADSPECTRA_SPOOL=spool, OMP_NUM_THREADS="1")
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_numbers_from_numpy_arrive(rest: Rest, tmp_path: Path) -> None:
    printed = run_example(rest, tmp_path, "without_torch.py")
    (run,) = rest.get("/runs")["items"]
    assert run["id"] in printed
    assert (run["name"], run["state"], run["last_step"]) == ("numpy-regression", "finished", 500)
    norms = rest.get(f"/runs/{run['id']}/layers/weight_norm", columns=500)
    assert norms["layers"] == ["weights"]
    assert norms["mean"][0][-1] == pytest.approx(32**0.5, rel=0.5)


@needs_torch
@pytest.mark.slow
def test_the_quickstart_learns_the_spirals(rest: Rest, tmp_path: Path) -> None:
    run_example(rest, tmp_path, "quickstart.py")
    (run,) = rest.get("/runs")["items"]
    assert (run["name"], run["state"], run["last_step"]) == ("two-spirals", "finished", 2000)
    assert min(rest.values(run["id"], "loss")) < 0.2


@needs_torch
@pytest.mark.slow
def test_the_gpt_example_resumes_from_its_checkpoint_as_a_new_attempt(rest: Rest, tmp_path: Path) -> None:
    run_example(rest, tmp_path, "train_gpt.py", "--steps", "45", "--save-every", "30")
    run_example(rest, tmp_path, "train_gpt.py", "--steps", "50", "--save-every", "30")
    (run,) = rest.get("/runs")["items"]
    assert (run["name"], run["attempt"], run["last_step"]) == ("byte-gpt", 2, 50)
    steps = rest.get(f"/runs/{run['id']}/series", names="loss", columns=100)["x"]
    assert steps == list(range(1, 51))


@needs_torch
@pytest.mark.slow
def test_the_learning_rate_falls_at_a_warning(rest: Rest, tmp_path: Path) -> None:
    printed = run_example(rest, tmp_path, "lower_lr_on_warning.py")
    (run,) = rest.get("/runs")["items"]
    assert (run["name"], run["state"], run["last_step"]) == ("lower-lr", "finished", 600)
    assert "1 cuts" in printed
    (cut,) = [line for line in printed.splitlines() if line.startswith("step 30")]
    assert "the learning rate is now 0.0015" in cut
    rates = rest.values(run["id"], "learning_rate")
    assert (rates[:300], rates[-280:]) == ([0.003] * 300, [0.0015] * 280)


@needs_torch
@pytest.mark.slow
def test_a_restart_skips_the_batches_that_broke_the_run(rest: Rest, tmp_path: Path) -> None:
    assert "stopped at step 231" in run_example(rest, tmp_path, "skip_batches.py")
    assert json.loads((tmp_path / "skip-batches" / "skip.json").read_text())["batches"] == [229, 230]
    again = run_example(rest, tmp_path, "skip_batches.py")
    assert "going on from step 200 without the batches [229, 230]" in again
    (run,) = rest.get("/runs")["items"]
    assert (run["name"], run["state"], run["attempt"], run["last_step"]) == ("skip-batches", "finished", 2, 400)
    losses = rest.values(run["id"], "loss")
    assert len(losses) == 400
    assert max(losses[200:]) < max(losses[:10])
