"""What the agent takes of a CUDA stream: events around each stage on the training's stream, read once they are past.

Nothing waits for them. Between the two events of a stage lie its kernels, and the gaps in which the stream had nothing
to do while the agent's thread was still putting them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Mark = tuple[torch.device, Any]
"""An event, and the device of the stream that it is on."""


class DeviceClock:
    """Makes the events of the devices that a model lies on, and keeps them for the next step.

    No events where none of the devices is a CUDA device. cuda: torch's module.
    """

    def __init__(self, devices: Sequence[torch.device] = (), cuda: Any = torch.cuda) -> None:
        self.follow(devices)
        self._cuda = cuda
        self._spare: dict[torch.device, list[Any]] = {}

    def follow(self, devices: Sequence[torch.device]) -> None:
        """From now on it is these devices that the model lies on."""
        self.devices = [device for device in dict.fromkeys(devices) if device.type == "cuda"]

    def now(self) -> list[Mark]:
        """Events that the streams of the training reach once they have done what they were given so far."""
        marks = []
        for device in self.devices:
            spare = self._spare.get(device)
            event = spare.pop() if spare else self._cuda.Event(enable_timing=True)
            event.record(self._cuda.current_stream(device))
            marks.append((device, event))
        return marks

    def forget(self, marks: Sequence[Mark]) -> None:
        """These events are read."""
        for device, event in marks:
            self._spare.setdefault(device, []).append(event)


class DeviceTimes:
    """The stages of one step. A stage may come several times; its times are added up, as those of several devices."""

    def __init__(self, clock: DeviceClock | None = None) -> None:
        self._clock = DeviceClock() if clock is None else clock
        self._spans: list[tuple[str, list[Mark], list[Mark]]] = []
        self._begun: list[Mark] = []
        self._ended: list[Mark] = []

    def start(self) -> list[Mark]:
        """A stage begins."""
        return self._clock.now()

    def stop(self, stage: str, started: list[Mark]) -> None:
        """A stage that `start` gave these events for has ended."""
        if started:
            self._spans.append((stage, started, self._clock.now()))

    def end(self, before: DeviceTimes | None) -> None:
        """The step has ended, and the one before it as `before` says."""
        self._begun = [] if before is None else before._ended
        self._ended = self._clock.now()

    def done(self) -> bool:
        """Whether the streams are past all of it."""
        marks = [mark for _, *both in self._spans for marks in both for mark in marks]
        return all(event.query() for _, event in [*marks, *self._begun, *self._ended])

    def read(self) -> tuple[dict[str, float], float | None]:
        """Seconds of each stage, and of the whole step, None where that is not known. To be asked once, when done."""
        stages: dict[str, float] = {}
        for stage, started, stopped in self._spans:
            stages[stage] = stages.get(stage, 0.0) + _seconds(started, stopped)
            self._clock.forget([*started, *stopped])
        whole = None
        if self._begun and [device for device, _ in self._begun] == [device for device, _ in self._ended]:
            whole = max(_seconds([a], [b]) for a, b in zip(self._begun, self._ended, strict=True))
            self._clock.forget(self._begun)
        self._spans, self._begun = [], []
        return stages, whole


def _seconds(started: Sequence[Mark], stopped: Sequence[Mark]) -> float:
    milliseconds: float = sum(a.elapsed_time(b) for (_, a), (_, b) in zip(started, stopped, strict=True))
    return milliseconds / 1000
