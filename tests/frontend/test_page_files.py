"""The page's files: vendored code as published, one theme, nothing that a strict policy would refuse."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from gradspectra_core.statistics import SCALARS
from gradspectra_frontend import assets
from gradspectra_frontend.theme import DARK, LIGHT, Theme

STATIC = assets.static_dir()
OWN = [path for path in STATIC.rglob("*") if path.is_file() and "vendor" not in path.parts]


@pytest.mark.parametrize(
    ("name", "package", "licence", "holders"),
    [
        ("preact-htm", "htm", "Apache License", "Copyright (c) 2015-present Jason Miller"),
        ("plotly-cartesian", "plotly.js-cartesian-dist-min", "MIT License", "Plotly Technologies Inc."),
    ],
)
def test_a_vendored_file_is_the_one_that_was_published(name: str, package: str, licence: str, holders: str) -> None:
    facts = json.loads((STATIC / "vendor" / f"{name}.json").read_text())
    assert hashlib.sha256((STATIC / "vendor" / facts["file"]).read_bytes()).hexdigest() == facts["sha256"]
    assert facts["package"] == package
    text = (STATIC / "vendor" / f"{name}.LICENSE.txt").read_text()
    assert licence in text
    assert holders in text


def test_plotly_is_its_bundle_of_the_version_that_its_address_names() -> None:
    head = assets.plotly_script().read_text("utf-8")[:200]
    version = re.search(r"plotly\.js \(cartesian - minified\) v([\d.]+)", head)
    assert version is not None
    assert assets.plotly_url() == f"/vendor/plotly-cartesian-{version[1]}.min.js"
    assert f'content="{assets.plotly_url()}"' in assets.index_html()
    assert "{{" not in assets.index_html()


def test_nothing_of_the_page_comes_from_another_host() -> None:
    for path in OWN:
        addresses = re.findall(r"https?://[^\s\"'`<>)]+", path.read_text("utf-8"))
        assert [one for one in addresses if not one.startswith(("http://www.w3.org/", "https://…"))] == [], path


def test_the_page_needs_no_eval_no_inline_script_and_no_raw_html() -> None:
    index = (STATIC / "index.html").read_text("utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)", index) == []
    assert re.findall(r"\son\w+=", index) == []
    for path in OWN:
        assert not re.search(
            r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write", path.read_text("utf-8")
        ), path
    policy = dict(part.split(" ", 1) for part in assets.CONTENT_SECURITY_POLICY.split("; "))
    assert policy["default-src"] == policy["script-src"] == policy["connect-src"] == "'self'"


def test_every_file_named_by_the_page_is_there() -> None:
    index = (STATIC / "index.html").read_text("utf-8")
    for name in re.findall(r'"/static/([^"]+)"', index):
        assert (STATIC / name).is_file(), name
    for path in OWN:
        for name in re.findall(r'from "(\.[^"]+)"', path.read_text("utf-8")):
            assert (path.parent / name).is_file(), (path, name)


def test_the_head_names_every_module_so_that_none_waits_for_another() -> None:
    index = assets.index_html()
    for path in (STATIC / "js").rglob("*.js"):
        assert f"{assets.static_url()}/{path.relative_to(STATIC).as_posix()}" in index
    assert f'<link rel="preload" as="script" href="{assets.plotly_url()}">' in index


def test_the_head_names_what_asks_ahead_before_all_other_modules() -> None:
    index = assets.index_html()
    named = re.findall(rf'"{assets.static_url()}/(js/[^"]+)"', index)
    wanted, found = ["js/ahead.js"], set()
    while wanted:
        found.add(name := wanted.pop())
        imported = re.findall(r'from "./([^"]+)"', (STATIC / name).read_text("utf-8"))
        wanted += [f"js/{one}" for one in imported if f"js/{one}" not in found]
    assert set(named[: 1 + len(found)]) == {"js/early.js", *found}
    late = re.findall(r'fetchpriority="low" href="[^"]+/(js/[^"]+)"', index)
    assert set(late) == {*named[1 + len(found) :]} - {"js/main.js"}, "what is asked ahead goes before them"


def test_an_address_of_files_names_their_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(STATIC, tmp_path / "static")
    monkeypatch.setattr(assets, "static_dir", lambda: tmp_path / "static")
    seconds = iter(range(100, 200))
    monkeypatch.setattr(assets.time, "monotonic", lambda: next(seconds))
    before = assets.static_url()
    assert assets.static_url() == before
    assert assets.static_path(f"{before.removeprefix('/static/')}/js/main.js") == ("js/main.js", True)
    assert assets.static_path("js/main.js") == ("js/main.js", False)
    (tmp_path / "static" / "js" / "main.js").write_text("// another")
    assert assets.static_url() != before
    assert assets.static_path(f"{before.removeprefix('/static/')}/js/main.js") == ("js/main.js", False)


def css_block(selector: str) -> dict[str, str]:
    text = (STATIC / "style" / "base.css").read_text("utf-8")
    return dict(re.findall(r"--([\w-]+): ([^;]+);", text.split(f"{selector} {{", 1)[1].split("}", 1)[0]))


@pytest.mark.parametrize(("selector", "theme"), [(":root", LIGHT), (':root[data-theme="dark"]', DARK)])
def test_page_and_figures_share_one_theme(selector: str, theme: Theme) -> None:
    css = css_block(selector)
    assert (css["paper"], css["ink"], css["muted"], css["nonfinite"]) == (
        theme.paper,
        theme.ink,
        theme.muted,
        theme.nonfinite,
    )
    assert css["accent"] == theme.lines[0]
    assert css["strong-line"] == theme.axis


def test_the_dark_colours_are_the_same_by_choice_and_by_preference() -> None:
    assert css_block(':root:not([data-theme="light"])') == css_block(':root[data-theme="dark"]')


def test_modules_stay_small() -> None:
    long = {path.name: count for path in OWN if (count := len(path.read_text("utf-8").splitlines())) > 300}
    assert long == {}


def test_every_series_that_the_agent_measures_is_known_as_one() -> None:
    """Else it would be taken for one that somebody logged, and shown first. Some have a figure of their own."""
    source = (STATIC / "js" / "chosen_curve.js").read_text("utf-8")
    known = set(re.findall(r'"(\w+)"', source.partition("const MEASURED = [")[2].partition("]")[0]))
    of_their_own = {"loss", "grad_norm", "learning_rate", "step_seconds"}
    logged = {"eval_loss", "max_attention_logit", "log_z"}
    assert set(SCALARS) - known == of_their_own | logged


def test_pure_modules_by_node(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; the modules are only tested in the browser then")
    shutil.copytree(STATIC, tmp_path / "static")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(Path(__file__).parent / "modules.test.js", tmp_path)
    done = subprocess.run([node, "--test", "modules.test.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
