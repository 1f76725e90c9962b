"""CSV and JSON lines as the world writes them: other separators, marks of Windows, and files that still grow."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from gradspectra import cli
from gradspectra.importing import BadLog
from gradspectra.importing_text import TextLog


def log_of(folder: Path, content: bytes | str, form: str = "csv", **options: Any) -> TextLog:
    path = folder / f"log.{form}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextLog(path, form, **options)


def rows(log: TextLog) -> list[tuple[int, dict[str, float]]]:
    return [(row.step, dict(row.numbers)) for row in log.rows()]


@pytest.mark.parametrize(
    "content",
    [
        b"step,loss\n1,2.5\n2,3.5\n",
        b"\xef\xbb\xbfstep,loss\r\n1,2.5\r\n\r\n2,3.5\r\n",
        b"step,loss\r1,2.5\r2,3.5\r",
        b"step;loss\n1;2.5\n2;3.5\n",
        b"step\tloss\n1\t2.5\n2\t3.5",
        b'"step", "loss"\n"1", 2.5 \n2, "3.5"\n',
        b'step;"loss"\n1.0;2.5e0\n2e0;+3.5\n',
    ],
)
def test_a_table_is_read_in_any_common_form(content: bytes, tmp_path: Path) -> None:
    log = log_of(tmp_path, content)
    assert log.survey().steps == 2
    assert rows(log) == [(1, {"loss": 2.5}), (2, {"loss": 3.5})]


@pytest.mark.parametrize("loss", ["2.5", '"NaN"'])
def test_the_json_of_an_export_is_read_as_lines_of_objects(loss: str, tmp_path: Path) -> None:
    objects = f'{{"step":1,"loss":{loss}}},\n{{"step":2,"loss":null,"lr":0.5}}'
    listed = log_of(tmp_path, f"[\n{objects}\n]\n", "jsonl")
    assert listed.survey().steps == 2
    assert repr(rows(listed)) == repr([(1, {"loss": float(loss.strip('"'))}), (2, {"lr": 0.5})])
    for text in ('{"step":1,"loss":1},\n', '{"step":1,"loss":1}\n]\n'):
        with pytest.raises(BadLog, match="is not JSON"):
            log_of(tmp_path, text, "jsonl").survey()


def test_a_name_may_hold_what_separates_others(tmp_path: Path) -> None:
    log = log_of(tmp_path, 'step,"loss; mean, ""all"""\n1,2\n')
    assert rows(log) == [(1, {'loss; mean, "all"': 2.0})]
    assert rows(log_of(tmp_path, "step;loss, mean\n1;2\n")) == [(1, {"loss, mean": 2.0})]


def test_numbers_beyond_a_float_are_infinite_and_great_whole_ones_the_nearest(tmp_path: Path) -> None:
    log = log_of(tmp_path, "step,a,b,c\n1,1e400,-1e400,9007199254740993\n")
    assert rows(log) == [(1, {"a": float("inf"), "b": float("-inf"), "c": 2.0**53})]
    assert rows(log_of(tmp_path, '{"step": 1, "a": 1e400, "c": 9007199254740993}', "jsonl")) == [
        (1, {"a": float("inf"), "c": 2.0**53})
    ]


@pytest.mark.parametrize(
    ("form", "tail"),
    [("csv", "3,"), ("csv", "3"), ("csv", '3,"0.5'), ("csv", "3,1e"), ("jsonl", '{"step": 3, "lo'), ("jsonl", "{")],
)
def test_a_last_line_that_is_not_finished_is_left_out_and_said(form: str, tail: str, tmp_path: Path) -> None:
    head = {"csv": "step,loss\n1,1\n2,2\n", "jsonl": '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n'}[form]
    log = log_of(tmp_path, head + tail, form)
    found = log.survey()
    assert rows(log) == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    if tail == "3,":
        assert found.remarks == [], "an empty cell is nothing, also in a line that ends there"
        return
    (remark,) = found.remarks
    assert remark.startswith(f"the last line is not finished and left out: {log.path}, line ")
    log.path.write_text(head + tail + "\n")
    with pytest.raises(BadLog, match=r"line [34]"):
        log.survey()


def test_a_file_of_one_bad_line_is_refused_whether_it_has_an_end_or_not(tmp_path: Path) -> None:
    with pytest.raises(BadLog, match="there is no column 'step'"):
        log_of(tmp_path, "epoch,loss").survey()
    with pytest.raises(BadLog, match="is not JSON"):
        log_of(tmp_path, "step", "jsonl").survey()


def test_a_finished_last_line_needs_no_mark_of_its_end(tmp_path: Path) -> None:
    log = log_of(tmp_path, '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}', "jsonl")
    assert log.survey().remarks == []
    assert len(rows(log)) == 2


@pytest.mark.parametrize(
    "content", [gzip.compress(b"step,loss\n1,2\n"), "step,loss\n1,2\n".encode("utf-16")], ids=["gzip", "utf-16"]
)
def test_what_is_packed_or_written_otherwise_is_refused_with_the_remedy(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadLog, match=r"is not UTF-8 text: .*; unpack it \(gunzip\) or convert it \(iconv -t utf-8\)"):
        log_of(tmp_path, content).survey()


def test_a_pipe_cannot_be_read_twice_and_is_refused_at_once(tmp_path: Path, capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["import", "csv", str(tmp_path / "pipe")]) == 1
    assert "pipe: is a pipe or a device, and a log is read twice; name a csv file" in capsys.readouterr().err
