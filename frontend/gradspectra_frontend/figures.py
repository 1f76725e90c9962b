"""All figures by name: what each one reads, and how it is built. The page and `Client.figure` get the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gradspectra_frontend import layer_figures, profile_figure, scalar_figures, spectrum_figures, suggestion_figures
from gradspectra_frontend.damage import tell_damage
from gradspectra_frontend.theme import Figure, keep_values_of_a_scale, theme_named

Needs = tuple[str, tuple[str, ...]] | tuple[str, str] | tuple[str]

FIGURES: dict[str, Callable[..., Figure]] = {
    "loss": scalar_figures.loss,
    "grad_norm": scalar_figures.grad_norm,
    "learning_rate": scalar_figures.learning_rate,
    "noise_scale": scalar_figures.noise_scale,
    "step_time": scalar_figures.step_time,
    "layers": layer_figures.layers,
    "layer_curves": layer_figures.layer_curves,
    "profile": profile_figure.profile,
    "effective_rank": layer_figures.effective_rank,
    "spectrum": spectrum_figures.spectrum,
    "ranks": spectrum_figures.ranks,
    "suggestions": suggestion_figures.suggestions,
}

_NEEDS: dict[str, Needs] = {
    "loss": ("series", ("loss", "eval_loss")),
    "grad_norm": ("series", ("grad_norm", "clip_threshold")),
    "learning_rate": ("series", ("learning_rate", "learning_rate/*")),
    "noise_scale": ("series", ("noise_scale", "noise_scale_low", "noise_scale_high", "examples")),
    "step_time": ("series", ("step_seconds", "data_seconds", "agent_seconds")),
    "layers": ("layers", "grad_norm"),
    "layer_curves": ("layers", "grad_norm"),
    "profile": ("layers", "grad_norm"),
    "effective_rank": ("layers", "effective_rank"),
    "spectrum": ("spectra",),
    "ranks": ("spectra",),
    "suggestions": ("suggestions",),
}


class UnknownFigure(ValueError):
    """A figure was asked for by a name that does not exist; the message names those that do."""


def figure_needs(name: str) -> Needs:
    """Say which read the figure is built from.

    ("series", names) where a name ending in /* stands for all that begin so; ("layers", statistic) with the
    statistic used unless another is chosen; ("spectra",) of one layer; ("suggestions",). Raises UnknownFigure.
    """
    _check(name)
    return _NEEDS[name]


def series_read(name: str, available: Iterable[str]) -> list[str]:
    """Those of the available series that a figure of series is built from."""
    needs: tuple[Any, ...] = figure_needs(name)
    wanted = needs[1]
    begun = tuple(one[:-1] for one in wanted if one.endswith("*"))
    return [one for one in available if one in wanted or one.startswith(begun)]


def build(
    name: str,
    *,
    data: Any,
    alerts: Sequence[Mapping[str, Any]] = (),
    theme: str = "light",
    damaged: Sequence[tuple[int, int]] = (),
    **options: Any,
) -> Figure:
    """Build the figure as a plain dict {"data", "layout"}; its numbers are lists, numpy arrays or packed bytes.

    data: what `figure_needs` names: Series, LayerSeries, list of Spectrum, or list of suggestions. alerts: those of
    the run, to be shaded. damaged: as in Series, where the data do not tell it themselves. options: those of the
    figure's own function. Where a number cannot be drawn it is NaN (null in JSON) and a mark of its own says so.
    Raises UnknownFigure, and ValueError for a bad option.
    """
    _check(name)
    figure = FIGURES[name](data, alerts, theme_named(theme), **options)
    keep_values_of_a_scale(figure)
    tell_damage(figure, getattr(data, "damaged", ()) or damaged)
    if _NEEDS[name][0] == "series":
        figure["layout"]["meta"]["series"] = series_read(name, data.series)
    return figure


def _check(name: str) -> None:
    if name not in FIGURES:
        raise UnknownFigure(f"there is no figure {name!r}; there are {', '.join(sorted(FIGURES))}")
