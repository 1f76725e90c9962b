"""The house rules that a machine can check: who may import what, and bounds that keep files readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "core": {"numpy"},
    "agent": {
        "numpy",
        "torch",
        "transformers",
        "lightning",
        "accelerate",
        "pandas",
        "polars",
        "pyarrow",
        "tensorboard",
        "wandb",
        "triton",
    },
    "store": {"numpy", "sqlalchemy", "alembic", "psycopg", "orjson"},
    "worker": {"numpy", "sqlalchemy", "billiard", "celery", "kombu", "redis", "httpx2"},
    "frontend": {"numpy"},
    "backend": {
        "numpy",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "pydantic_settings",
        "orjson",
        "prometheus_client",
        "redis",
        "sqlalchemy",
        "anyio",
        "httpx2",
        "pyarrow",
    },
}
"""What each room may import from outside the standard library and the project."""

INPUT_AND_OUTPUT = {
    "os",
    "io",
    "pathlib",
    "socket",
    "ssl",
    "http",
    "urllib",
    "sqlite3",
    "subprocess",
    "shutil",
    "asyncio",
}


def sources(room: str) -> list[Path]:
    """Every Python file of a room."""
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"the room {room} has no sources"
    return files


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    if not Path(command[0]).exists():
        pytest.skip("import-linter is not installed (the dev extra has it; .ci/run checks it)")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_from_outside_but_what_its_row_allows(room: str) -> None:
    known = set(sys.stdlib_module_names) | ROOMS[room]
    strangers = {
        (str(path.relative_to(ROOT)), name)
        for path in sources(room)
        for name in imported(path)
        if name not in known and not name.startswith("gradspectra")
    }
    assert strangers == set()


def test_core_does_no_input_and_output() -> None:
    found = {(path.name, name) for path in sources("core") for name in imported(path) if name in INPUT_AND_OUTPUT}
    assert found == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_module_says_in_its_first_line_what_it_is_for(room: str) -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in sources(room) if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_functions_stay_short_enough_to_read(room: str) -> None:
    long = []
    for path in sources(room):
        text = path.read_text()
        if text.count("\n") > 310:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                kernel = any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)
                if lines > (80 if kernel else 40) and "migrations" not in path.parts:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []
