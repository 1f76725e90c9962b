"""What the store asks the database by its prepared statements."""

from __future__ import annotations

from typing import Any

import pytest
from gradspectra_store import engines, prepared


def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all prepared statements from now on, as they come."""
    texts: list[str] = []

    def execute(conn: Any, text: str, values: Any = ()) -> Any:
        texts.append(text)
        return engines.driver_execute(conn, text, values)

    monkeypatch.setattr(prepared, "driver_execute", execute)
    return texts
