"""Doubt of what is expected to cost too much of a step: what is never measured cannot be learned."""

from __future__ import annotations

UNSEEN, SEEN = 0.9, 0.99
"""What an expectation is multiplied by at each turn it is refused, where the thing was never measured, or was."""
LEAST = 0.25
"""What is expected to take more than four times too much is believed to take too much."""


class Doubt:
    """part: of what is expected of one thing, what it is taken to cost at its next turn."""

    __slots__ = ("part",)

    def __init__(self) -> None:
        self.part = 1.0

    def refused(self, seen: bool) -> None:
        """Its turn is passed over. seen: it was measured before."""
        self.part = max(self.part * (SEEN if seen else UNSEEN), LEAST)

    def settled(self, expected: float, seconds: float) -> float:
        """It was measured after all, and took so many seconds: returns what to expect from now on."""
        self.part = 1.0
        return min(max(seconds, LEAST * expected), expected / LEAST)
