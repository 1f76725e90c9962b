"""The real service in a thread of the test, on a free port, with SQLite in a folder."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from gradspectra.client import Run
from gradspectra_backend.app import create_app
from gradspectra_backend.settings import load_settings


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """Run the service; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = create_app(load_settings(data=folder, port=port))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        end = time.monotonic() + 180
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            assert time.monotonic() < end, "the service did not start in time"
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(60)


def eventually(run: Callable[[], Run], condition: Callable[[Run], bool], seconds: float = 180.0) -> Run:
    """Read the run until the condition holds."""
    end = time.monotonic() + seconds
    while not condition(found := run()):
        assert time.monotonic() < end, found.info
        time.sleep(0.05)
    return found
