"""Server processes whose first process was killed give the port back."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from backend.servers import serving
from gradspectra_backend.start import bind
from worker.redis_server import redis_running

PATIENCE = 90.0


def free(port: int) -> bool:
    """Whether a server could be started on the port of the loopback address."""
    try:
        bind("127.0.0.1", port).close()
    except Exception:
        return False
    return True


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    with redis_running(tmp_path) as redis, serving(tmp_path, redis_url=redis.url, processes="2") as server:
        port = int(urlsplit(server.url).port or 0)
        assert httpx2.get(f"{server.url}/api/v1/health", timeout=PATIENCE, trust_env=False).status_code == 200
        assert not free(port)
        server.process.send_signal(signal.SIGKILL)
        until = time.monotonic() + PATIENCE
        while not free(port):
            assert time.monotonic() < until, "the port is still taken"
            time.sleep(0.1)
        server.log.seek(0)
        assert "the process that started this one is gone; this one ends, too" in server.log.read()
