"""A batch of records as OpenAPI shows its JSON form; gradspectra_core.jsonform reads it and is stricter."""

# ruff: noqa: D101 - the names are those of the interface, and the fields say the rest
from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from gradspectra_backend.schemas import Entry, Number


class BatchLayer(BaseModel):
    name: str
    role: str
    depth: int
    shape: list[int]


class BatchLayers(BaseModel):
    """Layer statistics at some of the batch's steps."""

    digest: str | None = Field(None, description="Of the layer table; needed where the batch brings none.")
    steps: list[int]
    values: dict[str, list[list[Entry]]] = Field(
        {}, description="By statistic: one list per step, one number per layer."
    )
    counts: dict[str, list[list[int | None]]] = {}


class BatchSpectrum(BaseModel):
    layer: int = Field(description="Index into the layer table.")
    step: int
    of: Literal["gradient", "weight", "update"] = "gradient"
    method: str
    rows: int
    columns: int
    index: list[int] = Field([], description="Index of each singular value among all.")
    singular_values: list[Number] = Field(max_length=96)
    nuclear: Number
    frobenius_sq: Number
    operator: Number
    fourth: Number
    entropy: Number
    k90: Number
    k99: Number


class BatchGap(BaseModel):
    first: int
    last: int
    what: Literal["all", "layers", "spectra"]
    reason: str


class Batch(BaseModel):
    """One batch of records as JSON; docs/wire.md has the binary form."""

    session: str
    sequence: int = Field(ge=1)
    complete_through: int = Field(ge=0, description="The last step that this session will never add to.")
    steps: list[int] = Field(description="Strictly increasing, from 1.")
    times: list[float] = Field(description="Seconds since 1970, one per step.")
    scalars: dict[str, list[Entry]] = {}
    counts: dict[str, list[int | None]] = {}
    layer_table: list[BatchLayer] | None = None
    layers: BatchLayers | None = None
    spectra: list[BatchSpectrum] | None = None
    spectra_digest: str | None = None
    gaps: list[BatchGap] = []
