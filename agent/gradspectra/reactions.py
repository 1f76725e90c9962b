"""What happens in the training thread when an alert opens: the user's callback, and the end of the run if asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from gradspectra_core.alerts import SEVERITIES

from gradspectra.errors import InstabilityError

Alert = dict[str, Any]


def check_reactions(on_alert: object, stop_on: object) -> None:
    """See that these can be what is done at an alert; raises TypeError or ValueError that names the wrong one."""
    if stop_on is not None and stop_on not in SEVERITIES:
        raise ValueError(f"stop_on must be None or one of {', '.join(SEVERITIES)}, got {stop_on!r}")
    if on_alert is not None and not callable(on_alert):
        raise TypeError(f"on_alert must be a function of one alert, got {on_alert!r}")


class Reactions:
    """Collects alerts from the local rules and from the server, and acts on each once: when it opens or gets worse.

    on_alert: the user's function of one alert. stop_on: the severity from which on the run is stopped.
    """

    def __init__(self, on_alert: Callable[[Alert], None] | None, stop_on: str | None) -> None:
        self._on_alert = on_alert
        self._stop_on = stop_on
        self._inbox: deque[Alert] = deque()
        self._seen: dict[tuple[Any, ...], int] = {}

    @property
    def stops(self) -> bool:
        """Whether the user agreed to be stopped."""
        return self._stop_on is not None

    @property
    def wanted(self) -> bool:
        """Whether anything happens at an alert."""
        return self._on_alert is not None or self._stop_on is not None

    def tell(self, alerts: Iterable[Alert]) -> None:
        """Take alerts, from any thread."""
        if self.wanted:
            self._inbox.extend(alerts)

    def act(self, stop_at_step: int | None, taken: int) -> None:
        """`react`, then `stop`."""
        self.react()
        self.stop(stop_at_step, taken)

    def react(self) -> None:
        """Call the user's function for each new alert; raises InstabilityError where stop_on says so."""
        while self._inbox:
            alert = self._inbox.popleft()
            if not self._worse(alert):
                continue
            if self._on_alert is not None:
                self._on_alert(alert)
            if self._stop_on is not None and _rank(alert) >= SEVERITIES.index(self._stop_on):
                text = alert.get("message") or alert.get("rule")
                raise InstabilityError(f"step {alert.get('opened_step')}: {text}", [alert])

    def stop(self, asked: int | None, taken: int) -> None:
        """Raise InstabilityError where the server asked for a stop at a step that is taken, and the user agreed."""
        if self.stops and asked is not None and taken >= asked:
            raise InstabilityError(f"the server asked the run to stop at step {asked}")

    def _worse(self, alert: Alert) -> bool:
        """Whether the alert is open and new, or more severe than when it was seen last."""
        if alert.get("state", "open") != "open":
            return False
        identity = alert.get("rule"), alert.get("opened_step"), alert.get("first_layer")
        rank = _rank(alert)
        if self._seen.get(identity, -1) >= rank:
            return False
        self._seen[identity] = rank
        return True


def _rank(alert: Alert) -> int:
    severity = alert.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0
