"""Each tracker, written by our process and read back by its own library; a run that goes on has no point twice."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli.__main__ import main
from evomerge_cli.console import Console
from evomerge_cli.run_folder import RunFolder
from evomerge_cli.trackers import Trackers, trackers
from evomerge_common.ports import Recorded
from evomerge_report.history import history_of
from evomerge_report.records import CANDIDATE, Record, Records, records_of
from evomerge_report.result import result_of
from helpers import synthetic_log

pytestmark = pytest.mark.sinks
EVENTS = synthetic_log.events()
CANDIDATES = [one for one in records_of(EVENTS) if one.kind == CANDIDATE]
STEPS = list(range(1, len(CANDIDATES) + 1))


def record_lines(events: Iterable[Recorded], *, proven: bool = False) -> list[str]:
    fold = Records()
    lines = [one.to_json() for recorded in events for one in fold.take(recorded)]
    if proven:
        result = fold.result(result_of(history_of(EVENTS), synthetic_log.suite()))
        assert result is not None
        lines.append(result.to_json())
    return lines


def write(folder: Path, sinks: list[str], lines: list[str]) -> list[str]:
    """Runs the process, as the command does; its notes."""
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "index.html").write_text("<p>the report")
    order = {"sinks": sinks, "folder": str(folder), "notes": str(folder / "trackers.json")}
    done = subprocess.run(
        [sys.executable, "-m", "evomerge_report.sinks"], check=False,
        input="\n".join([json.dumps(order), *lines]) + "\n", text=True, capture_output=True, timeout=120, cwd=folder,
        env={**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_parts(folder: Path, sink: str) -> None:
    """What a command writes that is stopped, and goes on from the first event."""
    for lines in (record_lines(EVENTS[:90]), record_lines(EVENTS, proven=True)):
        assert write(folder, [sink], lines) == []


def expected(name: str) -> list[tuple[int, float]]:
    return [(one.step, one.metrics[name]) for one in CANDIDATES if name in one.metrics]


def test_tensorboard_reads_its_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    in_parts(tmp_path, "tensorboard")
    assert write(tmp_path, ["tensorboard"], record_lines(EVENTS, proven=True)) == []
    read = EventAccumulator(str(tmp_path / "tensorboard" / "run-1"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    for name in ("best", "mean", "candidate/fitness", "score/sentiment", "diversity"):
        found = [(one.step, one.value) for one in read.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in expected(name)], name
    assert len(read.Scalars("improvement")) == 1
    assert {"run", "candidate", "result"} <= set(read.Tags()["tensors"])
    assert len(list((tmp_path / "tensorboard" / "run-1").iterdir())) == 2


def test_tensorboard_has_no_point_twice_after_a_kill(tmp_path: Path) -> None:
    """What was written but not noted is written again, and TensorBoard leaves the first out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, ["tensorboard"], record_lines(EVENTS[:40]))
    noted = (tmp_path / "trackers.json").read_text()
    write(tmp_path, ["tensorboard"], record_lines(EVENTS[:90]))
    (tmp_path / "trackers.json").write_text(noted)
    write(tmp_path, ["tensorboard"], record_lines(EVENTS))
    read = EventAccumulator(str(tmp_path / "tensorboard" / "run-1"), size_guidance={"scalars": 0})
    read.Reload()
    assert [one.step for one in read.Scalars("candidate/index")] == STEPS


def test_mlflow_reads_its_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    write(tmp_path, [f"mlflow={uri}"], record_lines(EVENTS[:90]))
    noted = json.loads((tmp_path / "trackers.json").read_text())
    noted[f"mlflow={uri}"]["records"] = 5
    (tmp_path / "trackers.json").write_text(json.dumps(noted))  # as after a kill
    write(tmp_path, [f"mlflow={uri}"], record_lines(EVENTS, proven=True))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("evomerge")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "metrics.best > 0.5 and params.seed = '7'")
    assert (run.info.run_name, run.info.status) == ("run-1", "FINISHED")
    for name in ("best", "candidate/fitness", "score/python-code"):
        found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert sorted(found) == expected(name)
    assert run.data.tags["verdict"].startswith("The champion improved on its best source, expert-text")
    paths = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert paths == {"report", "candidates.json"}


