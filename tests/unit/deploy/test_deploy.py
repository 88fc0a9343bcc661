"""What is deployed, checked without an engine or a cluster: the tools' own schemas, and what the schemas cannot see."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_common.runtime.settings import PREFIX, SERVICES, Settings

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
KUSTOMIZE = ROOT / "deploy" / "kustomize"
FOLDERS = ("base", "overlays/local", "overlays/production")


def run(*command: str | Path, **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def rendered(folder: str) -> str:
    return run(BIN / "kubectl", "kustomize", KUSTOMIZE / folder)


def objects(folder: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in yaml.safe_load_all(rendered(folder)) if one["kind"] == kind}


def container(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_kubernetes_accepts_it(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(rendered(folder))
    run(BIN / "kubernetes-validate", "-k", "1.32", "--strict", file)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_workload_is_confined_probed_and_bounded(folder: str) -> None:
    workloads = objects(folder, "Deployment") | objects(folder, "StatefulSet")
    assert set(workloads) == {*SERVICES, "nats"}
    for name, workload in workloads.items():
        pod, one = workload["spec"]["template"]["spec"], container(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(one), name
        assert one["resources"]["limits"]["memory"], name
        assert one["resources"]["requests"]["cpu"], name
        mounts = {mount["name"] for mount in one["volumeMounts"]}
        claimed = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        assert mounts == {volume["name"] for volume in pod.get("volumes", ())} | claimed, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_selectors_claims_and_policies_point_at_something(folder: str) -> None:
    workloads = objects(folder, "Deployment") | objects(folder, "StatefulSet")
    labels = [w["spec"]["template"]["metadata"]["labels"] for w in workloads.values()]

    def someone(wanted: dict[str, str]) -> bool:
        return any(wanted.items() <= one.items() for one in labels)

    for name, service in objects(folder, "Service").items():
        assert someone(service["spec"]["selector"]), name
        ports = {p["name"] for p in container(workloads[name.removesuffix("-headless")])["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports
    for name, budget in objects(folder, "PodDisruptionBudget").items():
        assert someone(budget["spec"]["selector"]["matchLabels"]), name
    for name, policy in objects(folder, "NetworkPolicy").items():
        assert someone(policy["spec"]["podSelector"].get("matchLabels", {})), name
    claims = objects(folder, "PersistentVolumeClaim")
    for workload in workloads.values():
        for volume in workload["spec"]["template"]["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_what_overlays_change() -> None:
    limits = {f: container(objects(f, "Deployment")["evaluator"])["resources"]["limits"] for f in FOLDERS}
    assert [limits[f].get("nvidia.com/gpu") for f in FOLDERS] == ["1", None, "1"]
    assert objects("overlays/production", "StatefulSet")["nats"]["spec"]["replicas"] == 3
    for workload in objects("overlays/production", "Deployment").values():
        assert "token" in {v["name"] for v in workload["spec"]["template"]["spec"]["volumes"]}
        assert not container(workload)["image"].endswith(":latest")


@pytest.mark.parametrize("folder", FOLDERS)
def test_services_accept_their_settings(folder: str, tmp_path: Path) -> None:
    (config,) = [one for name, one in objects(folder, "ConfigMap").items() if name.startswith("evomerge-")]
    token = tmp_path / "token"
    token.write_text("secret\n")
    environ = {k: str(token) if k.endswith("_FILE") else v for k, v in config["data"].items()}
    assert Settings.from_env({**environ, **_image_environment()}).replicas in {1, 3}


def test_compose_accepts_it_and_services_accept_its_settings() -> None:
    files = [ROOT / "docker-compose.yml", ROOT / ".ci" / "compose.ci.yml"]
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)
    stack = yaml.safe_load(files[0].read_text())["services"]
    assert {*SERVICES, "nats", "prometheus", "grafana"} == set(stack)
    for name in SERVICES:
        one = stack[name]
        Settings.from_env({**_image_environment(), **one["environment"]}, service=name)
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
    for name, one in stack.items():
        for port in one.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


@pytest.mark.parametrize(
    "file",
    [ROOT / "deploy/nats/nats.conf", *sorted(KUSTOMIZE.rglob("nats.conf"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_the_broker_accepts_its_configuration(file: Path) -> None:
    assert "sync_interval: always" in file.read_text()
    run(BIN / "nats-server", "-t", "-c", file, env={**os.environ, "POD_NAME": "nats-0"})


def test_dashboards_ask_for_metrics_that_exist() -> None:
    source = "\n".join(path.read_text() for part in ("libs", "services") for path in (ROOT / part).rglob("src/**/*.py"))
    exported = set(re.findall(r'"(evomerge_[a-z_]+)"', source))
    exported |= {f"evomerge_gpu_{name}" for name in re.findall(r'_gpu\("([a-z_]+)"', source)}
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    recorded = {rule["record"] for group in rules for rule in group["rules"] if "record" in rule}
    exported |= {f"evomerge_process_{name}" for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds")}
    for file in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                names = re.findall(r"evomerge_[a-z_]+", target["expr"])
                of_rules = set(re.findall(r"evomerge:[a-z0-9_:]+", target["expr"]))
                assert names or of_rules or target["expr"].startswith("sum by (service) (up{"), target
                assert of_rules <= recorded, of_rules - recorded
                for name in names:
                    assert {name, re.sub("_(total|bucket|sum|count)$", "", name)} & exported, (
                        f"{panel['title']}: {name}"
                    )


def _image_environment() -> dict[str, str]:
    text = (ROOT / "services" / "Dockerfile").read_text()
    return dict(re.findall(rf"({PREFIX}[A-Z_]+)=(\S+)", text))
