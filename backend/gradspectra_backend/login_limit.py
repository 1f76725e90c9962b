"""A brake on guessing tokens: few failed sign-ins per address and minute."""

from __future__ import annotations

from collections import OrderedDict

from gradspectra_backend.problems import Problem


class LoginLimit:
    """At most `tries` failed sign-ins per address within `seconds`; remembers 10,000 addresses."""

    def __init__(self, tries: int = 10, seconds: float = 60.0) -> None:
        self.tries = tries
        self.seconds = seconds
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str, now: float) -> None:
        """Raise Problem 429 where the address must wait."""
        recent = [when for when in self._failed.get(address, ()) if now - when < self.seconds]
        if len(recent) >= self.tries:
            wait = max(1, int(recent[0] + self.seconds - now) + 1)
            raise Problem(
                "too-many-requests",
                f"{len(recent)} failed sign-ins from this address",
                headers={"Retry-After": str(wait)},
            )

    def failed(self, address: str, now: float) -> None:
        """Count a failed sign-in."""
        recent = [when for when in self._failed.pop(address, ()) if now - when < self.seconds]
        self._failed[address] = [*recent, now][-self.tries :]
        while len(self._failed) > 10_000:
            self._failed.popitem(last=False)
