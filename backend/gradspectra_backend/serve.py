"""`gradspectra serve`: check everything first, take the port, then run uvicorn in one process or several."""

from __future__ import annotations

import logging.config
import os
import socket
from contextlib import suppress
from typing import Any

import uvicorn
from gradspectra_core import __version__
from uvicorn.supervisors import Multiprocess

from gradspectra_backend.app import create_app
from gradspectra_backend.batch_protocol import BatchProtocol
from gradspectra_backend.bounded_heads import BoundedHeads
from gradspectra_backend.log_form import log_config
from gradspectra_backend.settings import PREFIX, Settings
from gradspectra_backend.start import alone, bind, check_data_folder, open_once

STOP_SECONDS = 5
KEEP_ALIVE_SECONDS = 75
"""Longer than the agent's heartbeat, so that its connection stays open."""
UNHEARD_SECONDS = 30
"""A process that does not answer the first one for so long is replaced; on a busy machine a few seconds are no sign."""


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            say_where(sockets[0])


def say_where(listener: socket.socket) -> None:
    """Print the address to open, with the port that was taken."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    with suppress(OSError):  # a full disk, which may be the log's alone
        print(f"gradspectra {__version__} listens on http://{shown}:{port}/ (Ctrl-C stops it)", flush=True)


def serve(settings: Settings) -> int:
    """Run the server until it is told to stop; returns the exit status. Raises CannotStart before anything runs."""
    logging.config.dictConfig(log_config(settings.log_level))
    check_data_folder(settings)
    listener = bind(settings.host, settings.port)
    try:
        with alone(settings):
            open_once(settings)
            if settings.processes == 1:
                return _one(settings, listener)
            return _several(settings, listener)
    finally:
        listener.close()


def _one(settings: Settings, listener: socket.socket) -> int:
    server = _Server(uvicorn.Config(create_app(settings), http=BatchProtocol, **_options(settings)))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return 0
    return 0 if server.started else 3


def _several(settings: Settings, listener: socket.socket) -> int:
    """The processes read the settings from the environment again, so what the command line said goes in there."""
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            os.environ[PREFIX + name.upper()] = ",".join(value) if isinstance(value, tuple) else str(value)
    options = _options(settings)
    config = uvicorn.Config("gradspectra_backend.asgi:app", workers=settings.processes, http=BoundedHeads, **options)
    say_where(listener)
    Multiprocess(config, sockets=[listener]).run()
    return 0


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "log_level": settings.log_level,
        "log_config": log_config(settings.log_level),
        "access_log": False,
        "server_header": False,
        "ws": "none",
        "timeout_graceful_shutdown": STOP_SECONDS,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_worker_healthcheck": UNHEARD_SECONDS,
    }
