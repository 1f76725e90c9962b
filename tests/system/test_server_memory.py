"""A server that is sent a large run, with a page open and exports going on, stays within the memory that is claimed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "server_memory.py"
MOST_MEGABYTES = 450


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the benchmark reads the peak in /proc")
def test_a_server_with_a_page_open_and_two_exports_takes_less_than_is_claimed() -> None:
    command = [sys.executable, str(BENCHMARK), "--seconds", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {path.partition("?")[0] for path in found["answers"]} >= {"figures/layers", "figures/loss", "export"}
    assert found["peak_megabytes"] < MOST_MEGABYTES
