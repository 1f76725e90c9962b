import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from agent.service import eventually, service
from gradspectra.client import Client

EXAMPLES = Path(__file__).parents[2] / "examples"
WITH_JAX = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed: pip install jax"),
]


@pytest.mark.parametrize(
    ("example", "layer", "most"),
    [
        ("recorder_numpy.py", "layers.0.weight", 8),
        pytest.param("recorder_jax.py", "dense_1.kernel", 64, marks=WITH_JAX),
    ],
)
def test_the_example_records_a_run_that_learns(example: str, layer: str, most: int, tmp_path: Path) -> None:
    with service(tmp_path / "data") as url, Client(url) as client:
        environment = {**os.environ, "GRADSPECTRA_SERVER": url, "GRADSPECTRA_SPOOL": str(tmp_path / "spool")}
        command = [sys.executable, str(EXAMPLES / example), "--steps", "200"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
        run = eventually(lambda: client.runs()[0], lambda run: run.info["derived_step"] == 200)
        assert done.stdout.strip() == f"{url}/runs/{run.id}"
        loss = run.series("loss")["loss"]
        assert len(loss) == 200
        assert loss[-50:].mean() < 0.8 * loss[:10].mean()
        ranks = run.layers("effective_rank", layers=[layer])
        assert ranks.steps.tolist() == list(range(20, 201, 20))
        assert (ranks.mean >= 1.0).all()
        assert (ranks.mean <= most).all()
