"""A real Prometheus: this machine's, or Debian's out of the image that stands in for the official one in CI."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from evomerge_cli.stack.ports import free_ports
from helpers.containers import ROOT, run
from helpers.support import assert_eventually_sync

IMAGES = ROOT / ".ci/images"
RULES = ROOT / "deploy/prometheus/rules.yml"


def binaries(folder: Path) -> dict[str, Path]:
    """Where `prometheus` and `promtool` are."""
    names = ("prometheus", "promtool")
    found = {name: shutil.which(name) for name in names}
    if all(found.values()):
        return {name: Path(str(path)) for name, path in found.items()}
    tag = "evomerge-ci-prometheus"
    run("docker", "build", "-q", "-t", tag, "-f", IMAGES / "prometheus.Dockerfile", IMAGES, timeout=300)
    container = run("docker", "create", tag).strip()
    try:
        for name in names:
            run("docker", "cp", f"{container}:/usr/bin/{name}", folder / name)
    finally:
        run("docker", "rm", container)
    return {name: folder / name for name in names}


class Prometheus:
    def __init__(self, address: str) -> None:
        self.address = address

    def api(self, path: str, **query: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def values(self, expression: str, start: float, end: float) -> list[float]:
        """Every number that a query gave in a time, a second apart; none of them NaN."""
        found = self.api("query_range", query=expression, start=str(start), end=str(end), step="1")["result"]
        numbers = [float(value) for series in found for _, value in series["values"]]
        return [one for one in numbers if one == one]

    def scrapes(self, count: int) -> bool:
        """Whether it has seen so many targets up: it looks for them five seconds after its start."""
        try:
            return len(self.api("query", query='up{job="evomerge"} == 1')["result"]) == count
        except OSError:
            return False


@contextmanager
def scraping(binary: Path, folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Prometheus with our rules over these targets (service → address), and one that is nobody's of ours."""
    (port,) = free_ports(1)
    static = [{"targets": [address], "labels": {"service": name}} for name, address in targets.items()]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "evomerge", "static_configs": static},
            {"job_name": "somebody-elses", "static_configs": [{"targets": ["127.0.0.1:9"]}]},
        ],
    }
    folder.mkdir(parents=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{port}"
    command = [
        str(binary), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}", "--enable-feature=exemplar-storage",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(address)
            assert_eventually_sync(lambda: prometheus.scrapes(len(targets)), 30)
            yield prometheus
        finally:
            process.terminate()
