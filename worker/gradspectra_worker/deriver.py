"""What is derived from one batch after the other: findings, series, metrics and suggestions. Pure, with a state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gradspectra_core.alerts import Finding, Suggestion
from gradspectra_core.detectors import ALL_RULES, DetectorSet
from gradspectra_core.records import Batch, Columns, Int64, LayerBlock

from gradspectra_worker.advice import suggestions
from gradspectra_worker.noise_state import MOMENTS, NoiseState
from gradspectra_worker.observations import observations
from gradspectra_worker.ranks import rank_metrics

STATE_VERSION = 1
SUGGEST_EVERY = (10, 50)
"""Suggestions are made anew after so many more steps in the noise averages: within the first 100, and later."""


@dataclass(frozen=True, slots=True)
class Derived:
    """What one batch gave.

    findings: each with the time of its step and the attempt in which its episode opened. columns: steps (S,) and
    the run's derived series; layer_metrics: blocks of layer metrics. suggestions: None where the last ones hold.
    """

    findings: list[tuple[int, Finding, float]]
    columns: tuple[Int64, Columns] | None
    layer_metrics: list[LayerBlock]
    suggestions: list[Suggestion] | None


class Deriver:
    """Takes the batches of a run in order. The state is JSON, and it does not matter where a stream is cut."""

    def __init__(self) -> None:
        self._detectors = DetectorSet()
        self._noise = NoiseState()
        self._episodes: dict[str, int] = {}
        self._suggested_at: list[Any] | None = None

    @property
    def followed(self) -> frozenset[tuple[str, int]]:
        """Rule and opening step of the episodes that are open."""
        episodes = (episode.rpartition(":") for episode in self._episodes)
        return frozenset((rule, int(opened)) for rule, _, opened in episodes)

    @property
    def episodes(self) -> frozenset[tuple[int, str, int]]:
        """The open episodes: attempt, rule and opening step of each."""
        return frozenset((self._episodes[f"{rule}:{opened}"], rule, opened) for rule, opened in self.followed)

    def forget(self, episodes: Iterable[tuple[int, str, int]]) -> None:
        """Be outside of some of the open episodes: a fault that comes opens another one."""
        for _, rule, opened in episodes:
            self._detectors.forget(rule, opened)
            del self._episodes[f"{rule}:{opened}"]

    def derive(self, batch: Batch, attempt: int, family: str, betas: tuple[float, float] | None = None) -> Derived:
        """Derive the next batch. family: of the optimizer, "sgd" or "adam"; betas: β₁, β₂ if all layers share them."""
        findings = [
            (self._attempt_of(finding, attempt), finding, observation.time)
            for observation in observations(batch)
            for finding in self._detectors.observe(observation)
        ]
        columns, noise_block = self._noise.update(batch, betas)
        blocks = [block for block in (noise_block, spectra_metrics(batch)) if block is not None]
        return Derived(findings, columns, blocks, self._suggestions(family))

    def _attempt_of(self, finding: Finding, attempt: int) -> int:
        """Return the attempt in which the finding's episode opened: a resumed run closes what it went on with."""
        episode = f"{finding.rule}:{finding.opened_step}"
        opened_in = self._episodes.setdefault(episode, attempt)
        if finding.change == "close":
            del self._episodes[episode]
        return opened_in

    def _suggestions(self, family: str) -> list[Suggestion] | None:
        """Return new suggestions at first, every so many steps in the averages, and when their basis changes."""
        noise = self._noise
        often, seldom = SUGGEST_EVERY
        every = 1 if noise.method == MOMENTS else often if noise.records <= 100 else seldom
        basis = [noise.records // every * every, min(noise.parts, 2), noise.unit, noise.since_step, family]
        basis += [noise.method, noise.waiting]
        if basis == self._suggested_at:
            return None
        self._suggested_at = basis
        return suggestions(noise, family)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as JSON."""
        return {
            "version": STATE_VERSION,
            "detectors": self._detectors.state(),
            "noise": self._noise.state(),
            "episodes": dict(self._episodes),
            "suggested_at": self._suggested_at,
        }

    @classmethod
    def restore(cls, state: dict[str, Any] | None) -> Deriver:
        """Go on where `state()` was taken; None, or the state of another version, begins anew."""
        restored = cls()
        if state is None or state.get("version") != STATE_VERSION:
            return restored
        restored._detectors = DetectorSet.restore(state["detectors"], ALL_RULES)
        restored._noise = NoiseState.restore(state["noise"])
        restored._episodes = dict(state["episodes"])
        restored._suggested_at = state["suggested_at"]
        return restored


def spectra_metrics(batch: Batch) -> LayerBlock | None:
    """Return what needs no state: the ranks of the batch's gradient spectra."""
    if batch.spectra is None or batch.layer_table is None:
        return None
    return rank_metrics(batch.spectra, len(batch.layer_table))
