"""Layers are chosen by name, regular expression, role and depth; no expression holds the server up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from backend.callers import API, Caller, batch, layer_block
from gradspectra_backend.patterns import matching
from gradspectra_backend.problems import Problem
from gradspectra_core.layers import Layer, LayerTable

LAYERS = [
    Layer("embed.weight", "embedding", -1, (8, 4)),
    *(Layer(f"layers.{depth}.attn.{role}.weight", role, depth, (4, 4)) for depth in range(4) for role in ("q", "k")),
    Layer("layers.2.norm.weight", "norm", 2, (4,)),
]


@pytest.fixture(scope="module")
def base(shared_caller: Caller) -> str:
    """Address of a statistic that all layers have but the norm."""
    caller = shared_caller
    run = caller.start()
    of = LayerTable.of(LAYERS)
    block = layer_block(of, [1], grad_sq=[[float(place) for place in range(len(LAYERS))]])
    block.present[:, :, -1] = False
    caller.must_send(run["id"], batch(run["session"], 1, [1], layer_table=of, layers=block))
    return f"/runs/{run['id']}/layers/grad_sq"


@pytest.mark.parametrize(
    ("choice", "places"),
    [
        ({"pattern": "attn.q"}, [1, 3, 5, 7]),
        ({"pattern": r"layers\.(1|3)\..*k\."}, [4, 8]),
        ({"pattern": "^embed|3.attn"}, [0, 7, 8]),
        ({"role": "q,embedding"}, [0, 1, 3, 5, 7]),
        ({"depth": "-1,2-3"}, [0, 5, 6, 7, 8]),
        ({"depth": "1", "role": "k"}, [4]),
        ({"depth": "1-2", "pattern": "k", "layers": LAYERS[6].name + "," + LAYERS[8].name}, [6]),
        ({"role": "norm"}, []),
        ({"layers": LAYERS[9].name}, [9]),
        ({"pattern": "nothing"}, []),
    ],
)
def test_layers_that_fit_all_of_the_choice_are_given(shared_caller: Caller, base: str, choice: dict[str, str], places):
    answer = shared_caller.get(base, **choice)
    assert answer["layers"] == [LAYERS[place].name for place in places]
    if 9 not in places:
        assert answer["mean"] == [[float(place)] for place in places]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("pattern", "(", "is not a regular expression: missing ), unterminated subpattern at position 0"),
        ("pattern", "(?a)(?u)x", "is not a regular expression: ASCII and UNICODE flags are incompatible"),
        ("pattern", "x" * 501, "500"),
        ("role", "colour", "role: must be of q, k, v"),
        ("depth", "deep", "depth"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(shared_caller: Caller, base: str, field: str, value: str, said: str):
    answer = shared_caller.client.get(API + base, params={field: value})
    refused = answer.json()
    assert (refused["status"], refused["field"]) == (422, field)
    assert said in refused["detail"]


def test_a_layer_that_does_not_exist_is_named(shared_caller: Caller, base: str):
    refused = shared_caller.client.get(API + base, params={"layers": "nothing.weight", "role": "q"}).json()
    assert (refused["status"], refused["field"]) == (404, "layer")
    assert "nothing.weight" in refused["detail"]


def test_an_expression_that_runs_away_is_stopped_and_named(shared_caller: Caller, base: str):
    name = "a" * 64 + "!"
    with pytest.raises(
        Problem, match=r"pattern: takes more than 1 s over the run's layer names: '\(a\+\)\+\$'"
    ) as raised:
        matching("(a+)+$", [name])
    assert raised.value.kind.status == 422
    assert shared_caller.get(base, pattern="embed")["layers"] == ["embed.weight"]


def test_an_expression_that_takes_long_holds_up_no_other_answer(shared_caller: Caller, base: str):
    run = shared_caller.start()
    of = LayerTable.of([Layer("a" * 64 + "!", "other", -1, (4,))])
    block = layer_block(of, [1], grad_sq=[[1.0]])
    shared_caller.must_send(run["id"], batch(run["session"], 1, [1], layer_table=of, layers=block))
    with ThreadPoolExecutor(1) as pool:
        address = f"{API}/runs/{run['id']}/layers/grad_sq"
        slow = pool.submit(shared_caller.client.get, address, params={"pattern": "(a+)+$"})
        answered = 0
        while not slow.done():
            assert shared_caller.get(base)["mean"]
            answered += 1
    assert slow.result().status_code == 422
    assert answered > 3


def test_a_written_out_alternation_that_runs_away_is_stopped_too():
    with pytest.raises(Problem, match="takes more than 1 s"):
        matching("(x?a|a)" * 40 + "b", ["a" * 60])


def test_harmless_expressions_start_no_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a process was started"))
    assert matching(r"^layers\.1.attn|embed", [layer.name for layer in LAYERS]) == [
        LAYERS[0].name,
        LAYERS[3].name,
        LAYERS[4].name,
    ]
