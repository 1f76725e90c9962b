"""Names of any kind come through: in every form of an export, and when they are asked for."""

from __future__ import annotations

import csv
import io

import pytest
from backend.callers import API, Caller, batch, layer_block, spectrum_block, table
from backend.test_export import FORMS, exported, rows_of
from gradspectra import client
from gradspectra_backend.routes.fields import names_of

NAMES = (
    *("step", "attempt", "time", "step_value", "a,b", 'say "x"', "'", ";", " led", "followed ", " ", ", "),
    *("back\\slash", "end\\", "\\", "\\,", "\\\\", "a\\ ", "=1+1", "+x", "-x", "@x", "#", "null", "a b", "%00"),
    *("größe/損失", "\N{GRINNING FACE}", "e\u0301", "<b>", "{x}", "x" * 512, "y" * 511 + ","),
)


@pytest.fixture(scope="module")
def caller(shared_caller: Caller) -> Caller:
    return shared_caller


def escaped(name: str) -> str:
    """A name as a list of them has it."""
    held = name.replace("\\", "\\\\").replace(",", "\\,")
    held = "\\" + held if held.startswith(" ") else held
    return held[:-1] + "\\ " if held.endswith(" ") and held != "\\ " else held


@pytest.fixture(scope="module")
def run(caller: Caller) -> str:
    """A run whose series and layers are called like this."""
    run = caller.start()
    of = table(NAMES)
    scalars = {name: [float(at)] for at, name in enumerate(NAMES)}
    caller.must_send(
        run["id"],
        batch(
            run["session"],
            1,
            [1],
            layer_table=of,
            layers=layer_block(of, [1], grad_sq=[[float(at) for at in range(len(NAMES))]]),
            spectra=spectrum_block(of, 1, NAMES.index("a,b"), [3.0, 1.0]),
            **scalars,
        ),
    )
    caller.derived(run["id"], 1)
    return str(run["id"])


def test_a_list_of_names_gives_each_as_it_is():
    assert names_of(",".join(map(escaped, NAMES))) == list(NAMES)
    assert names_of(" , ".join(map(escaped, NAMES))) == list(NAMES)
    assert names_of(client._joined(NAMES)) == list(NAMES)
    assert names_of("loss, lr ,train/x\\y, ,") == ["loss", "lr", "train/x\\y"]


@pytest.mark.parametrize("form", FORMS)
def test_series_of_any_name_come_in_a_column_of_their_own(caller: Caller, run: str, form: str):
    answer = caller.client.get(f"{API}/runs/{run}/export", params={"format": form})
    (row,) = rows_of(answer.content, form)
    taken = {"step": "step_value_value", "attempt": "attempt_value", "time": "time_value"}
    assert {name: row[taken.get(name, name)] for name in NAMES} == {name: at for at, name in enumerate(NAMES)}
    assert (row["step"], row["attempt"], row["time"]) == (1, 1, 1e9 + 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_series_of_any_name_is_found_when_asked_for(caller: Caller, run: str, name: str):
    (row,) = exported(caller, run, "json", names=escaped(name))
    label = f"{name}_value" if name in ("step", "attempt", "time") else name
    assert list(row.items())[3:] == [(label, NAMES.index(name))]
    found = caller.get(f"/runs/{run}/series", names=escaped(name))["series"]
    assert {key: value["last"] for key, value in found.items()} == {name: [float(NAMES.index(name))]}


@pytest.mark.parametrize("form", FORMS)
def test_layers_of_any_name_come_as_they_are(caller: Caller, run: str, form: str):
    rows = exported(caller, run, form, what="layers", names="grad_sq")
    assert [(row["layer"], row["grad_sq"]) for row in rows] == [(name, at) for at, name in enumerate(NAMES)]
    some = exported(caller, run, form, what="layers", names="grad_sq", layers=",".join(map(escaped, NAMES[::-1])))
    assert {row["layer"] for row in some} == set(NAMES)
    found = exported(caller, run, form, what="layers", names="grad_sq", pattern="^[=+@-]")
    assert [row["layer"] for row in found] == ["=1+1", "+x", "-x", "@x"]
    (spectrum,) = exported(caller, run, form, what="spectra", of="gradient", pattern="^a,b$")
    assert spectrum["layer"] == "a,b"


def test_csv_has_a_cell_for_each_name_which_stands_as_it_is(caller: Caller, run: str):
    text = caller.client.get(f"{API}/runs/{run}/export").content.decode()
    for read in (io.StringIO(text), io.StringIO(text, newline="")):
        names, cells = csv.reader(read)
        assert len(names) == len(cells) == len(set(names)) == len(NAMES) + 3
    assert text.count("\n") == 2
    assert {"=1+1", "+x", "-x", "@x"} <= set(names)
