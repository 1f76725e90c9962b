"""A connection to a server that reads HTTP by one of its protocols, for what no client sends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def connected(protocol: type[asyncio.Protocol], app: ASGIApp, lifespan: str = "off") -> Iterator[socket.socket]:
    """A connection to a server of its own, which reads HTTP as the protocol does."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=protocol, log_level="critical", ws="none", lifespan=lifespan)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        with socket.create_connection(listener.getsockname(), 60) as connection:
            yield connection
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
