"""The benchmark of the agent's cost: what it prints, how it weighs steps that log now and then, and its peers."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OF_BLOCKS = {"median", "standard_error", "trimmed_mean"}
OF_TURNS = {"mean", "standard_error", "median"}
OF_AGENT = {
    "sending_thread",
    "sending_thread_outside",
    "wall_with_sending",
    "blocks_with_sending",
    "reported",
    "cadence_layers",
    "cadence_second",
    "cadence_spectra",
    "not_measured",
}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """agent_overhead.py and variants.py as modules, gone again afterwards with what they import beside them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("agent_overhead"), importlib.import_module("variants")
    for name in {path.stem for path in BENCHMARKS.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


def run_benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run agent_overhead.py in a process of its own, with what lies in the folder found first by its imports."""
    command = [sys.executable, str(BENCHMARKS / "agent_overhead.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_run_of_two_blocks_gives_every_figure_and_says_which_library_is_missing(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\")")
    variants = "plain,watch,norm-loop,clip,wandb"
    done = run_benchmark(
        tmp_path, "--task=cnn", "--threads=1", "--warmup=8", "--steps=800", "--minutes=0", f"--variants={variants}"
    )
    assert done.returncode == 0, done.stderr
    said = "wandb is left out, its library cannot be imported: pip install wandb (No module named 'wandb')"
    assert said in done.stderr.splitlines()
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["left_out"] == {"wandb": said}
    assert (found["task"], found["parameters"], found["turns"], found["threads"]) == ("cnn", 2_356_458, 16, 1)
    assert set(found["versions"]) == {"python", "torch", "gradspectra"}
    told = {key: set(value) for key, value in found.items() if isinstance(value, dict) and "blocks" in value}
    common = {"wall", "processor", "blocks", "times"}
    assert told == {"watch": common | OF_AGENT, "norm-loop": common, "clip": common}
    for name in told:
        assert set(found[name]["blocks"]) == OF_BLOCKS
        assert set(found[name]["wall"]) == set(found[name]["processor"]) == OF_TURNS
    assert {name: set(found[name]["times"]) for name in told} == {
        "watch": {"clip"},
        "norm-loop": {"watch"},
        "clip": {"watch"},
    }
    agent, clip = found["watch"]["blocks_with_sending"], found["clip"]["blocks"]["median"]
    assert found["watch"]["times"]["clip"]["ratio"] == pytest.approx(agent / clip, abs=2e-3)


@pytest.mark.slow
def test_a_variant_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    done = run_benchmark(tmp_path, "--variants=plain,mlfow")
    assert done.returncode == 2
    assert "got ['plain', 'mlfow']" in done.stderr


def test_a_library_that_breaks_on_import_leaves_its_variant_out(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "composer"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('made for another torch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = "composer is left out, its library cannot be imported: pip install mosaicml (made for another torch)"
    assert scripts[1].left_out("composer") == said
    assert scripts[1].left_out("composer-style") is None


def test_steps_that_log_now_and_then_count_as_often_as_they_come(scripts: tuple[ModuleType, ModuleType]) -> None:
    numbers = range(2, 242)
    marked = [number % 100 == 0 for number in numbers]
    own = [1.1 + 50 * logs for logs in marked]
    plain = [1.0] * len(own)
    overhead = scripts[0]
    often = overhead.of_blocks(own, plain, 16, marked, 100)
    assert often["median"] == pytest.approx(0.1 + 50 / 100)
    assert math.isnan(overhead.of_blocks(own, plain, 200, marked, 100)["median"]), "no step that logs is among them"
    always = overhead.of_blocks([3.0] * len(own), plain, 16, [True] * len(own), 1)
    assert always == {"median": 2.0, "standard_error": 0.0, "trimmed_mean": 2.0}


def test_a_turn_is_quiet_if_no_variant_took_far_longer_than_it_does(scripts: tuple[ModuleType, ModuleType]) -> None:
    plain = [9.0, 1.0, 1.0, 2.0, 1.0, 1.0]
    slow_itself = [9.0, 5.0, 5.0, 5.0, 9.0, 5.0]
    assert scripts[0].quiet_turns([plain, slow_itself], 1) == [1, 2, 5]


def test_a_ratio_has_the_error_of_both_figures(scripts: tuple[ModuleType, ModuleType]) -> None:
    agent = {"blocks": {"median": 0.01, "standard_error": 0.001}, "blocks_with_sending": 0.02}
    peer = {"blocks": {"median": 0.10, "standard_error": 0.01}}
    assert scripts[0].times(peer, agent) == {
        "ratio": 5.0,
        "standard_error": pytest.approx(5 * (0.05**2 + 0.1**2) ** 0.5, abs=1e-3),
    }


def test_norms_as_composer_are_those_of_the_step(scripts: tuple[ModuleType, ModuleType]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    first = second = 0.0
    for step in (1, 2, 3):
        optimizer.zero_grad()
        model(torch.full((2, 5), float(step))).square().sum().backward()
        gradient = model.weight.grad.double().numpy()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        optimizer.step()
    found = scripts[1].norms_as_composer(model, optimizer)
    weight = model.weight.detach().double().numpy()
    update = 0.01 * (first / (1 - 0.9**3)) / (np.sqrt(second / (1 - 0.999**3)) + 1e-8) - 0.1 * weight
    expected = {"grad": gradient, "moment": first, "param": weight, "update": update}
    for kind, values in expected.items():
        assert found[f"l2_norm/{kind}/weight"] == pytest.approx(np.sqrt(np.sum(np.square(values))), rel=1e-5)
    both = [found["l2_norm/grad/weight"], found["l2_norm/grad/bias"]]
    assert found["l2_norm/grad/global"] == pytest.approx(np.hypot(*both), rel=1e-5)
    assert len(found) == 9
