"""What the statistics of a model that is really trained take in the database, all that is kept of them included."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from backend.servers import serving
from gradspectra_core.blocks import unpack_recorded
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.schema import segments
from gradspectra_store.segments import READERS
from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive

torch = pytest.importorskip("torch", reason="torch is not installed (the extra agent has it)")

STEPS = 1000
"""Of a run of 500 the newest steps, which are not compacted yet, and what is free in pages weigh more: 4.9 bytes."""
pytestmark = pytest.mark.slow


def trained(server: str, spool: Path) -> str:
    """Train a residual network of 52 layers with a warm-up, a decay and clipping, each step recorded; the run."""
    import gradspectra

    torch.manual_seed(0)
    nn = torch.nn
    blocks_of_it = [nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(8)]
    first, last, teacher = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(16, 4)
    model = nn.ModuleList([first, *blocks_of_it, last])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 100, 1) * (1 - 0.9 * i / STEPS))
    how = {"budget": None, "spectra": "off", "server": server, "spool": str(spool)}
    with gradspectra.watch(model, optimizer, project="room", run="r", **how) as watch:
        for _ in range(STEPS):
            inputs = torch.randn(16, 16)
            inner = first(inputs)
            for one in blocks_of_it:
                inner = inner + one(inner)
            wanted = torch.sin(teacher(inputs).detach() + 0.3 * torch.randn(16, 4))
            loss = nn.functional.mse_loss(last(inner), wanted)
            watch.log(loss=loss, examples=16)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return str(watch.run_id)


def small_size(file: Path) -> int:
    """Bytes of a database without what is free in it."""
    copy = file.with_suffix(".copy")
    with closing(sqlite3.connect(file)) as conn:
        conn.execute(f"VACUUM INTO '{copy}'")
    return copy.stat().st_size


def test_statistics_take_three_bytes_as_recorded_and_under_five_with_all_that_is_made_of_them(tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with serving(tmp_path) as server:
        run = trained(server.url, tmp_path / "spool")
    torch.set_num_threads(threads)
    store = Store.open(f"sqlite:///{tmp_path}/gradspectra.db")
    derive(store, run)
    compact(store, run)
    with store.read() as conn:
        level = blocks.c.kind, blocks.c.payload
        kept = conn.execute(sa.select(*level).where(blocks.c.level == 0, sa.not_(blocks.c.derived))).all()
        left = conn.execute(sa.select(segments.c.kind, segments.c.payload)).all()
    store.close()
    layers = [payload for kind, payload in kept if kind == "layers"]
    of_layers = sum(unpack_recorded(payload).values.size for payload in layers)
    parts = [READERS[kind](payload) for kind, payload in left]
    numbers = sum(unpack_recorded(payload).values.size for _, payload in kept)
    numbers += sum(part.values.size + part.counts.size for part in parts)
    assert of_layers > 0.8 * numbers > 10 * 52 * STEPS
    assert sum(map(len, layers)) < 3.0 * of_layers
    Store.open(f"sqlite:///{tmp_path}/empty.db").close()
    room = small_size(tmp_path / "gradspectra.db") - small_size(tmp_path / "empty.db")
    assert 0 < room / numbers < 4.8
