"""The documentation holds: everything public is in it, its links resolve, and no machine's own paths are in it."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *(ROOT / "examples").glob("*.md")]
)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".js", ".mjs", ".css", ".html", ".json", ".ini", ""}
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")


def headings(page: Path) -> list[str]:
    """Headings of a page without their marks and backticks."""
    return [line.lstrip("# ").replace("`", "") for line in page.read_text().splitlines() if line.startswith("#")]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as they are made from their text."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def tracked_texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the repository but vendored ones."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the project's files")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in TEXT_SUFFIXES and "vendor" not in path.parts and path.is_file():
            yield path, path.read_text(errors="replace")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall((DOCS / "index.md").read_text())}
    assert [
        str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md") if page.name != "index.md" and page not in linked
    ] == []


def test_every_setting_is_documented_with_the_sentence_of_the_code() -> None:
    from gradspectra_backend.settings import AGENT_VARIABLES, Settings

    text = (DOCS / "settings.md").read_text()
    missing = [
        name
        for name, field in Settings.model_fields.items()
        if not re.search(
            rf"^\| `GRADSPECTRA_{name.upper()}` \|.*\| {re.escape(field.description or '?')} \|$", text, re.M
        )
    ]
    assert missing == []
    assert [name for name in AGENT_VARIABLES if f"`{name}`" not in text] == []


def test_no_setting_is_documented_that_is_not_there() -> None:
    from gradspectra_backend.settings import AGENT_VARIABLES, Settings

    known = {f"GRADSPECTRA_{name.upper()}" for name in Settings.model_fields} | set(AGENT_VARIABLES)
    used = {name for page in PAGES for name in re.findall(r"GRADSPECTRA_[A-Z_]*[A-Z]", page.read_text())}
    assert used - known - {"GRADSPECTRA_TEST_POSTGRES", "GRADSPECTRA_CHROMIUM"} == set()


def routes() -> set[str]:
    """Every route of the server, as `METHOD /path`."""
    from gradspectra_backend.app import create_app
    from gradspectra_backend.settings import Settings

    paths = create_app(Settings()).openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_every_route_is_documented_and_no_other() -> None:
    documented = set(
        re.findall(r"^\| `((?:GET|POST|PUT|PATCH|DELETE) [^`]+)` \|", (DOCS / "rest.md").read_text(), re.M)
    )
    assert documented == routes()


def test_every_figure_is_documented() -> None:
    from gradspectra_frontend.figures import FIGURES

    text = (DOCS / "rest.md").read_text()
    assert [name for name in FIGURES if f"`{name}`" not in text] == []


def test_every_rule_is_documented_with_the_words_of_the_alert() -> None:
    from gradspectra_core.catalogue import RULES

    text = " ".join((DOCS / "alerts.md").read_text().split())
    assert set(RULES) <= set(headings(DOCS / "alerts.md"))
    for rule in RULES.values():
        assert f"**Meaning.** {rule.meaning}" in text
        assert f"**What people do.** {rule.remedy}" in text


def test_what_every_rule_reads_and_compares_with_is_documented() -> None:
    from gradspectra_core.catalogue import RULES
    from gradspectra_core.detectors import default_thresholds

    section = (DOCS / "alerts.md").read_text().partition("### What a rule reads")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) ?\| (.*) \|$", section, re.M)
    documented = {name: tuple(re.findall(r"`(\w+)`(?: ([\d.]+))?", " ".join(cells))) for name, *cells in rows}
    for name, rule in RULES.items():
        limits = [(limit, f"{value:g}") for limit, value in default_thresholds(name).items()]
        assert documented[name] == (*((read, "") for read in (*rule.needs, *rule.uses)), *limits)


def test_every_statistic_and_metric_is_documented() -> None:
    from gradspectra_core import statistics

    page = DOCS / "metrics.md"
    sections = headings(page)
    assert [
        name for name in [*statistics.STATISTICS, *statistics.METRICS, *statistics.RUN_METRICS] if name not in sections
    ] == []
    text = page.read_text()
    assert [name for name in statistics.SCALARS if f"| `{name}` |" not in text] == []


def commands() -> set[str]:
    """Every command of the console script."""
    from gradspectra import cli

    parser = cli.build_parser()
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return set(found[0])


def test_every_command_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `gradspectra (\w+)", (DOCS / "cli.md").read_text(), re.M))
    assert documented == commands()


def test_no_file_names_a_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.}/])/(?:work|root|opt|Users|home/(?!gradspectra\b)\w+)/")
    found = [f"{path.relative_to(ROOT)}: {match}" for path, text in tracked_texts() for match in pattern.findall(text)]
    assert found == []


def test_the_readme_shows_the_lines_that_the_makefile_runs() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    assert "make demo" in readme
    assert "make test" in readme
    tests = '-m pytest -n 2 --dist loadfile -m "not slow"'
    assert tests in readme
    assert tests in makefile
    assert "-c constraints.txt -e '.[all]'" in readme
