import subprocess
import sys

import pytest

ONLY_NUMPY = {"numpy", "gradspectra", "gradspectra_core"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def third_party(statement: str) -> set[str]:
    """Top-level modules outside the standard library that a statement loads."""
    code = (
        f"import sys; before = set(sys.modules); {statement}; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    return {name for name in run(code).split() if name not in sys.stdlib_module_names}


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    assert third_party("import gradspectra") == {"gradspectra", "gradspectra_core"}


def test_importing_the_package_loads_a_few_small_modules() -> None:
    code = "import sys; before = set(sys.modules); import gradspectra; print(*set(sys.modules) - before)"
    assert len(run(code).split()) < 60


@pytest.mark.parametrize(
    "statement",
    [
        "import gradspectra; gradspectra.Recorder",
        "import gradspectra; gradspectra.Client",
        "import gradspectra; gradspectra.InstabilityError",
        "import gradspectra.cli; gradspectra.cli.build_parser(server=False)",
        "import gradspectra.transport, gradspectra.sync, gradspectra.rules",
    ],
)
def test_the_base_install_needs_numpy_alone(statement: str) -> None:
    assert third_party(statement) <= ONLY_NUMPY


def test_importing_the_module_watch_leaves_the_function_of_that_name() -> None:
    assert run("import gradspectra.watch; import gradspectra; print(callable(gradspectra.watch))") == "True\n"
    assert run("import gradspectra; print(gradspectra.watch is gradspectra.watch)") == "True\n"


def test_an_unknown_name_is_an_attribute_error_and_known_ones_are_listed() -> None:
    import gradspectra

    with pytest.raises(AttributeError, match="module 'gradspectra' has no attribute 'wach'"):
        gradspectra.wach  # noqa: B018
    assert {"watch", "Watch", "Recorder", "Client", "InstabilityError", "__version__"} <= set(dir(gradspectra))
