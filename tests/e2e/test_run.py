"""The whole chain as a user starts it: real processes, a real nats-server, real models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from helpers.support import assert_eventually_sync
from helpers.tiny_family import write_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def calm(spec: Path) -> dict[str, Any]:
    """A run that nothing disturbs."""
    return finished(start(spec, spec.parent / "calm"), spec.parent / "calm")


def environ(spec: Path) -> dict[str, str]:
    return {
        **os.environ,
        "EVOMERGE_MODEL_STORE": str(spec.parent / "store"),
        "EVOMERGE_STATE_DIR": str(spec.parent / "state"),
        "EVOMERGE_SCORE_CACHE": "off",  # each run computes its own scores: they must come out equal
    }


def start(spec: Path, out: Path, *flags: str, **env: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "evomerge_cli", "run", str(spec), "--out", str(out), "--verbose", *flags]
    whole = {**environ(spec), **env}
    return subprocess.Popen(command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def evomerge(spec: Path, *words: str) -> str:
    """A command that must succeed; what it said on stdout."""
    command = [sys.executable, "-m", "evomerge_cli", *words]
    done = subprocess.run(command, env=environ(spec), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def finished(process: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    said = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, said
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert result["status"] == "finished"
    return result


def digest(result: dict[str, Any]) -> str:
    return str(result["champion"]["recipe_digest"])


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return list(psutil.Process(process.pid).children(recursive=True))


def all_gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def has_begun(log: Path, times: int) -> bool:
    return log.exists() and log.read_text().count(" 1 RunStarted") == times


def until_under_way(out: Path, process: subprocess.Popen[bytes], event: str = "CandidateMerged") -> None:
    """The search is in its midst: some candidates have results, others have none."""
    log = out / "evomerge.log"
    assert_eventually_sync(
        lambda: process.poll() is not None or (log.exists() and event in log.read_text()), timeout=120
    )
    assert process.poll() is None, process.communicate()[0].decode()


def test_a_run_leaves_all_that_it_promises(calm: dict[str, Any], spec: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = spec.parent / "calm"
    assert calm["evaluations"] == 20
    assert calm["champion"]["holdout"]["interval95"]
    assert len(calm["sources"]) == 4
    assert calm["dtype"] in {"float32", "bfloat16"}
    assert all(f" {calm['dtype']} " in device for device in calm["devices"])
    for name in (
        "report/index.html",
        "report/fitness_plot.png",
        "report/lineage.svg",
        "events.jsonl",
        "model/README.md",
        "model/recipe.json",
        "evomerge.log",
    ):
        assert (out / name).stat().st_size > 0
    AutoModelForCausalLM.from_pretrained(out / "model")
    AutoTokenizer.from_pretrained(out / "model")
    assert not list((out / ".evomerge" / "artifacts" / "scratch").iterdir())


def test_a_search_that_is_asked_to_race_and_its_trace(calm: dict[str, Any], spec: Path) -> None:
    assert calm["racing"] is None
    asked = spec.with_name("racing.yaml")
    data = yaml.safe_load(spec.read_text())
    search = {**data["search"], "racing": {"rungs": [0.5]}}  # of so few items a smaller part would be no race
    asked.write_text(yaml.safe_dump({**data, "search": search}))
    out = spec.parent / "raced"
    result = finished(start(asked, out), out)
    race, trace = result["racing"], result["trace"]
    assert race["stopped"] + race["whole"] == result["evaluations"] >= 20
    assert race["items"] == pytest.approx(race["items_without_racing"] * race["share"])
    told = json.loads(evomerge(spec, "runs", "trace", str(out), "--json"))
    assert {key: told[key] for key in trace} == trace
    assert (out / "report" / "timeline.svg").stat().st_size > 0
    assert {one["kind"] for one in trace["workers"]} == {"download", "merge", "evaluate", "export"}
    assert 0 < trace["evaluator_busy"] <= 1


def test_the_same_run_again_scores_nothing(calm: dict[str, Any], spec: Path) -> None:
    """Two output folders, two stacks, one home."""
    home = str(spec.parent / "scores")
    for name in ("first", "second"):
        out = spec.parent / name
        result = finished(start(spec, out, EVOMERGE_SCORE_CACHE=home), out)
        assert digest(result) == digest(calm)
    assert result["items_scored"] == 0
    assert result["evaluation_seconds"] == 0


def test_three_evaluators_give_the_same_champion(calm: dict[str, Any], spec: Path) -> None:
    out = spec.parent / "three"
    assert digest(finished(start(spec, out, "--evaluators", "3"), out)) == digest(calm)


@pytest.mark.parametrize("name", ["merger", "evaluator", "selector", "nats-server"])
def test_a_kill_changes_nothing(calm: dict[str, Any], spec: Path, name: str) -> None:
    out = spec.parent / f"kill-{name}"
    process = start(spec, out)
    until_under_way(out, process)
    victim = json.loads((out / ".evomerge" / "stack.json").read_text())["processes"][name]
    os.kill(victim, signal.SIGKILL)
    assert digest(finished(process, out)) == digest(calm)
    log = (out / "evomerge.log").read_text()
    assert f"{name} died and was started again" in log
    assert log.index("died") < log.index("SearchEnded")


def test_the_same_command_goes_on(calm: dict[str, Any], spec: Path) -> None:
    """After `kill -9` of the command, after Ctrl-C, and then to the end."""
    out = spec.parent / "again"
    log = out / "evomerge.log"
    for attempt, (number, code) in enumerate([(signal.SIGKILL, -9), (signal.SIGINT, 130)], 1):
        process = start(spec, out)
        # A later command reads the run's log from its first event: it found the earlier one's run.
        assert_eventually_sync(partial(has_begun, log, attempt), 60)
        until_under_way(out, process)
        below = children(process)
        assert len(below) >= 6
        process.send_signal(number)
        said = process.communicate(timeout=60)[0].decode()
        assert process.returncode == code, said
        assert ("to go on from here" in said) == (number is signal.SIGINT)
        assert_eventually_sync(partial(all_gone, below), timeout=15)
    assert digest(finished(start(spec, out), out)) == digest(calm)
    assert log.read_text().count(" 1 RunStarted") == 3


def test_a_larger_budget_goes_on_in_the_same_folder(calm: dict[str, Any], spec: Path) -> None:
    out = spec.parent / "continued"
    first = finished(start(spec, out, "--evaluations", "8"), out)
    again = finished(start(spec, out), out)
    assert digest(again) == digest(calm)
    assert again["champion"] == calm["champion"]
    assert again["evaluations"] == calm["evaluations"] > first["evaluations"] == 8
    assert again["items_scored"] <= calm["items_scored"] + first["items_scored"] / 8  # at most a champion's proof more
    refused = start(spec, out, "--seed", "99")
    assert "another spec" in refused.communicate(timeout=60)[0].decode()
    assert refused.returncode == 2


def test_a_finished_run_is_only_reported_again(calm: dict[str, Any], spec: Path) -> None:
    out = spec.parent / "calm"
    process = start(spec, out)
    assert digest(finished(process, out)) == digest(calm)
    other = start(spec, out, "--seed", "2")
    said = other.communicate(timeout=60)[0].decode()
    assert other.returncode == 2
    assert "another spec" in said


def test_a_stack_in_the_background_serves_the_classic_flags(calm: dict[str, Any], spec: Path) -> None:
    out = spec.parent / "served"
    evomerge(spec, "up", "--evaluators", "2", "--folder", str(spec.parent / "stack"))
    try:
        state = json.loads(evomerge(spec, "status", "--json"))
        assert state["healthy"]
        below = [psutil.Process(one["pid"]) for one in state["services"].values()]
        models = [word for i, name in enumerate("abc", 1) for word in (f"--model{i}", str(spec.parent / name))]
        suite = str(spec.parent / "suite.yaml")
        flags = ["--suite", suite, "--seed", "1", "--evaluations", "12", "--ps-technique1", "slerp"]
        server = state["addresses"]["selector"]
        evomerge(spec, "--run", *models, *flags, "--out", str(out), "--server", server)
        (run,) = json.loads(evomerge(spec, "runs", "list", "--json"))
        assert (run["status"], run["evaluated"]) == ("finished", 12)
        events = [json.loads(line) for line in evomerge(spec, "runs", "events", run["run_id"]).splitlines()]
        assert events[-1]["type"] == "RunFinished"
        evomerge(spec, "report", run["run_id"], "--out", str(spec.parent / "elsewhere"))
        ours = json.loads((out / "result.json").read_text())
        assert digest(json.loads((spec.parent / "elsewhere" / "result.json").read_text())) == digest(ours)
        assert (out / "model" / "model.safetensors").exists()
    finally:
        evomerge(spec, "down")
    assert all_gone(below)


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
