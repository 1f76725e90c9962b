"""The calls of the interface, one module per concept."""

from gradspectra_backend.routes import (
    alerts,
    channels,
    comparisons,
    export,
    figures,
    health,
    layers,
    lifecycle,
    live,
    mutes,
    records,
    retention,
    rules,
    runs,
    series,
    sign_in,
    tokens,
)

API = (
    records.router,
    runs.router,
    lifecycle.router,
    series.router,
    layers.router,
    export.router,
    figures.router,
    comparisons.router,
    alerts.router,
    rules.router,
    mutes.router,
    live.router,
    tokens.router,
    channels.router,
    retention.router,
)
"""Below /api/v1. Routes are tried in this order: the call that comes most is first."""

OPERATION = (health.router, sign_in.router)
"""At the root."""