def test_trackio_reads_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(tmp_path, "trackio=team")
    code = (
        "import json, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage as store\n"
        "names = [one.name for one in trackio.Api().runs('team')]\n"
        "print(json.dumps([names, store.get_logs('team', 'run-1'), store.get_run_config('team', 'run-1')]))"
    )
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    read = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60, check=True)
    names, rows, config = json.loads(read.stdout.splitlines()[-1])
    assert names == ["run-1"]
    assert [row["step"] for row in rows] == [*STEPS, len(STEPS) + 1]
    assert [(row["step"], row["best"]) for row in rows if "best" in row] == expected("best")
    assert rows[5]["candidate/operator"] == CANDIDATES[5].words["operator"]
    assert config["models"] == "expert-math, expert-code, expert-text"


def wandb_records(file: Path) -> list[Any]:
    """Its offline file is a LevelDB log of protobuf records; the messages are wandb's own."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    data, at, whole, found = file.read_bytes(), 7, b"", []  # a header of seven bytes, then blocks of 32 KiB
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # full, or the last part
            found.append(WandbRecord.FromString(whole))
            whole = b""
    return found


def test_wandb_reads_its_offline_runs(tmp_path: Path) -> None:
    in_parts(tmp_path, "wandb=team")
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-run-1.wandb"))
    records = [one for file in files for one in wandb_records(file)]
    runs = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    assert {(one.run_id, one.project) for one in runs} == {("run-1", "team")}
    rows = [one.history for one in records if one.WhichOneof("record_type") == "history"]
    assert [row.step.num for row in rows] == STEPS
    values = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item} for row in rows]
    assert [(row.step.num, value["best"]) for row, value in zip(rows, values, strict=True)] == expected("best")
    summary = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for one in records
        if one.WhichOneof("record_type") == "summary"
        for item in one.summary.update
    }
    assert summary["improvement"] > 0.2
    assert summary["verdict"].startswith("The champion improved")


def test_one_tracker_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MY_API_KEY", "0123456789abcdef")
    refused = f"tensorboard={tmp_path}/file/0123456789abcdef"
    notes = write(tmp_path, [refused, "trackio"], record_lines(EVENTS))
    (note,) = notes
    assert note.startswith("tensorboard: ")
    assert "0123456789abcdef" not in note
    assert json.loads((tmp_path / "trackers.json").read_text()).keys() == {"trackio"}


def test_the_command_writes_a_folder_to_trackers_and_to_optuna(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path / "out")
    folder.keep_suite(synthetic_log.suite())
    folder.write_events(EVENTS)
    command = ["report", str(folder.out), "--log-to", "tensorboard", "--optuna", str(tmp_path / "study.log")]
    assert main(command) == 0
    assert main(command) == 0, "again: nothing is written twice"
    assert f"optuna-dashboard {tmp_path}/study.log" in capsys.readouterr().err
    read = EventAccumulator(str(folder.out / "tensorboard" / "run-1"), size_guidance={"scalars": 0})
    read.Reload()
    assert [one.step for one in read.Scalars("candidate/index")] == STEPS
    assert [one.step for one in read.Scalars("improvement")] == [len(STEPS) + 1]
    assert main(["report", str(folder.out), "--log-to", "tensorbord"]) == 2
    assert "did you mean 'tensorboard'?" in capsys.readouterr().err


def test_a_run_goes_on_where_the_process_is_killed(tmp_path: Path) -> None:
    folder, words = RunFolder(tmp_path / "out"), io.StringIO()
    folder.hidden.mkdir(parents=True)
    with trackers(["tensorboard"], folder, Console(stderr=words)) as opened:
        assert isinstance(opened, Trackers)
        opened._process.kill()
        for recorded in EVENTS:
            opened.take(recorded)
    assert words.getvalue().count("note: ") == 1
    assert "the run goes on" in words.getvalue()


def test_records_are_what_the_process_reads() -> None:
    assert [Record.from_json(line) for line in record_lines(EVENTS)] == list(records_of(EVENTS))
