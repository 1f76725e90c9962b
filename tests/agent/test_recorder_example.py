import os
import subprocess
import sys
from pathlib import Path

from agent.service import eventually, service
from gradspectra.client import Client

EXAMPLE = Path(__file__).parents[2] / "examples" / "recorder_numpy.py"


def test_the_example_records_a_run_that_learns(tmp_path: Path) -> None:
    with service(tmp_path / "data") as url, Client(url) as client:
        environment = {**os.environ, "GRADSPECTRA_SERVER": url, "GRADSPECTRA_SPOOL": str(tmp_path / "spool")}
        command = [sys.executable, str(EXAMPLE), "--steps", "200"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
        run = eventually(lambda: client.runs()[0], lambda run: run.info["derived_step"] == 200)
        assert done.stdout.strip() == f"{url}/runs/{run.id}"
        loss = run.series("loss")["loss"]
        assert len(loss) == 200
        assert loss[-50:].mean() < 0.8 * loss[:10].mean()
        ranks = run.layers("effective_rank", layers=["layers.0.weight"])
        assert ranks.steps.tolist() == list(range(20, 201, 20))
        assert (ranks.mean >= 1.0).all()
        assert (ranks.mean <= 8.0).all()
