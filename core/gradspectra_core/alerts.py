"""What an alert and a suggestion are, and how an alert gets the same identity wherever it is found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a detector says at one step about one episode of its rule.

    change: "open", "update" (severity, layers or value got worse) or "close". opened_step names the episode and
    stays the same for all its findings. layers: the layers concerned, the first affected first; empty for a rule
    on the whole run. evidence: plain JSON values, with the numbers and a small window of the curve.
    """

    rule: str
    change: str
    severity: str
    opened_step: int
    step: int
    layers: tuple[str, ...] = ()
    value: float | None = None
    threshold: float | None = None
    message: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


def alert_id(run: str, attempt: int, rule: str, opened_step: int, layer: str | None) -> str:
    """Identity of an alert: the same wherever (agent or server) and however often it is derived.

    layer: the layer of a rule that opens one alert per layer; None for a rule on the whole run. Returns 20
    hexadecimal digits.
    """
    text = "\x00".join((run, str(attempt), rule, str(opened_step), layer or ""))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as stored and served; field names are those of the REST interface.

    incident: the identity of the first alert of the same run and attempt that was open when this one opened (its
    own id if there was none). opened_at: seconds since 1970 by the training job's clock.
    """

    id: str
    run: str
    attempt: int
    incident: str
    rule: str
    severity: str
    state: str
    layers: tuple[str, ...]
    first_layer: str | None
    opened_step: int
    last_step: int
    closed_step: int | None
    opened_at: float
    value: float | None
    threshold: float | None
    message: str
    meaning: str
    remedy: str
    evidence: dict[str, Any]
    note: str = ""
    acknowledged_at: float | None = None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One piece of advice with its evidence; never applied silently.

    scope: run, layer or group. quantity: learning_rate, learning_rate_multiplier, batch_size, schedule,
    clip_threshold or warmup_steps. low, high: interval of `value`. confidence: low, medium or high; where
    enough_evidence is False, value, low, high and confidence are None.
    """

    rule: str
    scope: str
    layer: str | None
    quantity: str
    value: float | None
    low: float | None
    high: float | None
    confidence: str | None
    enough_evidence: bool
    experimental: bool
    since_step: int
    evidence: dict[str, Any]
    text: str
    source: str
