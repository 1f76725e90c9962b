"""The alert rules there are: what each means, what it reads and when it opens."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from gradspectra_core.catalogue import RULES
from gradspectra_core.detectors import LOCAL_RULES, default_thresholds
from pydantic import Field
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import READ

router = APIRouter(prefix="/api/v1", tags=["alerts"])


class Rule(schemas.Open):
    """One rule; its thresholds are the same for every run."""

    name: str
    severity: Literal["info", "warning", "critical"] = Field(description="Of its least severe alert.")
    meaning: str
    remedy: str
    source: str = Field(description="Where rule or remedy come from.")
    needs: list[str] = Field(description="Series and layer statistics of which the run must record one.")
    uses: list[str] = Field(description="What it takes into account too where that is recorded.")
    thresholds: dict[str, float]
    in_job: bool = Field(description="Whether the training job runs it as well, for `on_alert` and `stop_on`.")


@router.get("/rules", response_model=schemas.Page[Rule], dependencies=[READ])
def list_rules() -> Response:
    """The rules that every run is watched by: what each means, what it reads, and its thresholds."""
    items = [
        {
            "name": rule.name,
            "severity": rule.severity,
            "meaning": rule.meaning,
            "remedy": rule.remedy,
            "source": rule.source,
            "needs": rule.needs,
            "uses": rule.uses,
            "thresholds": default_thresholds(rule.name),
            "in_job": rule.name in LOCAL_RULES,
        }
        for rule in RULES.values()
    ]
    return answer({"items": items, "next": None})
