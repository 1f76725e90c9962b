"""What a question about layers must know of its run: the same in one statement as in several."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra_store import Store
from gradspectra_store.attempts import visible_spans
from gradspectra_store.block_rows import Source
from gradspectra_store.errors import BadRequest, UnknownRun
from gradspectra_store.kept_parts import STANDING
from gradspectra_store.layer_facts import LayerFacts, layer_facts
from gradspectra_store.layer_tables import run_layers
from gradspectra_store.prepared import Prepared
from gradspectra_store.ranges import Range
from gradspectra_store.retired import coarse_stretches
from gradspectra_store.retiring import Span, note_span
from gradspectra_store.scan import find, reaches
from store.compacting import a_plain_run, a_varied_run, compacted
from store.retaining import asked
from store.statements import noted


@pytest.mark.parametrize("turns", [0, 3])
@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("attempt", [None, 1])
def test_facts_are_what_statements_of_their_own_tell(
    store: Store, turns: int, derived: bool, attempt: int | None
) -> None:
    run, _, last = a_varied_run(store, np.random.default_rng(7), 300)
    compacted(store, run, turns)
    with store.write() as conn:
        for name, width in (("grad_sq", 8), ("weight_sq", 64), ("effective_rank", 8)):
            source = Source(run, "layers", name == "effective_rank", 1, 0)
            note_span(conn, source, Span(name, 0, 64), width)
    names = ["effective_rank"] if derived else ["grad_norm", "grad_sq", "weight_sq"]
    wanted = Range(last // 4, last - 3)
    with store.read() as conn:
        spans = visible_spans(conn, run, attempt)
        expected = LayerFacts(
            spans,
            run_layers(conn, run),
            reaches(conn, run, "layers", derived=derived),
            coarse_stretches(conn, run, "layers", names, derived=derived),
            find(conn, run, "layers", spans, wanted.start, wanted.stop, derived=derived),
            Prepared(STANDING).rows(conn, {"of_run": run})[0],
        )
        assert layer_facts(conn, run, names, wanted, attempt, derived=derived) == expected
    assert len(expected.layers.places) == 2
    assert len(expected.coarse) == (1 if derived else 2)


def test_a_run_or_an_attempt_that_is_not_there_is_named(store: Store) -> None:
    run = a_plain_run(store, 8)
    with store.read() as conn:
        with pytest.raises(UnknownRun, match="nowhere"):
            layer_facts(conn, "nowhere", ["grad_sq"], Range(0, 9), None, derived=False)
        with pytest.raises(BadRequest, match="attempts 1 to 1, got 2"):
            layer_facts(conn, run, ["grad_sq"], Range(0, 9), 2, derived=False)


def test_a_question_about_layers_takes_few_statements(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_plain_run(store, 640, size=64)
    compacted(store, run)
    texts = noted(monkeypatch)
    taken = []
    for columns in (1000, 1000, 999, 80):
        texts.clear()
        asked(store, run, "grad_norm", columns=columns)
        taken.append(len(texts))
    assert taken == [4, 1, 2, 3]  # the facts, which blocks there are, their numbers, those of the newest segment
