"""A server that takes every record and does nothing with it, in a process of its own: what sending costs the agent."""

from __future__ import annotations

import json
import multiprocessing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sequence = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/runs"):
            run = {"id": "benchmark", "attempt": 1, "session": "one", "next_sequence": 1, "url": "http://sink"}
            self._answer(201, run)
            return
        if self.path.endswith("/records"):
            _Sink.sequence += 1
        answer = {"status": "stored", "next_sequence": _Sink.sequence + 1, "alerts": [], "stop_at_step": None}
        self._answer(200, answer)

    def _answer(self, status: int, members: dict[str, Any]) -> None:
        body = json.dumps(members).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _serve(pipe: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    pipe.send(server.server_address[1])
    server.serve_forever()


def start_sink() -> tuple[multiprocessing.process.BaseProcess, str]:
    """Start the server; gives its process (to be terminated by the caller) and its address."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    return process, f"http://127.0.0.1:{here.recv()}"
