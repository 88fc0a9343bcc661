from __future__ import annotations

import math
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from evomerge_common.runtime.metrics import REGISTRY, WORKER_METRICS, start_metrics_server, watch_disks


def test_it_serves_our_names_on_its_address_alone() -> None:
    port, server = start_metrics_server("merger", "1.2.3", "127.0.0.1:0")
    try:
        assert server.server_address[0] == "127.0.0.1"
        WORKER_METRICS.jobs.labels("merge", "done").inc(0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert all(name.startswith("evomerge_") for name in families)
    assert {"evomerge_jobs", "evomerge_job_duration_seconds", "evomerge_jobs_in_progress"} <= set(families)
    assert {"evomerge_duplicate_results", "evomerge_process_resident_memory_bytes"} <= set(families)
    (build,) = families["evomerge_build_info"].samples
    assert (build.labels, build.value) == ({"service": "merger", "version": "1.2.3"}, 1.0)


def test_the_room_on_a_disk_is_told_and_no_room_that_is_not_there(tmp_path: Path) -> None:
    watch_disks({"here": tmp_path, "gone": tmp_path / "gone"})
    free = REGISTRY.get_sample_value("evomerge_disk_free_bytes", {"folder": "here"})
    size = REGISTRY.get_sample_value("evomerge_disk_size_bytes", {"folder": "here"})
    assert 0 < (free or 0.0) < (size or 0.0)
    gone = REGISTRY.get_sample_value("evomerge_disk_free_bytes", {"folder": "gone"})
    assert gone is not None
    assert math.isnan(gone)
