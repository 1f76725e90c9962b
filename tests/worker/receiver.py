"""Where alerts are delivered to, in tests."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """A real HTTP server that answers with the statuses it was given, then 204, and keeps what it got.

    meanwhile: is called before each answer; asks: the seconds in Retry-After.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.asks: str | None = None
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                receiver.meanwhile()
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                if receiver.asks is not None:
                    self.send_header("Retry-After", receiver.asks)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=b"

    @property
    def keys(self) -> list[str]:
        """What tells the deliveries apart, in the order in which they came."""
        return [headers["X-Gradspectra-Delivery"] for headers, _ in self.got]


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver until the end of the block; tls: what it speaks."""
    receiver = Receiver(tls)
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        thread.join(60)
        receiver.server.server_close()
