"""What an event means is written once: whoever asks gets the same answer, and mypy names the folds that forget one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge_common
import evomerge_selector
from evomerge_cli.run_view import RunView
from evomerge_common.domain.history import change_of, mean_curve, mean_fitness
from evomerge_common.domain.messages import CandidateFailed, CandidateRaced, ErrorInfo, RunPaused
from evomerge_common.ports import Recorded
from evomerge_report.history import history_of
from evomerge_report.projection import Projection
from evomerge_report.queries import Queries
from evomerge_selector.domain.summary import RunSummary
from helpers.simulation import Simulation, make_spec

POPULATION = 8


@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("end", [None, 60])
def test_selector_page_report_and_command_say_the_same_of_a_run(tmp_path: Path, racing: bool, end: int | None) -> None:
    """Half-way and at the end, with failures: status, counts, champion, best and mean have one meaning."""
    spec = make_spec(evaluations=30, population=POPULATION, racing=racing)
    run = Simulation(spec, workers=1, order=3, fail=frozenset(range(4)), items=True)
    events = run.events[:end]
    recorded = [Recorded(place, event) for place, event in enumerate(events, start=1)]

    projection = Projection(tmp_path / "runs.sqlite")
    projection.apply_all(recorded)
    page = Queries(projection.database).run("r")
    report, command = history_of(recorded), RunView()
    for event in events:
        command.apply(event)
    scored = [(one.index, one.fitness or 0.0) for one in report.scored]
    known = scored + [(one.index, one.raced.fitness) for one in report.stopped if one.raced]
    projection.close()

    assert page.population == report.population == POPULATION
    assert page.champion == report.champion_digest == command.champion
    assert page.best == max(fitness for _, fitness in scored) == command.best
    assert page.mean == pytest.approx(command.mean)
    assert page.mean is not None
    assert page.evaluated + page.stopped + page.failed == command.done
    assert (page.status, page.stopped) == (report.status, len(report.stopped))
    assert command.phase == {"running": "searching", "finished": "finished"}[report.status]
    if end is None:
        summary = RunSummary.of(run.run)
        assert summary.mean_fitness == pytest.approx(page.mean)
        assert (summary.best_fitness, summary.champion_digest) == (page.best, page.champion)
        assert summary.failed == page.failed > 0
        last = summary.evaluated - 1
        assert page.mean == pytest.approx(mean_fitness(known, last=last, population=POPULATION))


def test_the_mean_is_that_of_the_last_generations_places() -> None:
    points = [(0, 0.5), (1, 0.1), (3, 0.3), (4, 0.9)]
    assert mean_fitness(points, last=4, population=2) == pytest.approx(0.6)
    assert mean_fitness(points, last=2, population=1) is None
    assert mean_curve(points, population=2) == pytest.approx([0.5, 0.3, 0.3, 0.6])
    assert mean_curve([(0, -0.2), (1, 0.2)], population=2) == pytest.approx([-0.2, 0.0])


def test_an_estimate_is_no_score_and_a_proof_that_fails_is_no_failed_candidate() -> None:
    assert change_of(CandidateRaced(recipe_digest="d", stopped=True, fitness=0.4)).scored is None
    assert change_of(CandidateRaced(recipe_digest="d", stopped=True)).state == ("d", "stopped")
    assert change_of(CandidateRaced(recipe_digest="d", fitness=0.4)).state == ("d", "evaluated")
    for kind, split, is_candidate in (("merge", "", True), ("evaluate", "search", True), ("evaluate", "holdout", False),
                                      ("export", "", False), ("download", "", False)):  # fmt: skip
        change = change_of(CandidateFailed(recipe_digest="d", kind=kind, split=split))
        assert change.failure is not None
        assert (change.failed is not None) == is_candidate
    lack = ErrorInfo(type="DiskFull", message="full")
    paused = change_of(RunPaused(reason="merge: full", lack=lack)).status
    assert paused is not None
    assert (paused.word, paused.error) == ("paused", lack)
    asked = change_of(RunPaused(reason="asked")).status
    assert asked is not None
    assert asked.error is None


NEW_EVENT = """

@dataclass(frozen=True, kw_only=True)
class CandidateAdmired:
    recipe_digest: str = ""
"""


def test_mypy_names_the_folds_that_forget_an_event(tmp_path: Path) -> None:
    """An event is four files: the .proto, the messages, and these two; nobody else matches events."""
    for package in (evomerge_common, evomerge_selector):
        source, target = Path(str(package.__file__)).parent, tmp_path / package.__name__
        shutil.copytree(source / "domain", target / "domain")
        for name in ("__init__.py", "errors.py"):
            if (source / name).exists():
                shutil.copy(source / name, target)
    messages = tmp_path / "evomerge_common" / "domain" / "messages.py"
    text = messages.read_text()
    place = text.index("\n\nDecision = (")
    text = text[:place] + NEW_EVENT + text[place:]
    messages.write_text(text.replace("Result = ModelReady", "Result = CandidateAdmired | ModelReady"))

    def forgotten() -> set[str]:
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"),
                   "evomerge_common/domain/history.py", "evomerge_selector/domain/run.py"]  # fmt: skip
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={}, timeout=300, check=False)
        return {line.partition(":")[0] for line in found.stdout.splitlines() if '"CandidateAdmired"' in line}

    folds = {"evomerge_common/domain/history.py", "evomerge_selector/domain/run.py"}
    assert forgotten() == folds
    for fold, known, named in (
        ("evomerge_common/domain/history.py", "CandidateSelected() | JobPostponed():", "JobPostponed,"),
        ("evomerge_selector/domain/run.py", "case CandidateMerged():", "CandidateMerged,"),
    ):
        file = tmp_path / fold
        words = file.read_text()
        case = "case CandidateAdmired():\n                pass\n            "
        changed = known.replace(" |", " | CandidateAdmired() |") if "|" in known else case + known
        file.write_text(words.replace(known, changed, 1).replace(named, f"CandidateAdmired,\n    {named}", 1))
    assert forgotten() == set()
