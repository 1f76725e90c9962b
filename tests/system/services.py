"""Starts real services as processes of their own, and waits for what they do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

Answer = TypeVar("Answer")
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of gradspectra, with some of the test's own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GRADSPECTRA_")}
    return own | {"PYTHONUNBUFFERED": "1"} | more


def eventually(look: Callable[[], Answer], seconds: float, what: str) -> Answer:
    """Call `look` until its answer is true, at most so long; a server that is not there yet counts as no."""
    deadline = time.monotonic() + seconds
    answer: Answer | None = None
    while time.monotonic() < deadline:
        with suppress(httpx2.TransportError):
            answer = look()
            if answer:
                return answer
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds} s; the last answer was {answer!r}")


class Process:
    """A child with its output in a file; it lives in a session of its own, as one started from another terminal."""

    def __init__(
        self, command: list[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.child = subprocess.Popen(
                command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def output(self) -> str:
        """Everything printed so far."""
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, within: float = 60.0) -> None:
        """Send a signal and wait for the end; fails if that takes longer than `within` seconds, on any machine."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            self.child.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            raise AssertionError(f"still there {within} s after signal {number}:\n{self.output()}") from None


@contextmanager
def running(
    command: list[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
) -> Iterator[Process]:
    """A process for the time of a block; its output is shown where the block fails."""
    process = Process(command, log, environment, folder)
    try:
        yield process
    except BaseException:
        print(f"--- {' '.join(command)}\n{process.output()[-5000:]}", file=sys.stderr)
        raise
    finally:
        process.stop()


def redis_command(port: int) -> list[str]:
    """Start a Redis on a port, without anything on disk; a test without one is skipped."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    return [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis of its own on a free port, without anything on disk. Yields its URL."""
    port = free_port()
    with running(redis_command(port), folder / "redis.log", clean_environment(), folder):
        eventually(lambda: socket_answers(port), 60, "Redis listens")
        yield f"redis://127.0.0.1:{port}/0"


def socket_answers(port: int) -> bool:
    """Whether something listens on the port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Rest:
    """The server's interface, as a script would use it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer of a call that must succeed."""
        return self._answer("GET", path, params=params)

    def send(self, method: str, path: str, body: Any) -> Any:
        """The JSON answer of a changing call that must succeed."""
        return self._answer(method, path, json=body)

    def _answer(self, method: str, path: str, **more: Any) -> Any:
        answer = httpx2.request(method, f"{self.address}/api/v1{path}", timeout=60, trust_env=False, **more)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def ready(self) -> bool:
        """Whether the server says that all it needs can do its work; it is 503 until a first worker was heard."""
        return httpx2.get(f"{self.address}/api/v1/ready", timeout=60, trust_env=False).status_code == 200

    def up(self) -> bool:
        """Whether the server answers."""
        return bool(self.get("/health")["status"] == "ok")

    def values(self, run: str, name: str) -> list[Any]:
        """The last values of a series' buckets that are there."""
        series = self.get(f"/runs/{run}/series", names=name)["series"]
        return [value for value in series.get(name, {"last": []})["last"] if value is not None]


class Webhook:
    """Listens for deliveries of alerts on a free port; `calls` holds (headers, JSON body)."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                calls.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def bodies(self) -> list[Any]:
        """The deliveries' contents."""
        return [json.loads(body) for _, body in self.calls]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
