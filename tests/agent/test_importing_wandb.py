"""Runs that the real wandb wrote offline become runs with the same numbers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent.service import service
from agent.test_importing import imported, values
from gradspectra import cli

wandb = pytest.importorskip("wandb", reason="wandb is not installed (the extra wandb has it)")
LONG = "x" * 100_000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service(tmp_path_factory.mktemp("service") / "data") as url:
        yield url


@pytest.fixture(autouse=True)
def _settings(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSPECTRA_SERVER", url)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log file of a run with every kind of entry, larger than one block of it."""
    folder = tmp_path_factory.mktemp("wandb")
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    config = {"lr": 0.1, "model": {"layers": 2}, "text": LONG}
    with wandb.init(mode="offline", dir=str(folder), project="p", name="mine", config=config, settings=settings) as run:
        run.log({"train/loss": 2.5, "lr": 0.1, "deep": {"er": 1}, "note": "text", "flag": True})
        run.log({"train/loss": math.nan}, commit=False)
        run.log({"eval/loss": math.inf})
        for step in range(2, 2000):
            run.log({"train/loss": 1 / step, "tokens": 10 * step})
        media = {"table": wandb.Histogram([1, 2, 3]), "page": wandb.Html("<b>x</b>")}
        run.log({"train/loss": -math.inf, **media}, step=5000)
        run.config.update({"late": 7})
    (file,) = folder.rglob("*.wandb")
    return file


def test_an_offline_run_comes_with_its_numbers_times_name_and_configuration(
    recorded: Path, url: str, tmp_path: Path, capsys: Any
) -> None:
    run, said = imported(url, capsys, "wandb", str(recorded))
    assert (run.name, run.state, run.last_step) == ("mine", "finished", 5001)
    assert run.config == {"lr": 0.1, "model": {"layers": 2}, "text": LONG, "late": 7}
    rows = json.loads(run.export(tmp_path / "run.json", names=["loss", "tokens"]).read_text())
    losses = [2.5, "NaN", *(1 / step for step in range(2, 2000)), "-Infinity"]
    assert [row["loss"] for row in rows] == losses
    assert [row["tokens"] for row in rows] == [None, None, *(10 * step for step in range(2, 2000)), None]
    times = [row["time"] for row in rows]
    assert time.time() - 600 < times[0] <= times[-1] < time.time()
    assert (values(run, "learning_rate"), values(run, "deep/er"), values(run, "eval_loss")) == (
        {1: 0.1},
        {1: 1.0},
        {2: math.inf},
    )
    assert "left out because they are no numbers: flag, note, page, table" in said["remarks"]


def test_a_folder_is_searched_and_a_torn_log_is_imported_up_to_there(
    recorded: Path, url: str, tmp_path: Path, capsys: Any
) -> None:
    torn = tmp_path / "offline" / "run-x.wandb"
    torn.parent.mkdir()
    content = recorded.read_bytes()
    torn.write_bytes(content[: len(content) * 2 // 3])
    run, said = imported(url, capsys, "wandb", str(tmp_path), "--columns", "train/loss")
    assert 5 < run.last_step < 2000
    assert run.series().names == ("loss",)
    assert "run-x.wandb is torn or damaged at byte" in said["remarks"][0]
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    torn.write_bytes(damaged)
    _, said = imported(url, capsys, "wandb", str(torn))
    assert "is torn or damaged at byte" in said["remarks"][0]


def test_what_is_no_log_of_wandb_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["import", "wandb", str(tmp_path)]) == 1
    assert "there is no log file of W&B here" in capsys.readouterr().err
    (tmp_path / "a.wandb").write_text("something else")
    assert cli.main(["import", "wandb", str(tmp_path)]) == 1
    assert "a.wandb: is not a log of W&B" in capsys.readouterr().err


def test_the_files_of_a_run_that_was_resumed_become_attempts_of_one(url: str, tmp_path: Path, capsys: Any) -> None:
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    for start in (0, 3):
        options = {"mode": "offline", "dir": str(tmp_path), "id": "abc123", "resume": "allow", "settings": settings}
        with wandb.init(**options) as run:
            for step in range(start, start + 3):
                run.log({"loss": float(step)}, step=step)
    first, second = sorted(tmp_path.glob("wandb/offline-*/*.wandb"))
    one, _ = imported(url, capsys, "wandb", str(first), "--project", "again")
    both, _ = imported(url, capsys, "wandb", str(second), "--project", "again", "--resume", "--step-offset", "1")
    assert (one.id, both.info["attempt"]) == (both.id, 2)
    assert values(both, "loss") == {step: step - 1.0 for step in range(1, 7)}
