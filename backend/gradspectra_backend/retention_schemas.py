"""The objects of retention as OpenAPI shows them."""

# ruff: noqa: D101 - the names are those of the interface, and the fields say the rest
from __future__ import annotations

from typing import Literal

from pydantic import Field

from gradspectra_backend.schemas import Damaged, Open, Page, Retired, Spectrum


class SpectraPage(Page[Spectrum]):
    """Spectra of one layer; of the ranges in `retired` one is left in so many steps."""

    axis: str
    x: list[float] = Field(description="Where each spectrum lies on the axis.")
    damaged: Damaged
    retired: Retired


class Kept(Open):
    on: bool
    days: float = Field(description="Days after its end that a run keeps every number.")
    level: int = Field(description="Level of the pyramid that layer values then keep.")
    width: int = Field(description="Steps of its buckets.")
    spectra: int = Field(description="Spectra that each layer and matrix then keeps.")
    since: float = Field(description="In force since; nothing goes before `notice_days` have passed.")
    notice_days: float


class ToBeRetired(Open):
    run: str
    project: str
    name: str
    state: Literal["finished", "failed", "lost"]
    updated_at: float
    retires_at: float
    bytes: int = Field(description="Of all its numbers now.")
    bytes_after: int = Field(description="About so many afterwards.")


class Retention(Page[ToBeRetired]):
    """What is kept for how long, and the runs that it comes to, those that come first first."""

    retention: Kept
