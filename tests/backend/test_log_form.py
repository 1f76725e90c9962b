"""What the server writes into its log, as somebody reads it at night."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from backend.servers import MAIN, environment, serving
from system.services import eventually, free_port

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<severity>[A-Z]+) \[\d+\] (?P<said>.+)")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_each_line_has_its_time_its_severity_and_its_process(tmp_path: Path, processes: str) -> None:
    with serving(tmp_path, redis_url=f"unix://{tmp_path / 'nobody'}", processes=processes, log_level="info") as server:
        assert httpx2.get(f"{server.url}/api/v1/health", timeout=60, trust_env=False).status_code == 200
        _, log = server.stopped(signal.SIGTERM)
    found = [LINE.fullmatch(line) for line in log.splitlines()]
    assert None not in found, log
    said = [(line["severity"], line["said"]) for line in found if line is not None]
    assert any(severity == "INFO" and text.startswith("database migrated") for severity, text in said)
    assert any(
        severity == "INFO" and text.startswith(("Shutting down", "Stopping parent process")) for severity, text in said
    )


def test_at_first_nothing_is_said_that_is_no_warning(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.stopped(signal.SIGINT) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_full_disk_for_the_log_stops_no_server(tmp_path: Path, processes: str) -> None:
    port = free_port()
    settings = {"redis_url": f"unix://{tmp_path / 'nobody'}", "processes": processes, "log_level": "debug"}
    command = [sys.executable, "-c", MAIN, "serve", "--port", str(port), "--data", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, env=environment(**settings), stdout=full, stderr=full)
    try:
        address = f"http://127.0.0.1:{port}/api/v1/health"
        eventually(lambda: httpx2.get(address, timeout=60, trust_env=False).status_code == 200, 60, "it answers")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
