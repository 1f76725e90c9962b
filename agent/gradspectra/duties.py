"""What each rank does for a watch: rank 0 sends; the others do nothing, follow the steps, or measure their shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gradspectra.options import Options
from gradspectra.shards import sharding
from gradspectra.supported import refuse_unsupported
from gradspectra.surroundings import rank


@dataclass(frozen=True, slots=True)
class Duty:
    """active: steps are followed; sends: and recorded; acts: at alerts, with the others. group: of sharded layers."""

    active: bool
    sends: bool
    acts: bool
    group: Any

    def options(self, chosen: Options) -> Options:
        """What of the options concerns this rank."""
        if self.group is None and self.active and not self.sends:
            chosen = chosen.following()
        return chosen if self.sends or not self.active else replace(chosen, on_alert=None, stop_on=None)


def duty_of_rank(models: Mapping[str, nn.Module], optimizers: Sequence[Any], enabled: bool, chosen: Options) -> Duty:
    """Say what this rank does; raises ValueError for a training that would be measured wrongly."""
    if not enabled:
        return Duty(False, False, False, None)
    refuse_unsupported(models, optimizers)
    group, sends = sharding(models, optimizers), rank() == 0
    acts = chosen.on_alert is not None or chosen.stop_on is not None
    return Duty(sends or acts or group is not None, sends, acts, group)
