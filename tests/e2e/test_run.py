"""The whole chain as a user starts it: real processes, a real nats-server, real models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2e.tiny_family import write_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def calm(spec: Path) -> dict[str, Any]:
    """A run that nothing disturbs."""
    return finished(start(spec, spec.parent / "calm"), spec.parent / "calm")


def start(spec: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "EVOMERGE_MODEL_STORE": str(spec.parent / "store")}
    command = [sys.executable, "-m", "evomerge_cli", "run", str(spec), "--out", str(out), *flags]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, said
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert result["status"] == "finished"
    return result


def digest(result: dict[str, Any]) -> str:
    return str(result["champion"]["recipe_digest"])


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def victim(process: subprocess.Popen[bytes], name: str) -> psutil.Process:
    """The service's own process, once it is up."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for child in children(process):
            try:
                words = child.cmdline()
            except psutil.Error:
                continue
            if f"evomerge_{name}" in words or (name == "nats" and words and words[0].endswith("nats-server")):
                return child
        time.sleep(0.1)
    raise AssertionError(f"{name} did not start")


def wait_for_line(out: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    """Until the run is under way: the CLI has started it and candidates are being scored."""
    end = time.monotonic() + 90
    log = out / ".evomerge" / "logs" / "evaluator.log"
    state = out / ".evomerge" / "run.json"
    while time.monotonic() < end and process.poll() is None:
        if state.exists() and "run_id" in state.read_text() and log.exists() and text in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the run did not get going")


def test_a_run_leaves_all_that_it_promises(calm: dict[str, Any], spec: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = spec.parent / "calm"
    assert calm["evaluations"] == 20
    assert calm["champion"]["holdout"]["interval95"]
    assert len(calm["sources"]) == 4
    for name in (
        "report/index.html",
        "report/fitness_plot.png",
        "report/lineage.svg",
        "events.jsonl",
        "model/README.md",
    ):
        assert (out / name).stat().st_size > 0
    AutoModelForCausalLM.from_pretrained(out / "model")


def test_three_evaluators_give_the_same_champion(calm: dict[str, Any], spec: Path) -> None:
    out = spec.parent / "three"
    assert digest(finished(start(spec, out, "--evaluators", "3"), out)) == digest(calm)


@pytest.mark.parametrize("name", ["merger", "evaluator", "selector", "nats"])
def test_a_kill_changes_nothing(calm: dict[str, Any], spec: Path, name: str) -> None:
    out = spec.parent / f"kill-{name}"
    process = start(spec, out)
    wait_for_line(out, "serving", process)
    victim(process, name).send_signal(signal.SIGKILL)
    assert digest(finished(process, out)) == digest(calm)


def test_the_same_command_goes_on_after_ctrl_c(calm: dict[str, Any], spec: Path) -> None:
    out = spec.parent / "again"
    process = start(spec, out)
    wait_for_line(out, "serving", process)
    below = children(process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, said
    assert "to go on from here" in said
    assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert digest(finished(start(spec, out), out)) == digest(calm)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("search:", "serach:"), "did you mean 'search'"),
        (("population: 10", "population: 10, methods: [tiess]"), "did you mean 'ties'"),
        (("models: [a, b, c]", "models: [a, ./missing]"), "missing"),
        (("models: [a, b, c]", "models: [a, .]"), "config.json"),
        (("data: choice.jsonl", "data: empty.jsonl"), "no items"),
    ],
)
def test_bad_input_costs_nothing(spec: Path, change: tuple[str, str], words: str) -> None:
    (spec.parent / "empty.jsonl").write_text("")
    bad, out = spec.with_name("bad.yaml"), spec.parent / "never"
    bad.write_text(spec.read_text().replace(*change))
    process = start(bad, out)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 2, said
    assert words in said
    assert not out.exists()
