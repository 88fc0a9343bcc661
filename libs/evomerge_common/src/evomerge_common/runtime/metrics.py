"""Prometheus metrics: one registry a process, names with the prefix evomerge_."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

REGISTRY = CollectorRegistry()
"""Everything that this process exports; a service adds its own metrics here."""

ProcessCollector(namespace="evomerge", registry=REGISTRY)

_JOB_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


OUTCOMES = ("done", "failed", "retried", "dead_letter", "given_back", "duplicate", "postponed")


class WorkerMetrics:
    """What the worker loop counts, by kind of job and OUTCOMES."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Counter("evomerge_jobs_total", "Jobs by how they ended", ["kind", "outcome"], registry=registry)
        self.duration = Histogram(
            "evomerge_job_duration_seconds", "Time in the handler", ["kind"], registry=registry, buckets=_JOB_BUCKETS
        )
        self.in_progress = Gauge("evomerge_jobs_in_progress", "Jobs in the handler now", ["kind"], registry=registry)
        self.duplicates = Counter(
            "evomerge_duplicate_results_total", "Results absorbed: the job had one", ["kind"], registry=registry
        )

    def prepare(self, kind: str) -> None:
        """Makes the series of a kind exist at zero, so that a first failure is an increase."""
        for outcome in OUTCOMES:
            self.jobs.labels(kind, outcome)
        for metric in (self.duration, self.in_progress, self.duplicates):
            metric.labels(kind)


WORKER_METRICS = WorkerMetrics(REGISTRY)
_BUILD = Gauge("evomerge_build_info", "Always 1", ["service", "version"], registry=REGISTRY)


NATS_CONNECTED = Gauge("evomerge_nats_connected", "1 while the connection to NATS stands, else 0", registry=REGISTRY)
_DISK_FREE = Gauge(
    "evomerge_disk_free_bytes", "Free bytes of the disk that a folder is on", ["folder"], registry=REGISTRY
)
_DISK_SIZE = Gauge("evomerge_disk_size_bytes", "Bytes of the disk that a folder is on", ["folder"], registry=REGISTRY)


def watch_disks(folders: Mapping[str, Path]) -> None:
    """Shows the room on the disks of these folders, by name, at each scrape; NaN where a folder is not there."""
    for name, folder in folders.items():
        _DISK_FREE.labels(name).set_function(partial(_disk, folder, "free"))
        _DISK_SIZE.labels(name).set_function(partial(_disk, folder, "total"))


def _disk(folder: Path, what: str) -> float:
    try:
        return float(getattr(shutil.disk_usage(folder), what))
    except OSError:
        return math.nan


def start_metrics_server(service: str, version: str, address: str) -> tuple[int, WSGIServer]:
    """Serves REGISTRY on `address` alone; returns the port and the server (has `shutdown()`)."""
    from prometheus_client import start_http_server

    _BUILD.labels(service, version).set(1)
    host, _, port = address.rpartition(":")
    server, _ = start_http_server(int(port), addr=host.strip("[]"), registry=REGISTRY)
    return int(server.server_address[1]), server
