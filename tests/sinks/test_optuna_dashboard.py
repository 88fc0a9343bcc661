"""optuna-dashboard opens what we write: a database and a journal."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.stack.ports import free_ports
from evomerge_report.history import history_of
from evomerge_report.optuna_study import write_study
from helpers import synthetic_log
from helpers.support import assert_eventually_sync

pytestmark = pytest.mark.sinks
EVENTS = synthetic_log.events(candidates=20)


@contextmanager
def dashboard(storage: str) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, str(Path(sys.executable).with_name("optuna-dashboard")), storage, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return bool(get(f"{address}/api/studies"))
        except OSError:
            return False

    try:
        assert_eventually_sync(answers, 60.0)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return json.load(answer)


@pytest.mark.parametrize("name", ["run.db", "run.log"])
def test_optuna_dashboard_shows_the_champion(tmp_path: Path, name: str) -> None:
    champion = history_of(EVENTS).champion
    assert champion is not None
    write_study(EVENTS, tmp_path / name)
    with dashboard(f"sqlite:///{tmp_path}/{name}" if name.endswith(".db") else str(tmp_path / name)) as address:
        studies = {one["study_name"]: one["study_id"] for one in get(f"{address}/api/studies")["study_summaries"]}
        assert list(studies) == ["run-1", "run-1 (tasks)"]
        detail = get(f"{address}/api/studies/{studies['run-1']}?after=0")
        assert detail["best_trials"][0]["number"] == champion.index
        assert [one["state"] for one in detail["trials"]].count("Fail") == 1
        assert get(f"{address}/api/studies/{studies['run-1 (tasks)']}?after=0")["objective_names"] == list(
            synthetic_log.TASKS
        )
