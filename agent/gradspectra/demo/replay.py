"""Replays the recording of the demo's training job at its real speed, for machines without torch.

Started by `gradspectra demo`; alone: `python -m gradspectra.demo.replay --help`. Server and token come from the
environment. What reaches the server is what the job sent, with the times moved to now.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradspectra_core.records import Batch

from gradspectra.demo.recording import bundled, step_records, unpacked
from gradspectra.demo.stopping import Stop
from gradspectra.transport import Transport


def replay(batches: Iterator[Batch], run: str, speed: float) -> None:
    """Send the recorded steps to the server at `speed` times the speed they were recorded at."""
    stop = Stop()
    transport = Transport(
        project="demo",
        name=run,
        config={"replayed": True},
        tags=["demo", "replay"],
        notes="A recording of the demo's training job, replayed.",
    )
    transport.start()
    began, first = time.time(), None
    agent_seconds = step_seconds = 0.0
    for record in step_records(batches):
        first = record.time if first is None else first
        record.time = began + (record.time - first) / speed
        stop.sleep(record.time - time.time())
        if stop.asked:
            break
        transport.record(record)
        agent_seconds += record.scalars.get("agent_seconds", 0.0)
        step_seconds += record.scalars.get("step_seconds", 0.0)
        transport.set_overhead(agent_seconds / step_seconds if step_seconds else 0.0)
        if record.step % 50 == 0:
            print(f"step {record.step:5d}   loss {record.scalars.get('loss', float('nan')):.3f}", flush=True)
    transport.close(1.0 if stop.asked else 5.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and replay."""
    parser = argparse.ArgumentParser(prog="python -m gradspectra.demo.replay", description=__doc__)
    parser.add_argument("--run", default=time.strftime("byte-gpt-%H%M%S"), help="name of the run")
    parser.add_argument("--recording", type=Path, help="another recording than the bundled one")
    parser.add_argument("--speed", type=float, default=1.0, help="times the recorded speed (default 1)")
    options = parser.parse_args(arguments)
    replay(unpacked(options.recording.read_bytes()) if options.recording else bundled(), options.run, options.speed)


if __name__ == "__main__":
    main()
