"""How the server's log looks: each line with its time, its severity, and the process that wrote it."""

from __future__ import annotations

from typing import Any

FORM = "%(asctime)s %(levelname)s [%(process)d] %(message)s"
_OURS = ("gradspectra_backend", "gradspectra_worker", "gradspectra_store", "gradspectra_core", "uvicorn")


def log_config(level: str) -> dict[str, Any]:
    """Return what logging.config takes: of our own and of uvicorn's from a level on, of all others warnings."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": FORM}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {name: {"level": level.upper()} for name in _OURS},
    }
