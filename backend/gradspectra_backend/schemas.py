"""The objects of the interface as OpenAPI shows them; answers are built by hand and held to these in the tests."""

# ruff: noqa: D101 - the names are those of the interface, and the fields say the rest
from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Special = Literal["NaN", "Infinity", "-Infinity"]
Number = float | Special
"""A number, where NaN and ±inf are strings."""

Entry = Number | None
"""One entry of a row; null is missing."""

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """A page of a list. next: cursor of the next page, null at the end."""

    items: list[T]
    next: str | None


class Open(BaseModel):
    """More members may be added to any object."""

    model_config = ConfigDict(extra="allow")


class Project(Open):
    project: str
    runs: int
    running: int
    updated_at: float


class Run(Open):
    id: str
    project: str
    name: str
    state: Literal["running", "finished", "failed", "lost"]
    health: Literal["ok", "warning", "critical"]
    attempt: int
    attempt_first_step: int
    attempt_created_at: float
    last_step: int
    total_steps: int | None
    stop_at_step: int | None
    derived_step: int = Field(description="All up to it is derived and its alerts are made.")
    suggestions_step: int
    created_at: float
    updated_at: float
    config: dict[str, Any]
    environment: dict[str, Any]
    tags: list[str]
    notes: str
    overhead: Number | None
    open_alerts: int
    pinned: bool
    retires_at: float | None = Field(description="When its fine numbers are to be retired; null: not planned.")
    retired_at: float | None = Field(description="When they were.")


class Started(Open):
    id: str
    attempt: int
    session: str
    next_sequence: int
    url: str


class Attempt(Open):
    attempt: int
    first_step: int
    last_step: int
    created_at: float
    hidden_from: int | None
    not_measured: list[str]
    norms_that_disagreed: int


class Gap(Open):
    attempt: int
    first: int
    last: int
    what: str
    reason: str


class Layer(Open):
    name: str
    role: str
    depth: int
    shape: list[int]
    since_step: int
    spectra: bool


class BucketRows(BaseModel):
    mean: list[Entry]
    min: list[Entry]
    max: list[Entry]
    last: list[Entry]
    nonfinite: list[int]


Damaged = Annotated[list[list[int]], Field(description="First and last steps of ranges that could not be read back.")]


Retired = Annotated[
    list[list[int]], Field(description="First and last step and width of ranges that have only such wide buckets.")
]


class SeriesAnswer(Open):
    axis: str
    x: list[float]
    series: dict[str, BucketRows]
    damaged: Damaged
    available: list[str]


class LayerAnswer(Open):
    statistic: str
    axis: str
    x: list[float]
    layers: list[str]
    roles: list[str]
    depths: list[int]
    mean: list[list[Entry]]
    min: list[list[Entry]]
    max: list[list[Entry]]
    nonfinite: list[list[int]]
    damaged: Damaged
    retired: Retired


class Spectrum(Open):
    layer: str
    of: Literal["gradient", "weight", "update"]
    step: int
    attempt: int
    method: str
    rows: int
    columns: int
    index: list[int]
    singular_values: list[Number]
    nuclear: Number
    frobenius_sq: Number
    operator: Number
    fourth: Number
    entropy: Number
    k90: int
    k99: int


class Suggestion(Open):
    rule: str
    scope: Literal["run", "layer", "group"]
    layer: str | None
    quantity: str
    value: Entry
    low: Entry
    high: Entry
    confidence: Literal["low", "medium", "high"] | None
    enough_evidence: bool
    experimental: bool
    since_step: int
    evidence: dict[str, Any]
    text: str
    source: str


class Alert(Open):
    id: str
    run: str
    attempt: int
    incident: str
    rule: str
    severity: Literal["info", "warning", "critical"]
    state: Literal["open", "acknowledged", "closed"]
    layers: list[str]
    first_layer: str | None
    opened_step: int
    last_step: int
    closed_step: int | None
    opened_at: float
    value: Entry
    threshold: Entry
    message: str
    meaning: str
    remedy: str
    evidence: dict[str, Any]
    muted: bool = Field(description="Its rule is muted for the run.")


class Mute(Open):
    run: str
    rule: str
    created_at: float


class Incident(Open):
    id: str
    run: str
    attempt: int
    severity: Literal["info", "warning", "critical"]
    state: Literal["open", "acknowledged", "closed"]
    opened_step: int
    closed_step: int | None
    rules: list[str]
    alerts: list[str]


class Stored(Open):
    status: Literal["stored", "repeated"]
    next_sequence: int
    last_step: int
    alerts: list[Alert]
    stop_at_step: int | None
    viewed: bool


class Beaten(Open):
    alerts: list[Alert]
    stop_at_step: int | None
    viewed: bool


class Finished(Open):
    id: str
    state: str
    last_step: int


class Figure(Open):
    data: list[dict[str, Any]]
    layout: dict[str, Any]


class Token(Open):
    id: str
    name: str
    scopes: list[str]
    created_at: float
    revoked_at: float | None


class MadeToken(Open):
    id: str
    name: str
    scopes: list[str]
    token: str = Field(description="Shown here and never again.")


class Channel(Open):
    id: str
    kind: str
    name: str
    url: str
    min_severity: Literal["info", "warning", "critical"]
    signed: bool
    created_at: float


class Tested(Open):
    ok: bool
    status: int | None


class Delivery(Open):
    id: int
    alert: str
    channel: str
    severity: str
    state: Literal["due", "sent", "failed"]
    tries: int
    status: int | None
    error: str
    created_at: float
    sent_at: float | None


class SignedIn(Open):
    scopes: list[str]


class Caller(Open):
    scopes: list[str]
    how: Literal["local", "token", "cookie"]
    tokens_required: bool


class Health(Open):
    status: str
    version: str


class ProblemDocument(Open):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = Field(description="The part of the request that is wrong.")
    remedy: str = Field(description="What to do.")
