"""Record numbers that come from elsewhere than a PyTorch loop: another framework, or a log that exists already."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from gradspectra_core.layers import Layer

from gradspectra.arguments import end_of_run, seconds
from gradspectra.errors import InstabilityError, end_state
from gradspectra.reactions import Reactions, check_reactions
from gradspectra.record import StepRecord
from gradspectra.recorder_input import (
    Spectra,
    checked_step,
    checked_time,
    layer_numbers,
    layer_table,
    scalars_and_counts,
    spectra_of,
)
from gradspectra.rules import LocalRules
from gradspectra.transport import Transport
from gradspectra.uncopied import Uncopied

__all__ = ["InstabilityError", "Recorder"]


class Recorder(Uncopied):
    """Sends one run's numbers to the server, by the same way as `watch`: in the background, spooled, in order.

    layers: names, or (name, shape) pairs, or core Layers; None for a run without layers. The other arguments are as
    in `watch`. Wrong arguments, here and in `record`, raise ValueError or TypeError that names the value; the
    network never does.
    """

    def __init__(
        self,
        *,
        project: str = "default",
        run: str | None = None,
        layers: Sequence[str | tuple[str, Sequence[int]] | Layer] | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        notes: str = "",
        total_steps: int | None = None,
        server: str | None = None,
        token: str | None = None,
        resume: str | None = None,
        start_step: int = 0,
        spool: str | os.PathLike[str] | None = None,
        on_alert: Callable[[dict[str, Any]], None] | None = None,
        stop_on: str | None = None,
    ) -> None:
        check_reactions(on_alert, stop_on)
        self._table = None if layers is None else layer_table(layers)
        self._reactions = Reactions(on_alert, stop_on)
        self._transport = Transport(
            server=server,
            token=token,
            project=project,
            name=run,
            config=config,
            tags=tags,
            notes=notes,
            total_steps=total_steps,
            resume=resume,
            start_step=start_step,
            spool=spool,
            on_alerts=self._reactions.tell,
        )
        self._rules = LocalRules(self._transport.local_key)
        self._named = False
        self._last_step = int(start_step)
        self._closed = False
        self._transport.start()

    @property
    def run_id(self) -> str | None:
        """The run's id, None until the server has made the run."""
        return self._transport.run_id

    @property
    def url(self) -> str | None:
        """Address of the run's page, None until the server has made the run."""
        return self._transport.url

    def status(self) -> dict[str, Any]:
        """Return what is sent, what waits and what went wrong."""
        return self._transport.status()

    def record(
        self,
        step: int,
        *,
        layers: Mapping[str, Any] | None = None,
        spectra: Spectra | None = None,
        time: float | None = None,
        **scalars: Any,
    ) -> None:
        """Record one step. Steps count from 1 and must increase; NaN and ±inf are recorded as such.

        scalars: numbers by name (`loss`, `grad_norm`, `lr` or `learning_rate`, `examples`, `tokens`, your own); None
        leaves one out. layers: statistic → one number per layer, in the order of `layers`. spectra: layer name → its
        matrix, or its singular values, all of them. time: seconds since 1970, default now.
        Raises InstabilityError where `stop_on` says so, and whatever `on_alert` raises.
        """
        if self._closed:
            raise RuntimeError("record was called after close; make a new Recorder with resume= and start_step=")
        step = checked_step(step, self._last_step)
        numbers, counts = scalars_and_counts(scalars)
        record = StepRecord(step, clock.time() if time is None else checked_time(time), numbers, counts)
        if layers is not None:
            layer_numbers(record, self._table, layers)
        if spectra is not None:
            record.table = self._table
            record.spectra = spectra_of(self._table, spectra)
        self._last_step = step
        self._transport.record(record)
        self._judge(record)

    def close(self, timeout: float = 5.0, state: str = "finished") -> None:
        """Send what is left within timeout seconds and say that the run is "finished" (or "failed")."""
        timeout, state = seconds("timeout", timeout), end_of_run(state)
        self._closed = True
        self._transport.close(timeout, state)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(state=end_state(error))

    def _judge(self, record: StepRecord) -> None:
        transport = self._transport
        if not self._named and transport.run_id is not None and transport.attempt is not None:
            self._rules.name(transport.run_id, transport.attempt)
            self._named = True
        self._reactions.tell(self._rules.observe(record))
        self._reactions.react()
        self._reactions.stop(transport.stop_at_step, record.step)
