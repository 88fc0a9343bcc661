"""The opt-in parts: autoscaling, monitoring, GPUs. Names that cross files must agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_common.adapters import subjects
from evomerge_common.runtime.settings import Settings
from unit.deploy.test_deploy import BIN, KUSTOMIZE, ROOT, container, objects, rendered, run

AUTOSCALED = "overlays/autoscaled"
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule"}


def test_kubernetes_accepts_the_autoscaled_overlay(tmp_path: Path) -> None:
    """Its own kinds aside: their schemas come with their operators."""
    ours = [one for one in yaml.safe_load_all(rendered(AUTOSCALED)) if one["kind"] not in CUSTOM]
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(ours))
    run(BIN / "kubernetes-validate", "-k", "1.32", "--strict", file)


def test_scaling_follows_consumers_that_the_services_make() -> None:
    deployments, scaled = objects(AUTOSCALED, "Deployment"), objects(AUTOSCALED, "ScaledObject")
    assert set(scaled) == {"merger", "evaluator"}
    kinds = set()
    for name, one in scaled.items():
        assert one["spec"]["scaleTargetRef"]["name"] in deployments
        assert one["spec"]["minReplicaCount"] >= 1, (
            "with no worker there is no consumer: KEDA would scale to the maximum"
        )
        assert "replicas" not in deployments[name]["spec"], "the autoscaler owns the number"
        for trigger in one["spec"]["triggers"]:
            given = trigger["metadata"]
            assert given["stream"] == subjects.WORK
            kinds.add(given["consumer"])
            host, _, port = given["natsServerMonitoringEndpoint"].partition(":")
            service = objects(AUTOSCALED, "Service")[host.split(".")[0]]
            assert host.split(".")[1] == service["metadata"]["namespace"]
            assert int(port) in {p["port"] for p in service["spec"]["ports"]}
    assert kinds == {"merge", "export", "evaluate"}
    for kind in kinds:
        subjects.work_subject(kind)  # refuses a kind that does not exist


def test_the_operator_scrapes_every_service_and_has_the_same_alerts() -> None:
    monitor = objects(AUTOSCALED, "PodMonitor")["evomerge"]["spec"]
    port = monitor["podMetricsEndpoints"][0]["port"]
    for name, deployment in objects(AUTOSCALED, "Deployment").items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items(), name
        assert port in {one["name"] for one in container(deployment)["ports"]}, name
    rules = objects(AUTOSCALED, "PrometheusRule")["evomerge"]["spec"]
    assert rules == yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())


def test_every_dashboard_is_shipped() -> None:
    files = {path.name for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    assert files == {"evolution.json", "pipeline.json", "gpu.json"}
    assert set(objects(AUTOSCALED, "ConfigMap")["evomerge-dashboards"]["data"]) == files


@pytest.mark.parametrize("file", sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")), ids=lambda one: one.stem)
def test_a_dashboards_panels_are_named_explained_and_beside_one_another(file: Path) -> None:
    panels = json.loads(file.read_text())["panels"]
    assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels) >= 8
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"], panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_alerts_name_metrics_that_exist() -> None:
    source = "\n".join(
        path.read_text() for part in ("libs", "services") for path in (ROOT / part).rglob("src/**/*metrics.py")
    )
    text = (ROOT / "deploy/prometheus/rules.yml").read_text()
    for name in {name.removesuffix("_bucket") for name in re.findall(r"evomerge_[a-z_]+", text)}:
        assert f'"{name}"' in source or f'_gpu("{name.removeprefix("evomerge_gpu_")}"' in source, name


def test_every_alert_says_what_to_do_and_asks_for_our_own_targets_alone() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        for selector in re.findall(r"\b(?:evomerge_[a-z_]+|up)\b(\{[^}]*\})?", rule["expr"]):
            assert 'job="evomerge"' in selector, rule
    docs = (ROOT / "docs/observability.md").read_text()
    alerts = [rule for rule in rules if "alert" in rule]
    assert len(alerts) > 10
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}, alert
        assert alert["annotations"]["runbook_url"] == f"docs/observability.md#{alert['alert'].lower()}"
        assert f"### {alert['alert']}\n" in docs, alert["alert"]


def test_gpu_override_is_valid_and_a_setting_that_the_evaluator_knows() -> None:
    file = ROOT / "deploy/compose/gpu.yml"
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
    evaluator: dict[str, Any] = yaml.safe_load(file.read_text())["services"]["evaluator"]
    assert Settings.from_env(evaluator["environment"], service="evaluator").device == "cuda"


@pytest.mark.parametrize("component", sorted(path.name for path in (KUSTOMIZE / "components").iterdir()))
def test_no_component_is_forgotten(component: str) -> None:
    assert f"../../components/{component}\n" in (KUSTOMIZE / AUTOSCALED / "kustomization.yaml").read_text()
