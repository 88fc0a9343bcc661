"""Which earlier runs `search.warm_start` means: folders, ids of runs beside the output folder, or those found there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge_cli.run_folder import HIDDEN, RunFolder
from evomerge_common.domain.earlier import RUNS, EarlierRun
from evomerge_common.domain.spec import AUTO, RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import EvoMergeException, SpecError


def named_runs(data: dict[str, Any], folder: Path, out: Path, *, server: bool) -> list[EarlierRun]:
    """Reads the runs that the spec names, and puts their ids in place of folders, which mean nothing elsewhere.

    Args:
        data: the spec as written; changed.
        folder: that the spec's paths are relative to.
        out: the new run's output folder; an id may be that of a run beside it.
        server: whether an id that is not found here may be one of a server's runs.

    Raises:
        SpecError: a name is no folder, and no run of that id is known here.
        InvalidInput: a folder holds no run.

    """
    search = data.get("search")
    named = search.get("warm_start") if isinstance(search, Mapping) else None
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return []
    ids, runs = list(named), []
    for place, name in enumerate(named):
        found = _find(name, folder, out)
        if found is not None:
            events = [one.event for one in found.events()]
            runs.append(EarlierRun(name, events, _suite(found)))
            ids[place] = events[0].run_id if events else name
        elif not server:
            raise SpecError(
                f"no earlier run {name!r}: give the output folder of one, or the id of one beside {out.absolute()}",
                ("search", "warm_start", place),
            )
    data["search"] = {**search, "warm_start": ids} if isinstance(search, Mapping) else search
    return runs


def runs_beside(out: Path, spec: RunSpec, suite: Suite) -> list[EarlierRun]:
    """Finds the finished runs beside the output folder that scored the same models on the same suite, newest first."""
    runs = []
    for run in _beside(out):
        try:
            state = run.state()
            similar = state.get("status") == "finished" and spec.scores_as(RunSpec.from_dict(state["spec"]))
            if similar and (own := _suite(run)) is not None and own.digest == suite.digest:
                runs.append(EarlierRun(str(run.out), [one.event for one in run.events()], own))
        except (EvoMergeException, KeyError):
            continue  # another version's, or half removed
        if len(runs) == RUNS:
            break
    return runs


def is_auto(spec: RunSpec) -> bool:
    """Tells whether the spec leaves it to us which runs there are."""
    return spec.search.warm_start == (AUTO,)


def _find(name: str, folder: Path, out: Path) -> RunFolder | None:
    path = folder / Path(name).expanduser()
    if path.is_dir():
        return RunFolder(path)
    return next((run for run in _beside(out) if run.state().get("run_id") == name), None)


def _beside(out: Path) -> Iterator[RunFolder]:
    """The runs in folders beside this one, newest first."""
    states = [one for one in out.absolute().parent.glob(f"*/{HIDDEN}/run.json") if one.parents[1] != out.absolute()]
    for state in sorted(states, key=lambda one: (-one.stat().st_mtime, str(one))):
        yield RunFolder(state.parents[1])


def _suite(run: RunFolder) -> Suite | None:
    try:
        return run.suite()
    except EvoMergeException:
        return None
