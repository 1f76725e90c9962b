"""The wheel holds everything the service needs: installed away from the sources, it serves, migrates and replays."""

from __future__ import annotations

import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx2
import pytest
from system.services import Rest, clean_environment, eventually, free_port, running

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sources as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("gradspectra-*.whl")
    return built


def test_the_wheel_holds_the_page_the_migrations_and_the_recording(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {
        str(path.relative_to(room))
        for room in (ROOT / name for name in ("core", "agent", "store", "worker", "frontend", "backend"))
        for path in room.glob("gradspectra*/**/*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert sources - set(names) == set()
    assert "gradspectra/demo/recording.bin.gz" in names
    assert any(name.startswith("gradspectra_frontend/static/vendor/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if not name.startswith("gradspectra-")} == {
        "gradspectra",
        "gradspectra_core",
        "gradspectra_store",
        "gradspectra_worker",
        "gradspectra_frontend",
        "gradspectra_backend",
    }


def replays(python: Path | str, environment: dict[str, str], folder: Path) -> None:
    """The demo starts, takes the recording in, shows its page and ends by Ctrl-C."""
    port = free_port()
    rest = Rest(f"http://127.0.0.1:{port}")
    command = [str(python), "-m", "gradspectra.cli", "demo", "--replay", "--port", str(port), "--", "--speed", "50"]
    with running(command, folder / "demo.log", environment, folder) as demo:
        eventually(rest.up, 120, "the server answers")
        eventually(
            lambda: any((run["last_step"] or 0) > 100 for run in rest.get("/runs")["items"]), 120, "steps are in"
        )
        page = httpx2.get(f"{rest.address}/static/js/main.js", trust_env=False)
        assert page.status_code == 200
        demo.stop(signal.SIGINT)
        assert demo.child.returncode == 0


def said_by(python: Path | str, code: str, environment: dict[str, str]) -> str:
    command = [str(python), "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_demo_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = clean_environment(PYTHONPATH=str(site))
    replays(sys.executable, environment, tmp_path)
    where = said_by(
        sys.executable, "import gradspectra, gradspectra_store; print(gradspectra_store.__file__)", environment
    )
    assert where.startswith(str(site))


def test_the_server_extra_is_all_that_a_server_needs(wheel: Path, tmp_path: Path) -> None:
    """Packages that only other extras bring are not there: what the server imports, its own extra must name."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    command = [str(python), "-m", "pip", "install", "--quiet", f"{wheel}[server]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    environment = clean_environment()
    replays(python, environment, tmp_path)
    assert said_by(python, "import gradspectra_worker.app; print('imported')", environment) == "imported\n"
