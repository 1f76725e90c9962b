"""Errors a user of the agent, the recorder or the client may see."""

from __future__ import annotations

import logging
import sys
from typing import Any

from gradspectra.arguments import end_of_run, seconds


class GradSpectraError(Exception):
    """Base of all errors raised by this package."""


class InstabilityError(GradSpectraError, RuntimeError):
    """Raised in the training loop when `stop_on` asks for it. alerts: the alerts that led to it, as JSON objects."""

    def __init__(self, message: str, alerts: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.alerts = alerts or []


class ServerAway(GradSpectraError, ConnectionError):
    """The server could not be reached, or broke off without an answer."""


class ServerRefused(GradSpectraError):
    """The server answered with a problem document.

    status: HTTP status. type, title, detail, field, remedy: as in the document ("" where it lacks them).
    members: the whole document.
    """

    def __init__(self, status: int, members: dict[str, Any]) -> None:
        self.status = status
        self.members = members
        self.type = str(members.get("type") or "")
        self.title = str(members.get("title") or "")
        self.detail = str(members.get("detail") or "")
        self.field = str(members.get("field") or "")
        self.remedy = str(members.get("remedy") or "")
        parts = [part for part in (self.detail or self.title or f"HTTP {status}", self.remedy) if part]
        super().__init__(f"the server answered {status}: " + " — ".join(parts))


def end_state(error: BaseException | None) -> str:
    """How a run has ended that is left with this exception: sys.exit() without an error is a good end."""
    return "finished" if error is None or (isinstance(error, SystemExit) and not error.code) else "failed"


def uncaught() -> BaseException | None:
    """What nobody caught last: it ends a program, and in a notebook a cell."""
    return getattr(sys, "last_value", None)


def exit_state(before: int) -> str:
    """How a run has ended that the interpreter's end finds open. before: id of `uncaught()` when the run began."""
    error = uncaught()
    return end_state(None if id(error) == before else error)


def ending(timeout: Any, state: Any) -> tuple[float, str]:
    """Seconds and state of a close as they can be used: the defaults, and a warning, for what cannot be."""
    found: list[Any] = []
    for check, otherwise in ((lambda: seconds("timeout", timeout), 5.0), (lambda: end_of_run(state), "finished")):
        try:
            found.append(check())
        except (TypeError, ValueError) as error:
            logging.getLogger("gradspectra").warning("gradspectra: %s; closing with %s", error, otherwise)
            found.append(otherwise)
    return found[0], found[1]
