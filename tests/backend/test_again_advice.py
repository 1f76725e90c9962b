"""The doctor names the runs that are to be derived again, and it helps."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from backend.servers import command
from backend.test_derive_command import derived_run
from gradspectra_backend.again_advice import advice
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.schema import cursors, derived_segments
from gradspectra_worker.compact import compact
from store.spoiling import spoil


def test_the_runs_are_named_once_and_not_too_many() -> None:
    assert advice([]) == ""
    assert advice(["a", "a"]) == "`gradspectra derive a --again` makes what is derived anew"
    assert advice("abcde").endswith("derive c --again` makes what is derived anew (and so for 2 more runs)")


def test_what_is_damaged_of_what_was_derived_comes_back(tmp_path: Path) -> None:
    for table in (derived_segments, blocks):
        run, url = derived_run(tmp_path)
        place = {"batch": 40, "kind": "scalars"}
        with closing(Store.open(url)) as store:
            if table is blocks:
                compact(store, run)
                place = {"name": "noise_scale", "kind": "layers", "level": 0}
            spoil(store, run, table, **place)
        said = command("doctor", "--repair", "--data", str(tmp_path))
        assert said.returncode == 1
        assert f"a backup has more; `gradspectra derive {run} --again` makes" in said.stdout.replace(
            "of the rest only a backup has what they held", "a backup has more"
        )
        assert command("derive", run, "--again", "--data", str(tmp_path)).returncode == 0
        said = command("doctor", "--data", str(tmp_path))
        assert (said.returncode, "--again" in said.stdout) == (0, False)


def test_damage_of_what_was_recorded_is_not_mended_by_deriving(tmp_path: Path) -> None:
    run, url = derived_run(tmp_path)
    with closing(Store.open(url)) as store:
        compact(store, run)
        spoil(store, run, blocks, name="loss", level=0)
    said = command("doctor", "--data", str(tmp_path))
    assert (said.returncode, "--again" in said.stdout) == (1, False)


def test_a_run_that_was_given_a_watermark_is_named(tmp_path: Path) -> None:
    run, url = derived_run(tmp_path, most=20)
    with closing(Store.open(url)) as store, store.write() as conn:
        conn.execute(sa.delete(cursors))
    said = command("doctor", "--repair", "--data", str(tmp_path)).stdout
    assert f"1 row mended; `gradspectra derive {run} --again` makes what is derived anew" in said
    assert "--again" not in command("doctor", "--repair", "--data", str(tmp_path)).stdout
    done = command("derive", run, "--again", "--data", str(tmp_path))
    assert done.stdout.startswith(f"400 steps of run {run} are derived again")
