"""Prometheus in the stack: its configuration, the alerts, the replicas that it finds."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

import pytest

from evomerge_common.runtime.settings import SERVICES
from helpers.containers import Stack
from helpers.support import assert_eventually_sync

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]


def api(path: str, **query: str) -> Any:
    url = f"http://127.0.0.1:9090/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return found["data"]


def test_promtool_accepts_the_configuration_and_the_alerts(stack: Stack) -> None:
    stack.compose("exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    loaded = {rule["name"] for group in api("rules")["groups"] for rule in group["rules"]}
    assert {"EvoMergeServiceDown", "EvoMergeDeadLetters"} <= loaded


def test_prometheus_finds_every_service_and_each_replica_of_the_evaluator(stack: Stack) -> None:
    def up() -> list[str]:
        return sorted(one["metric"]["service"] for one in api("query", query="up == 1")["result"])

    assert_eventually_sync(lambda: up() == sorted(SERVICES), 40)
    try:
        stack.compose("up", "-d", "--wait", "--no-recreate", "--scale", "evaluator=2", timeout=200)
        assert_eventually_sync(lambda: up() == sorted([*SERVICES, "evaluator"]), 40)
    finally:
        stack.compose("up", "-d", "--wait", "--no-recreate", "--scale", "evaluator=1", timeout=200)
