"""What bounds the server's memory: large answers one at a time, freed arrays given back."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from gradspectra_backend.memory import give_back_freed, large_answer


def test_large_answers_are_made_one_after_the_other() -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(60)
        with large_answer():
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with large_answer():
        inside.set()
        other.join(0.2)
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_an_answer_that_fails_lets_the_next_one_be_made() -> None:
    with pytest.raises(ValueError, match="no such layer"), large_answer():
        raise ValueError("no such layer")
    with large_answer():
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc keeps what was freed")
def test_freed_arrays_of_many_threads_go_back_to_the_system() -> None:
    script = """
import threading
import numpy as np
from pathlib import Path
from gradspectra_backend.memory import give_back_freed
assert give_back_freed()
kept = []
def work():
    for size in (4, 8, 16, 30):
        np.ones(size * 2**17)
    kept.append([bytes(100_000) for _ in range(20)][-1])
for _ in range(8):
    threads = [threading.Thread(target=work) for _ in range(4)]
    [one.start() for one in threads]
    [one.join() for one in threads]
resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
assert resident < 90 * 2**20, resident
"""
    if not give_back_freed():
        pytest.skip("there is no glibc")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
