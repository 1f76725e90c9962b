"""What happens in the training thread when an alert opens: the user's callback, and the end of the run if asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from gradspectra_core.alerts import SEVERITIES

from gradspectra.arguments import one_of, shown, takes_one
from gradspectra.errors import InstabilityError

Alert = dict[str, Any]


def check_reactions(on_alert: object, stop_on: object) -> None:
    """See that these can be what is done at an alert; raises TypeError or ValueError that names the wrong one."""
    if stop_on is not None:
        one_of("stop_on", stop_on, SEVERITIES, "None or ")
    if on_alert is not None and not takes_one(on_alert):
        raise TypeError(f"on_alert must be a function of one alert, got {shown(on_alert)}")


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
            if self._worse(alert):
                self.do(alert)

    def take(self) -> list[Alert]:
        """The new alerts, which somebody else sees to it that `do` is called for."""
        found = []
        while self._inbox:
            alert = self._inbox.popleft()
            if self._worse(alert):
                found.append(alert)
        return found

    def do(self, alert: Alert) -> None:
        """Call the user's function for one alert; raises InstabilityError where stop_on says so."""
        if self._on_alert is not None:
            self._on_alert(alert)
        if self.severe(alert):
            raise InstabilityError(reason(alert), [alert])

    def severe(self, alert: Alert) -> bool:
        """Whether stop_on asks for a stop at this alert."""
        return self._stop_on is not None and _rank(alert) >= SEVERITIES.index(self._stop_on)

    def asked(self, stop_at_step: int | None, taken: int) -> str | None:
        """That the server asked for a stop at a step that is taken, in words; None where not, or not agreed to."""
        if not self.stops or stop_at_step is None or taken < stop_at_step:
            return None
        return f"the server asked the run to stop at step {stop_at_step}"

    def stop(self, stop_at_step: int | None, taken: int) -> None:
        """Raise InstabilityError where `asked`."""
        if (why := self.asked(stop_at_step, taken)) is not None:
            raise InstabilityError(why)

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


def reason(alert: Alert) -> str:
    """Why a run is stopped at an alert, in words."""
    return f"step {alert.get('opened_step')}: {alert.get('message') or alert.get('rule')}"


def _rank(alert: Alert) -> int:
    severity = alert.get("severity")
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0
