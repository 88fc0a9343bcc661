"""A service or library that one list tells of is in every other list that has to repeat it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from evomerge_cli.stack.embedded import Stack
from evomerge_common.runtime.settings import PREFIX, SERVICES

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/*/pyproject.toml"))


def toml(path: str) -> Any:
    return tomllib.loads((ROOT / path).read_text())


def test_services_are_the_folders_of_services() -> None:
    assert sorted(SERVICES) == [path.name for path in PACKAGES if path.parent.name == "services"]


def test_tools_know_every_package() -> None:
    tools = toml("pyproject.toml")["tool"]
    assert {str(path.relative_to(ROOT) / "src") for path in PACKAGES} <= set(tools["mypy"]["mypy_path"])
    modules = {
        module.name for path in PACKAGES for module in (path / "src").glob("evomerge_*") if module.name.isidentifier()
    }
    assert modules <= set(tools["importlinter"]["root_packages"])
    layers = {name.strip() for layer in tools["importlinter"]["contracts"][0]["layers"] for name in layer.split("|")}
    assert modules <= layers


def test_the_command_brings_every_service() -> None:
    wanted = set(toml("libs/evomerge_cli/pyproject.toml")["project"]["dependencies"])
    assert {f"evomerge-{name}" for name in SERVICES} <= wanted


def test_prometheus_and_production_know_every_service() -> None:
    scraped = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    production = yaml.safe_load((ROOT / "deploy/kustomize/overlays/production/kustomization.yaml").read_text())
    for name in SERVICES:
        assert name in scraped, name
        assert f"evomerge-{name}" in {image["name"] for image in production["images"]}, name


def test_an_embedded_stack_takes_over_what_users_may_set(tmp_path: Path) -> None:
    said = {"ALLOW_CODE": "true", "BACKEND": "torch", "SCORE_TIMEOUT": "60", "DEVICE": "cpu"}
    stack = Stack(tmp_path, environ={PREFIX + name: value for name, value in said.items()})
    env = stack._service_env("evaluator", 4222, 50053, 9103, 8080)
    assert {name: env[PREFIX + name] for name in said} == said
