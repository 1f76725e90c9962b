"""What Prometheus reads: counters of this process, and gauges read from the database at each scrape."""

from __future__ import annotations

from gradspectra_core import __version__
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Meters:
    """One registry per process, so that two applications in one interpreter do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        Info("gradspectra", "The server", registry=registry).info({"version": __version__})
        self.batches = Counter("gradspectra_batches", "Batches by how they ended", ["outcome"], registry=registry)
        self.steps = Counter("gradspectra_steps", "Steps stored", registry=registry)
        self.bytes = Counter("gradspectra_record_bytes", "Bytes of record bodies, decompressed", registry=registry)
        self.seconds = Histogram(
            "gradspectra_ingest_seconds", "From a batch's last byte to its commit", buckets=BUCKETS, registry=registry
        )
        self.listeners = Gauge("gradspectra_listeners", "Live streams open in this process", registry=registry)
        self.runs = Gauge("gradspectra_runs", "Runs stored", registry=registry)
        self.running = Gauge("gradspectra_runs_running", "Runs that are running now", registry=registry)
        self.behind = Gauge("gradspectra_runs_behind", "Runs with batches not derived yet", registry=registry)

    def text(self, *, listeners: int, runs: int, running: int, behind: int) -> bytes:
        """The text form of Prometheus."""
        self.listeners.set(listeners)
        self.runs.set(runs)
        self.running.set(running)
        self.behind.set(behind)
        return generate_latest(self.registry)
