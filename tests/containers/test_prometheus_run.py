"""What dashboards and alerts ask has an answer: a real Prometheus over a real run, GPUs by a recorded NVML."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_cli.stack.embedded import Stack
from evomerge_common.runtime.settings import SERVICES
from helpers.containers import ROOT, run
from helpers.prometheus import RULES, Prometheus, binaries, scraping
from helpers.recorded_nvml import write_module
from helpers.tiny_family import write_family
from helpers.traces import read_spans

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return binaries(tmp_path_factory.mktemp("prometheus-bin"))


@dataclass(frozen=True)
class Scraped:
    prometheus: Prometheus
    start: float
    end: float
    traces: Path

    def values(self, expression: str) -> list[float]:
        return self.prometheus.values(expression.replace("$run", ".*"), self.start, self.end)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, tools: dict[str, Path]) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("scraped")
    spec = write_family(folder)
    search = {"evaluations": 10, "population": 3}
    spec.write_text(yaml.safe_dump({**yaml.safe_load(spec.read_text()), "search": search}))
    write_module(folder / "nvml")
    paths = [str(folder / "nvml"), str(ROOT / "tests")]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "EVOMERGE_DEVICE": "cpu",
        "EVOMERGE_MODEL_STORE": str(folder / "store"),
        "EVOMERGE_SCORE_CACHE": "off",
        "EVOMERGE_TRACE_FILE": str(folder / "traces.jsonl"),
    }
    before = list(sys.path)
    sys.path[:0] = paths  # a forked service has the path of whoever asked for it
    try:
        with (
            Stack(folder / "stack", environ=environ) as stack,
            scraping(tools["prometheus"], folder / "prometheus", stack.metrics) as prometheus,
        ):
            start = time.time()
            command = [sys.executable, "-m", "evomerge_cli", "run", str(spec), "--server", stack.selector, "--out"]
            print(run(*command, folder / "out", env=environ, timeout=200)[-1000:])
            time.sleep(2.5)  # two scrapes more see the end
            yield Scraped(prometheus, start, time.time(), folder / "traces.jsonl")
    finally:
        sys.path[:] = before


def panels() -> Iterator[Any]:
    for file in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield pytest.param(target["expr"], id=f"{file.stem}: {panel['title']} {target['refId']}")


@pytest.mark.parametrize("expression", list(panels()))
def test_a_panel_has_data_of_a_real_run(scraped: Scraped, expression: str) -> None:
    assert scraped.values(expression)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_what_an_alert_looks_at_is_there(scraped: Scraped, alert: dict[str, Any]) -> None:
    """Of a healthy run the alert itself answers nothing; each series that it compares does."""
    scraped.prometheus.api("query", query=alert["expr"])
    selectors = re.findall(r"(?:evomerge[a-z_:]+|up)(?:\{[^}]*\})?(?:\[\d+m\])?", alert["expr"])
    assert selectors
    for one in selectors:
        assert scraped.values(re.sub(r"\[\d+m\]$", "", one)), one


def test_no_alert_fires_at_a_healthy_run_nor_for_other_peoples_targets(scraped: Scraped) -> None:
    assert scraped.values('up{job="somebody-elses"} == 0'), "it is there, and down"
    assert scraped.prometheus.api("alerts")["alerts"] == []


def test_exemplars_lead_from_a_jobs_time_to_its_trace(scraped: Scraped) -> None:
    query = {"query": "evomerge_job_duration_seconds_bucket", "start": str(scraped.start), "end": str(scraped.end)}
    found = scraped.prometheus.api("query_exemplars", **query)
    pointed = {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}
    assert {series["seriesLabels"]["kind"] for series in found} >= {"download", "merge", "evaluate"}
    assert pointed
    assert pointed <= {one.trace_id for one in read_spans(scraped.traces)}


def test_labels_stay_few(scraped: Scraped) -> None:
    """No series for each candidate, job or trace."""
    series = scraped.prometheus.api("series", **{"match[]": '{job="evomerge", __name__=~"evomerge_.*"}'})
    labels = {name for one in series for name in one}
    allowed = {"run_id", "objective", "state", "quantile", "bound", "operator", "kind", "outcome", "le", "task_kind",
               "gpu", "folder", "service", "version"}  # fmt: skip
    assert labels <= allowed | {"__name__", "instance", "job", "exported_service"}
    assert len(series) < 1500


def test_every_alert_fires_when_it_should_and_else_does_not(tools: dict[str, Path]) -> None:
    file = ROOT / "deploy/prometheus/rules_test.yml"
    print(run(tools["promtool"], "test", "rules", file))
    tested: dict[str, set[bool]] = {}
    for case in yaml.safe_load(file.read_text())["tests"]:
        for one in case["alert_rule_test"]:
            tested.setdefault(one["alertname"], set()).add(bool(one.get("exp_alerts")))
    assert tested == {alert["alert"]: {True, False} for alert in ALERTS}


def test_promtool_accepts_rules_and_configuration(tools: dict[str, Path]) -> None:
    run(tools["promtool"], "check", "rules", RULES)
    run(tools["promtool"], "check", "config", ROOT / "deploy/prometheus/prometheus.yml")


def test_every_service_is_scraped(scraped: Scraped) -> None:
    found = scraped.prometheus.api("query", query='up{job="evomerge"} == 1')["result"]
    assert {one["metric"]["service"] for one in found} == set(SERVICES)
