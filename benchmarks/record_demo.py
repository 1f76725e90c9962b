"""Make the recording that `gradspectra demo` replays where torch is missing: run the real job against a small listener.

python benchmarks/record_demo.py [--steps 900] writes agent/gradspectra/demo/recording.bin.gz.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gradspectra.demo import recording
from gradspectra_core.wire import decode_batch

TARGET = Path(recording.__file__).with_name(recording.NAME)


def listener(bodies: list[bytes]) -> type[BaseHTTPRequestHandler]:
    """Handler that answers as the server would and keeps the bodies of all batches in `bodies`."""

    class Listener(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer: dict[str, Any] = {"alerts": [], "stop_at_step": None, "viewed": False}
            if self.path.endswith("/runs"):
                answer |= {"id": "recording", "attempt": 1, "session": "recording", "next_sequence": 1, "url": "/"}
            elif self.path.endswith("/records"):
                bodies.append(body)
                answer |= {"status": "stored", "next_sequence": len(bodies) + 1, "last_step": 0}
            content = json.dumps(answer).encode()
            self.send_response(201 if self.path.endswith("/runs") else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Listener


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--budget", type=float, default=0.015)
    options = parser.parse_args()
    bodies: list[bytes] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), listener(bodies))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as spool:
        address = f"http://127.0.0.1:{server.server_port}"
        environment = os.environ | {"GRADSPECTRA_SERVER": address, "GRADSPECTRA_SPOOL": spool}
        command = [sys.executable, "-m", "gradspectra.demo.training", "--budget", str(options.budget)]
        with subprocess.Popen(command, env=environment) as job:
            while job.poll() is None and (not bodies or decode_batch(bodies[-1]).complete_through < options.steps):
                time.sleep(0.2)
            job.terminate()
    server.shutdown()
    content = recording.packed(bodies)
    TARGET.write_bytes(content)
    print(f"{len(bodies)} batches, {sum(map(len, bodies))} bytes, {len(content)} in {TARGET.name}")


if __name__ == "__main__":
    main()
