"""The arguments of watch, checked when it is called: each error names the value and says what would do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradspectra_core.records import SPECTRUM_OF
from torch import nn

from gradspectra.arguments import MAX_EXAMPLES, MAX_PARTS, is_called, is_real, is_text, one_of, shown, whole
from gradspectra.chosen_blocks import can_be_recorded
from gradspectra.hookable import unwrapped
from gradspectra.layer_choice import Choice, choice_of
from gradspectra.reactions import check_reactions

NEVER = 1 << 60
DRIFTS = ("sampled", "exact", "off")
SECOND_TIERS = ("auto", "off")


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure. spectra: interval in steps, None for "auto", 0 for "off"; spectra_of: some of
    SPECTRUM_OF. parts: None for "auto".

    drift: one of DRIFTS; second_tier: of SECOND_TIERS.
    """

    every: int
    budget: float | None
    spectra: int | None
    spectra_of: tuple[str, ...]
    choose: Choice
    batch_size: float | Callable[..., Any] | None
    parts: int | None
    drift: str
    second_tier: str
    scaler: Any
    start_step: int | None
    on_alert: Callable[[dict[str, Any]], None] | None
    stop_on: str | None

    def following(self) -> Options:
        """The same for a rank that only counts its steps, to act with the others."""
        nothing = replace(self, spectra=0, drift="off", second_tier="off", on_alert=None, stop_on=None)
        return replace(nothing, every=NEVER, batch_size=None)


def options(
    every: int,
    budget: float | None,
    spectra: str | int,
    spectra_of: str | Sequence[str],
    layers: str | re.Pattern[str] | Choice | None,
    batch_size: float | Callable[..., Any] | None,
    parts: str | int,
    drift: str,
    second_tier: str,
    scaler: Any,
    start_step: int | None,
    on_alert: Callable[[dict[str, Any]], None] | None,
    stop_on: str | None,
) -> Options:
    """Check the arguments of watch that say how to measure; raises TypeError or ValueError."""
    if budget is not None and (not is_real(budget) or not 0 < budget <= 1):
        share = "a share of the step time above 0 and at most 1, or None"
        raise ValueError(f"budget must be {share}, got {shown(budget)}")
    check_reactions(on_alert, stop_on)
    given: Any = None if is_called(batch_size) else batch_size
    if given is not None and (not is_real(given) or not 1 <= given <= MAX_EXAMPLES):
        what = f"at least 1, at most {MAX_EXAMPLES}, or a callable on the model's inputs"
        raise ValueError(f"batch_size must be {what}, got {shown(batch_size)}")
    if scaler is not None and (isinstance(scaler, type) or not callable(getattr(scaler, "get_scale", None))):
        raise TypeError(f"scaler must have a method get_scale(), got {shown(scaler)}")
    return Options(
        every=whole("every", every, 1),
        budget=None if budget is None else float(budget),
        spectra=_spectra(spectra),
        spectra_of=_spectra_of(spectra_of),
        choose=choice_of(layers),
        batch_size=batch_size if given is None else float(given),
        parts=None if is_text(parts, "auto") else whole("parts", parts, 1, '"auto" or ', MAX_PARTS),
        drift=one_of("drift", drift, DRIFTS),
        second_tier=one_of("second_tier", second_tier, SECOND_TIERS),
        scaler=scaler,
        start_step=None if start_step is None else whole("start_step", start_step, 0),
        on_alert=on_alert,
        stop_on=stop_on,
    )


def models_by_name(model: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The argument `model` as modules by name (prefix of their layers); raises TypeError or ValueError."""
    models = {"": model} if isinstance(model, nn.Module) else model
    if not isinstance(models, Mapping) or not all(isinstance(m, nn.Module) for m in models.values()):
        raise TypeError(f"model must be a torch.nn.Module, or a mapping of names to modules, got {shown(model)}")
    if not models:
        raise ValueError("model must name at least one module, got none")
    named = {str(name): module for name, module in models.items()}
    if len(named) < len(models):
        raise ValueError(f"model must give each module a name of its own, got {shown(list(models))}")
    for name in named:
        if name and not can_be_recorded(name):
            raise ValueError(f"model must give each module a printable name, got {shown(name)}")
    return named


def optimizers_of(optimizer: Any) -> list[Any]:
    """The argument `optimizer` as a list, wrappers that only delegate taken off; raises TypeError."""
    several = isinstance(optimizer, Sequence) and not isinstance(optimizer, str | bytes)
    given = [] if optimizer is None else list(optimizer) if several else [optimizer]
    found: list[Any] = []
    for entry in given:
        entry = unwrapped(entry)
        if not hasattr(entry, "param_groups"):
            raise TypeError(f"optimizer must be an optimizer, several of them, or None, got {shown(entry)}")
        if any(entry is other for other in found):
            raise ValueError(f"optimizer must have each optimizer once, got {shown(entry)} twice")
        found.append(entry)
    return found


def _spectra(spectra: Any) -> int | None:
    if is_text(spectra, "auto"):
        return None
    return 0 if is_text(spectra, "off") else whole("spectra", spectra, 1, '"auto", "off" or ')


def _spectra_of(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not names or not all(is_text(name, *SPECTRUM_OF) for name in names):
        raise ValueError(f"spectra_of must be one or several of {', '.join(SPECTRUM_OF)}, got {shown(given)}")
    return tuple(name for name in SPECTRUM_OF if name in names)
