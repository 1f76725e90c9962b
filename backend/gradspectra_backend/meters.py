"""What Prometheus reads: counters of this process, and gauges read from the database at each scrape."""

from __future__ import annotations

import os
from collections.abc import Iterable

from gradspectra_core import __version__
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, generate_latest

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class _OfProcess(CollectorRegistry):
    """Counters with a label that says whose they are: which of several processes answers a scrape is chance, and one
    that is another's would look like a counter that began anew.
    """

    def collect(self) -> Iterable[Metric]:
        label = {"process": str(os.getpid())}
        for family in super().collect():
            family.samples = [sample._replace(labels=sample.labels | label) for sample in family.samples]
            yield family


class Meters:
    """Registries of its own, so that two applications in one interpreter do not mix."""

    def __init__(self) -> None:
        self._own = own = _OfProcess()
        self._common = common = CollectorRegistry()
        Info("gradspectra", "The server", registry=common).info({"version": __version__})
        self.batches = Counter("gradspectra_batches", "Batches by how they ended", ["outcome"], registry=own)
        self.steps = Counter("gradspectra_steps", "Steps stored", registry=own)
        self.bytes = Counter("gradspectra_record_bytes", "Bytes of record bodies, decompressed", registry=own)
        self.seconds = Histogram(
            "gradspectra_ingest_seconds", "From a batch's last byte to its commit", buckets=BUCKETS, registry=own
        )
        self.listeners = Gauge("gradspectra_listeners", "Live streams open in this process", registry=own)
        self.runs = Gauge("gradspectra_runs", "Runs stored", registry=common)
        self.running = Gauge("gradspectra_runs_running", "Runs that are running now", registry=common)
        self.behind = Gauge("gradspectra_runs_behind", "Runs with batches not derived yet", registry=common)
        self.due = Gauge("gradspectra_deliveries_due", "Deliveries of alerts not sent yet", registry=common)
        self.failed = Gauge("gradspectra_deliveries_failed", "Deliveries of alerts given up", registry=common)

    def text(self, *, listeners: int, runs: int, running: int, behind: int, due: int, failed: int) -> bytes:
        """The text form of Prometheus."""
        self.listeners.set(listeners)
        self.runs.set(runs)
        self.running.set(running)
        self.behind.set(behind)
        self.due.set(due)
        self.failed.set(failed)
        return generate_latest(self._own) + generate_latest(self._common)
