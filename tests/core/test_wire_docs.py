"""docs/wire.md holds: its example is a batch, its blocks are those written, its bounds are the limits."""

import json
import re
from dataclasses import fields
from pathlib import Path

from core.batches import full_batch
from gradspectra_core.jsonform import batch_from_json
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.limits import Limits
from gradspectra_core.wire import CONTENT_TYPE, FORMAT, encode_batch, unpack

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.S)


def test_the_json_example_is_a_batch():
    digest = LayerTable.of((Layer("h.0.attn.q_proj.weight", "q", 0, (2, 2)),)).digest
    batch = batch_from_json(json.loads(EXAMPLES[1].replace("…", digest)))
    assert batch.layers is not None
    assert batch.layers.values.tolist() == [[[0.5]]]
    assert batch.counts.present.tolist() == [[True, False]]


def test_the_metadata_of_the_binary_form_is_as_documented():
    meta, _ = unpack(encode_batch(full_batch()))
    documented = json.loads(EXAMPLES[0])
    assert set(meta) == set(documented)
    for name in ("layers", "spectra"):
        assert set(meta[name]) == set(documented[name])
    assert CONTENT_TYPE in PAGE
    assert FORMAT in PAGE


def test_every_block_has_its_row_with_its_type():
    _, blocks = unpack(encode_batch(full_batch()))
    rows = re.findall(r"^\| (`[a-z.`, ]+`) \| (\w+) \|", PAGE, re.M)
    documented = {
        name if not name.startswith(".") else f"spectra{name}": dtype
        for names, dtype in rows
        for name in re.findall(r"`([a-z.]+)`", names)
    }
    codes = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8"}
    written = {name: codes[block.dtype.name] for name, block in blocks.items() if not name.endswith(".present")}
    assert written == documented
    assert {name for name in blocks if name.endswith(".present")} == {
        f"{name}.present" for name in ("scalars", "counts", "layers.values", "layers.counts")
    }


def test_the_bounds_are_the_limits():
    section = PAGE[PAGE.index("## Bounds") :].replace(",", "").replace("4 MiB", str(4 << 20))
    missing = [field.name for field in fields(Limits) if f" {field.default} " not in section]
    assert missing == []
