"""The arguments of watch, checked when it is called: each error names the value and says what would do."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradspectra_core.records import SPECTRUM_OF
from torch import nn

from gradspectra.inventory import Choice, choice_of
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
    layers: str | Choice | None,
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
    if budget is not None and (not _is_real(budget) or not 0 < float(budget) <= 1):
        raise ValueError(f"budget must be a share of the step time above 0 and at most 1, or None, got {budget!r}")
    if drift not in DRIFTS:
        raise ValueError(f"drift must be one of {', '.join(DRIFTS)}, got {drift!r}")
    if second_tier not in SECOND_TIERS:
        raise ValueError(f"second_tier must be one of {', '.join(SECOND_TIERS)}, got {second_tier!r}")
    check_reactions(on_alert, stop_on)
    given = None if callable(batch_size) else batch_size
    if given is not None and (not _is_real(given) or not 1 <= given < math.inf):
        raise ValueError(f"batch_size must be at least 1, or a callable on the model's inputs, got {batch_size!r}")
    if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
        raise TypeError(f"scaler must have a method get_scale(), got {scaler!r}")
    return Options(
        every=_whole("every", every, 1),
        budget=None if budget is None else float(budget),
        spectra=_spectra(spectra),
        spectra_of=_spectra_of(spectra_of),
        choose=choice_of(layers),
        batch_size=batch_size,
        parts=None if parts == "auto" else _whole("parts", parts, 1, '"auto" or '),
        drift=drift,
        second_tier=second_tier,
        scaler=scaler,
        start_step=None if start_step is None else _whole("start_step", start_step, 0),
        on_alert=on_alert,
        stop_on=stop_on,
    )


def models_by_name(model: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The argument `model` as modules by name (prefix of their layers); raises TypeError or ValueError."""
    models = {"": model} if isinstance(model, nn.Module) else model
    if not isinstance(models, Mapping) or not all(isinstance(m, nn.Module) for m in models.values()):
        raise TypeError(f"model must be a torch.nn.Module, or a mapping of names to modules, got {model!r:.80}")
    if not models:
        raise ValueError("model must name at least one module, got none")
    return {str(name): module for name, module in models.items()}


def optimizers_of(optimizer: Any) -> list[Any]:
    """The argument `optimizer` as a list, wrappers of Accelerate and Lightning taken off; raises TypeError."""
    given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    found = []
    for entry in given:
        while hasattr(getattr(entry, "optimizer", None), "param_groups"):
            entry = entry.optimizer  # also Accelerate's, which can be hooked but steps without its hooks
        if not hasattr(entry, "param_groups"):
            raise TypeError(f"optimizer must be an optimizer, several of them, or None, got {entry!r:.80}")
        found.append(entry)
    return found


def _spectra(spectra: Any) -> int | None:
    if spectra == "auto":
        return None
    return 0 if spectra == "off" else _whole("spectra", spectra, 1, '"auto", "off" or ')


def _spectra_of(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not names or not all(name in SPECTRUM_OF for name in names):
        raise ValueError(f"spectra_of must be one or several of {', '.join(SPECTRUM_OF)}, got {given!r}")
    return tuple(name for name in SPECTRUM_OF if name in names)


def _whole(name: str, value: Any, least: int, also: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {also}a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {also}at least {least}, got {value}")
    return int(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
