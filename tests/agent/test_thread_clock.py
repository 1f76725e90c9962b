"""The processor time of a thread, read from another while the thread works."""

from __future__ import annotations

import os
import threading
import time

import pytest
from gradspectra.thread_clock import ThreadClock


def worked(clock, go_on, spent, end):
    clock.begin()
    while time.thread_time() < 0.02:
        pass
    clock.note()
    while time.thread_time() < 0.05:
        pass
    spent.set()
    go_on.wait(30)
    if end:
        clock.end()


@pytest.fixture
def start():
    """Starts a thread that takes 0.05 s; gives its clock, and what ends the thread and waits for that."""
    events = []

    def started(end=True):
        clock, go_on, spent = ThreadClock(), threading.Event(), threading.Event()
        thread = threading.Thread(target=worked, args=(clock, go_on, spent, end))
        thread.start()
        assert spent.wait(30)

        def stop():
            go_on.set()
            thread.join()

        events.append(stop)
        return clock, stop

    yield started
    for stop in events:
        stop()


def test_it_tells_while_the_thread_works_and_after_it_has_ended(start):
    clock, stop = start()
    assert 0.05 <= clock.seconds < 1.0
    stop()
    after = clock.seconds
    assert 0.05 <= after < 1.0
    assert clock.seconds == after
    assert ThreadClock().seconds == 0.0


def test_without_such_a_clock_it_tells_what_the_thread_has_noted(start, monkeypatch):
    monkeypatch.delattr(time, "pthread_getcpuclockid", raising=False)
    clock, stop = start()
    assert 0.02 <= clock.seconds < 0.05
    stop()
    assert clock.seconds >= 0.05


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_in_a_child_that_the_thread_is_not_in_it_stays_as_it_was_noted(start):
    clock, _ = start()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, f"{clock.seconds:.3f}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert 0.02 <= float(os.read(reading, 20)) < 0.06
