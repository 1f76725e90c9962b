"""The table 'what works under what' of docs/agent.md has the rows that tests stand behind, and no other."""

from __future__ import annotations

import re
from pathlib import Path

AGENT = Path(__file__).parents[1]
CLAIM = re.compile(r'^@way\((?:"([^"]+)"|ROW)((?:, \w+=False)*)\)', re.M)
ROW = re.compile(r'^ROW = "(.+)"', re.M)
CELLS = ("layers", "updates", "parts", "second")


def claimed() -> set[tuple[str, ...]]:
    """Name and cells of each row that a test carries."""
    rows = set()
    for file in (*AGENT.glob("ways/test_*.py"), *AGENT.glob("integrations/test_*.py")):
        text = file.read_text()
        common = ROW.search(text)
        for name, left_out in CLAIM.findall(text):
            cells = ["—" if f"{cell}=False" in left_out else "yes" for cell in CELLS]
            rows.add((name or (common[1] if common else ""), *cells))
    return rows


def test_rows_and_tests_agree() -> None:
    page = (AGENT.parents[1] / "docs" / "agent.md").read_text()
    section = page.split("## What works under what")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| way")]
    documented = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert len(documented) == len(set(documented)) >= 15
    assert set(documented) == claimed()
