"""The notebook's cells run in order against a server that was just started; it is stored without outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from system.services import BIN, Rest, clean_environment, eventually, free_port, running

NOTEBOOK = Path(__file__).parents[2] / "examples" / "reading.ipynb"


def cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs() -> None:
    assert [cell["id"] for cell in cells() if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_order(tmp_path: Path) -> None:
    port = free_port()
    command = [str(BIN / "gradspectra"), "serve", "--port", str(port), "--data", str(tmp_path / "data")]
    with running(command, tmp_path / "serve.log", clean_environment()):
        rest = Rest(f"http://127.0.0.1:{port}")
        eventually(rest.up, 120, "the server answers")
        program = tmp_path / "reading.py"
        program.write_text("\n\n".join("".join(cell["source"]) for cell in cells()))
        environment = clean_environment(
            GRADSPECTRA_SERVER=rest.address, GRADSPECTRA_SPOOL=str(tmp_path / "spool"), TMPDIR=str(tmp_path)
        )
        done = subprocess.run(
            [sys.executable, str(program)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the loss was not finite at step [200]" in done.stdout
        assert "step 200: critical nonfinite" in done.stdout
        (run,) = rest.get("/runs")["items"]
        assert (run["name"], run["state"], run["last_step"]) == ("quadratic", "finished", 300)
