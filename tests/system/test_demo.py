"""The demo as a user starts it: one command, a live dashboard with an alert, Ctrl-C, and the data still there after."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gradspectra_backend import demo as demo_module
from playwright.sync_api import expect
from system.browser import PATIENCE, chromium_page, expect_curve, expect_heatmap
from system.services import BIN, Process, Rest, clean_environment, eventually, free_port, running, socket_answers

WITHOUT_TORCH = """
import sys

class WithoutTorch:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [WithoutTorch(finder) for finder in sys.meta_path]
"""
"""Python runs this at its start where it is a `sitecustomize` module: torch is then not to be found."""


def start_demo(folder: Path, port: int, *more: str) -> Any:
    """`gradspectra demo` in an empty folder, as from a terminal."""
    command = [str(BIN / "gradspectra"), "demo", "--port", str(port), *more]
    return running(command, folder / "demo.log", clean_environment(), folder)


def first_run(rest: Rest, known: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """The newest run that is not among the known ones and has taken a step."""
    return next(
        (run for run in rest.get("/runs")["items"] if run["id"] not in known and (run["last_step"] or 0) > 0), None
    )


def alert_rules(rest: Rest, run: str) -> set[str]:
    """Rules of all alerts of a run, open and closed."""
    return {alert["rule"] for alert in rest.get(f"/runs/{run}/alerts")["items"]}


def stop_by_ctrl_c(demo: Process, port: int) -> None:
    """Ctrl-C ends the demo with a good status, and nothing of it is left."""
    demo.stop(signal.SIGINT)
    assert demo.child.returncode == 0
    assert not socket_answers(port)


def check_page(address: str, run: str) -> None:
    """Curves, heatmap, alert and a spectrum are there to be seen."""
    with chromium_page(f"{address}/") as page:
        expect(page.locator(f'a[href^="/runs/{run}"]').first).to_be_visible(timeout=PATIENCE)
        page.goto(f"{address}/runs/{run}/overview")
        for figure in ("loss", "grad_norm", "learning_rate", "noise_scale"):
            expect_curve(page, figure)
        page.goto(f"{address}/runs/{run}/layers")
        expect_heatmap(page, "layers")
        page.goto(f"{address}/runs/{run}/alerts")
        expect(page.get_by_text("gradient spike").first).to_be_visible(timeout=PATIENCE)
        expect(page.locator("[data-alert-detail]")).to_contain_text("What to do", timeout=PATIENCE)


def check_numbers(rest: Rest, run: str) -> None:
    """What the job measured and what was derived from it is there by REST, too."""
    assert min(rest.values(run, "loss")) < 3.0
    eventually(lambda: rest.values(run, "noise_scale"), 120, "a noise scale of the run is derived")
    layers = [layer["name"] for layer in rest.get(f"/runs/{run}/layers")["items"]]
    assert any(name.endswith("qkv.weight[q]") for name in layers)
    ranks = rest.get(f"/runs/{run}/layers/effective_rank")
    assert any(value is not None and value > 1 for row in ranks["mean"] for value in row)
    assert eventually(lambda: rest.get(f"/runs/{run}")["overhead"], 120, "a heartbeat says the overhead") < 0.06


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: the replay is tested")
def test_the_demo_trains_shows_its_fault_and_is_there_again_the_next_time(tmp_path: Path) -> None:
    port = free_port()
    rest, address = Rest(f"http://127.0.0.1:{port}"), f"http://127.0.0.1:{port}"
    with start_demo(tmp_path, port) as demo:
        eventually(rest.up, 120, "the server answers")
        run = eventually(lambda: first_run(rest), 120, "the run has taken a step")
        assert run["state"] == "running"
        with chromium_page(f"{address}/runs/{run['id']}/overview") as page:
            expect_curve(page, "loss")
        eventually(lambda: "gradient_spike" in alert_rules(rest, run["id"]), 400, "the fault opened an alert")
        check_numbers(rest, run["id"])
        check_page(address, run["id"])
        stop_by_ctrl_c(demo, port)
        assert f"{address}/" in demo.output()

    with start_demo(tmp_path, port) as demo:
        eventually(rest.up, 120, "the server answers again")
        new = eventually(lambda: first_run(rest, (run["id"],)), 120, "a second run has taken a step")
        old = rest.get(f"/runs/{run['id']}")
        assert old["state"] == "finished"
        assert old["last_step"] >= 450
        with chromium_page(f"{address}/") as page:
            for shown in (old, new):
                expect(page.locator(f'a[href^="/runs/{shown["id"]}"]').first).to_be_visible(timeout=PATIENCE)
        stop_by_ctrl_c(demo, port)


def test_without_torch_the_demo_replays_a_recording_with_the_same_alerts(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    port = free_port()
    rest = Rest(f"http://127.0.0.1:{port}")
    environment = clean_environment(PYTHONPATH=str(tmp_path))
    command = [str(BIN / "gradspectra"), "demo", "--port", str(port), "--", "--speed", "20"]
    with running(command, tmp_path / "demo.log", environment, tmp_path) as demo:
        eventually(rest.up, 120, "the server answers")
        run = eventually(lambda: first_run(rest), 120, "the replayed run has taken a step")["id"]
        eventually(lambda: "gradient_spike" in alert_rules(rest, run), 60, "the recorded fault opened an alert")
        check_numbers(rest, run)
        eventually(lambda: rest.get(f"/runs/{run}")["state"] == "finished", 60, "the replay ends")
        check_page(f"http://127.0.0.1:{port}", run)
        assert "A recorded training job is replayed" in demo.output()
        assert rest.get(f"/runs/{run}")["notes"] == "A recording of the demo's training job, replayed."
        assert "stays until Ctrl-C" in demo.output()
        stop_by_ctrl_c(demo, port)


def test_a_taken_port_is_said_with_what_to_do(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with start_demo(tmp_path, port) as demo:
            assert demo.child.wait(120) == 1
            assert f"cannot listen on port {port}" in demo.output()
            assert "--port" in demo.output()
    assert not (tmp_path / "demo-data" / "gradspectra.db").exists()


def test_a_data_folder_that_cannot_be_made_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with start_demo(tmp_path, free_port(), "--data", str(tmp_path / "file" / "data")) as demo:
        assert demo.child.wait(120) == 1
        assert "cannot write in" in demo.output()
        assert "--data" in demo.output()


def test_what_does_not_obey_is_killed_after_three_seconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo_module.TRAINING_STOPS_WITHIN + demo_module.SERVER_STOPS_WITHIN < 3
    monkeypatch.setattr(demo_module, "TRAINING_STOPS_WITHIN", 0.01)
    monkeypatch.setattr(demo_module, "SERVER_STOPS_WITHIN", 0.01)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    children = [subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.stdout.close()
    demo_module._stop_all(children)
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2


def test_the_job_of_the_demo_ends_when_the_demo_is_gone(tmp_path: Path) -> None:
    """A demo killed outright leaves no training behind: the job sees that its parent is gone."""
    code = "import time; from gradspectra.demo.stopping import Stop; s = Stop(); print('up', flush=True)\n"
    code += "while not s.asked: time.sleep(0.05)\nprint('gone', flush=True)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {code!r}]); time.sleep(60)"
    with running([sys.executable, "-c", parent], tmp_path / "log", clean_environment()) as process:
        eventually(lambda: "up" in process.output(), 60, "the job is up")
        process.child.kill()
        eventually(lambda: "gone" in process.output(), 60, "the job ends")
