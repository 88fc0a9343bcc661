"""Searches on several folds: where they lie, and what each of them is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evomerge_cli.run_folder import RunFolder
from evomerge_cli.spec_source import Prepared
from evomerge_common.domain.controls import NO_CONTROLS
from evomerge_common.domain.spec import RunRequest
from evomerge_common.domain.suite import Suite
from evomerge_common.ports import Recorded

FOLDS = "folds"
"""Folder of a run's output in which each fold's search has one, by its number."""


def has_folds(prepared: Prepared) -> bool:
    """Tells whether the spec asks for a search on each fold."""
    return bool(prepared.suite.folds and not prepared.suite.fold)


def cost_of_folds(prepared: Prepared) -> str:
    """Says what the folds cost, before anything starts."""
    folds, evaluations = prepared.suite.folds, prepared.spec.search.evaluations
    return (
        f"suite.folds: {folds} searches of up to {evaluations} evaluations each, on another fold each, come before the "
        f"run itself: {folds + 1} searches in all, {(folds + 1) * evaluations} evaluations"
    )


def search_on(prepared: Prepared, fold: int) -> Prepared:
    """Makes the run that holds out a fold, without controls, GGUF, push and earlier results; of fold 0 the run itself.

    Earlier results are of a split of their own: what a fold holds out has been selected by.
    """
    suite, spec = prepared.suite.on_fold(fold), prepared.spec
    if fold:
        search = replace(spec.search, warm_start=())
        spec = replace(spec, search=search, controls=NO_CONTROLS, push_to="", gguf_type="")
    earlier = () if fold else prepared.earlier
    beginning = "" if fold else prepared.beginning
    return Prepared(spec, suite, RunRequest(spec, suite).to_json(), prepared.notes, earlier, beginning)


def folds_in(out: Path) -> list[tuple[list[Recorded], Suite]]:
    """Reads log and suite of each fold's finished search in a run's output folder."""
    numbers = sorted(int(one.name) for one in (out / FOLDS).glob("*") if one.name.isdigit())
    folders = [RunFolder(out / FOLDS / str(number)) for number in numbers]
    return [(one.events(), one.suite()) for one in folders if one.state().get("status") == "finished"]
