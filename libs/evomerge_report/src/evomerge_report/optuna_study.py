"""A run as a study of Optuna, which optuna-dashboard opens: trials are candidates, in order of proposal.

Two studies: `RUN`, whose value is the search fitness, and of several tasks `RUN (tasks)`, with an objective each.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evomerge_common.domain.constraints import read_constraints, shortfall
from evomerge_common.domain.genome import Genome
from evomerge_common.domain.history import change_of
from evomerge_common.domain.reference import without_folders
from evomerge_common.domain.spec import sources_of
from evomerge_common.errors import InvalidInput, SpecError
from evomerge_common.ports import Recorded
from evomerge_report.history import Candidate, History, history_of, short_name
from evomerge_report.records import folders_of, method_of

SQLITE = b"SQLite format 3\0"
DATABASES = (".db", ".sqlite", ".sqlite3")
"""Suffixes of SQLite databases; any other file is a journal, which takes large runs a hundred times as fast."""
Params = dict[str, str | float | int]


def write_study(events: Iterable[Recorded], file: Path) -> list[str]:
    """Writes a run into a storage of Optuna; a study of the same name is replaced, others in it stay.

    Args:
        events: of the run, or of as much of it as there is.
        file: an SQLite database, by its suffix, or a journal; made where there is none.

    Returns:
        The names of the studies.

    Raises:
        InvalidInput: no events; the file is something else; Optuna is not installed.

    """
    try:
        import optuna
    except ImportError as error:
        raise InvalidInput("Optuna is not installed here: pip install 'evomerge-report[optuna]'") from error
    recorded = list(events)
    history = history_of(recorded)
    times = _times(recorded)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # names of objectives
    file.parent.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(history)
    made = []
    with _storage(file) as storage:
        known = {one.study_name for one in optuna.get_all_study_summaries(storage)}
        for objectives in ([], tasks) if len(tasks) > 1 else ([],):
            name = f"{history.run_id} (tasks)" if objectives else history.run_id
            if name in known:
                optuna.delete_study(study_name=name, storage=storage)
            study = optuna.create_study(
                storage=storage, study_name=name, directions=["maximize"] * max(1, len(objectives))
            )
            study.set_metric_names(objectives or ["fitness"])
            for key, value in _attributes(history).items():
                study.set_user_attr(key, value)
            study.add_trials(_trials(history, times, objectives))
            made.append(name)
    return made


@contextlib.contextmanager
def _storage(file: Path) -> Iterator[Any]:
    """The file's storage, in memory while it is written: a disk would be waited for after each trial."""
    with (_database if file.suffix in DATABASES else _journal)(file) as storage:
        yield storage


@contextlib.contextmanager
def _database(file: Path) -> Iterator[Any]:
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import StaticPool

    if file.exists() and file.stat().st_size and file.read_bytes()[: len(SQLITE)] != SQLITE:
        raise InvalidInput(f"{file} is no SQLite database; nothing is overwritten: name another file")
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    if file.exists():
        with contextlib.closing(sqlite3.connect(file)) as before:
            before.backup(memory)
    storage = RDBStorage("sqlite://", engine_kwargs={"creator": lambda: memory, "poolclass": StaticPool})
    yield storage
    storage.remove_session()
    with contextlib.closing(sqlite3.connect(file)) as after:
        memory.backup(after)
    storage.engine.dispose()
    memory.close()


@contextlib.contextmanager
def _journal(file: Path) -> Iterator[Any]:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

    there = file.exists()
    backend = JournalFileBackend(str(file))
    try:
        logs = list(backend.read_logs(0))
        if there and (text := file.read_bytes()) and (text.count(b"\n") != len(logs) or text[-1:] != b"\n"):
            raise ValueError("a line is no entry of a journal")
        known = len(logs)

        class Memory(BaseJournalBackend):
            def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
                return logs[log_number_from:]

            def append_logs(self, logs_to_append: list[dict[str, Any]]) -> None:
                logs.extend(json.loads(json.dumps(logs_to_append)))

        storage = JournalStorage(Memory())
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} is no journal of Optuna; nothing is overwritten: name another file") from error
    finally:
        if not there:
            file.unlink()  # reading makes one
    yield storage
    backend.append_logs(logs[known:])


def _times(events: Sequence[Recorded]) -> dict[str, tuple[float, float]]:
    """When a candidate was proposed, and when it had its first result (0: not yet); Unix seconds."""
    found: dict[str, tuple[float, float]] = {}
    for recorded in events:
        change = change_of(recorded.event.payload)
        if change.proposed is not None:
            found.setdefault(change.proposed.recipe_digest, (recorded.event.time, 0.0))
        if change.state is not None and change.state[1] != "merged":
            digest = change.state[0]
            if digest in found and not found[digest][1]:
                found[digest] = (found[digest][0], recorded.event.time)
    return found


def _tasks(history: History) -> list[str]:
    first = next(iter(history.scored), None)
    return list(first.scores("search")) if first is not None else []


def _attributes(history: History) -> dict[str, Any]:
    champion = history.champion
    return {
        "run": history.run_id,
        "status": history.status,
        "version": history.start.version,
        **({} if champion is None else {"champion": champion.index, "champion_digest": champion.digest}),
    }


def _trials(history: History, times: dict[str, tuple[float, float]], objectives: Sequence[str]) -> list[Any]:
    """One trial a candidate: number and index are the same, since each that was proposed has one."""
    candidates = list(history.candidates.values())
    params = [parameters_of(one, history) for one in candidates]
    spaces = _distributions(params)
    violations = _Violations(history)
    return [
        _trial(number, one, history, times[one.digest], own, spaces, objectives, violations)
        for number, (one, own) in enumerate(zip(candidates, params, strict=True))
    ]


def _trial(
    number: int,
    candidate: Candidate,
    history: History,
    times: tuple[float, float],
    params: Params,
    spaces: dict[str, Any],
    objectives: Sequence[str],
    violations: _Violations,
) -> Any:
    from optuna.trial import FrozenTrial, TrialState

    raced, values = candidate.raced, None
    stopped = raced is not None and raced.stopped
    if candidate.fitness is not None:
        state = TrialState.COMPLETE
        scores = candidate.scores("search")
        values = [scores[task] for task in objectives] if objectives else [candidate.fitness]
    elif stopped:
        state = TrialState.PRUNED
    elif candidate.failure is not None:
        state = TrialState.FAIL
    else:
        state = TrialState.RUNNING
    rungs = raced.estimates if raced is not None and not objectives else ()
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        values=values,
        datetime_start=_local(times[0]),
        datetime_complete=_local(times[1] or times[0]) if state.is_finished() else None,
        params=params,
        distributions={name: spaces[name] for name in params},
        user_attrs=_of_candidate(candidate, history),
        system_attrs=violations.of(candidate),
        intermediate_values={rung: one.fitness for rung, one in enumerate(rungs)},
    )


def _of_candidate(candidate: Candidate, history: History) -> dict[str, Any]:
    raced, failure = candidate.raced, candidate.failure
    found: dict[str, Any] = {
        "name": history.name_of(candidate),
        "digest": candidate.digest,
        "operator": candidate.operator,
        "parents": list(candidate.proposal.parents),
        "generation": candidate.proposal.generation,
        "champion": candidate.digest == history.champion_digest,
    }
    if "holdout" in candidate.results:
        found["holdout"] = {"fitness": candidate.results["holdout"].fitness, **candidate.scores("holdout")}
    if raced is not None and raced.stopped:
        found["estimate"] = {"fitness": raced.fitness, "low": raced.low, "high": raced.high, "items": raced.items}
    if failure is not None and candidate.fitness is None:
        text = without_folders(failure.error.message, folders_of(history.spec))
        found["error"] = f"{failure.error.type}: {text}"
    return found


def parameters_of(candidate: Candidate, history: History) -> Params:
    """Reads what may differ between candidates, by names that say what it is of; a genome that cannot be read: none."""
    params: Params = {"method": method_of(candidate)}
    try:
        genome = Genome.from_json(candidate.proposal.genome_json) if candidate.proposal.genome_json else None
    except (ValueError, KeyError, TypeError):  # of another version
        genome = None
    if genome is None or candidate.is_source:
        return params
    models = [short_name(str(one)) for one in history.spec.get("models", ())]
    names = [f"input {place}" for place in range(len(genome.ingredients))] if genome.ingredients else models
    name = dict(enumerate(names)).get
    for row, weights in enumerate(genome.weights):
        params |= {f"weight.{_row(row)}.{name(place, place)}": weight for place, weight in enumerate(weights)}
    params |= {f"density.{_row(row)}": share for row, share in enumerate(genome.density)}
    params |= {f"mask.{name(place, place)}": share for place, share in enumerate(genome.mask)}
    params |= {f"cut.{place + 1}": layer for place, layer in enumerate(genome.cuts)}
    if genome.path:
        params["path.length"] = len(genome.path)
        for place in range(len(names)):
            params[f"path.layers of {names[place]}"] = sum(hop.ingredient == place for hop in genome.path)
    return params


def _row(row: int) -> str:
    return f"group {row}" if row else "embeddings"


def _distributions(params: Sequence[Params]) -> dict[str, Any]:
    """Names what the run has drawn from, as wide as what it drew: the log tells no bounds."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: dict[str, list[Any]] = {}
    for own in params:
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    found: dict[str, Any] = {}
    for name, drawn in values.items():
        if all(isinstance(one, str) for one in drawn):
            found[name] = CategoricalDistribution(sorted(set(drawn)))
        elif all(isinstance(one, int) for one in drawn):
            found[name] = IntDistribution(min(drawn), max(drawn))
        else:
            found[name] = FloatDistribution(min(drawn), max(drawn))
    return found


class _Violations:
    """How far candidates are below the bounds of the run's constraints, as Optuna holds it: above 0 is a violation."""

    def __init__(self, history: History) -> None:
        spec = history.spec
        base, models = str(spec.get("base", "")), [str(one) for one in spec.get("models", ())]
        try:
            found = read_constraints(spec.get("constraints"), (), sources=sources_of(models, base), base=base)
        except SpecError:
            found = ()  # a log of another version
        self._bounds: dict[str, float] = {}
        for one in found:
            scores = {
                history.model_of(source).reference: source.scores("search")[one.task]
                for source in history.sources
                if one.task in source.scores("search")
            }
            if (bound := one.bound(scores, base)) is not None:
                self._bounds[one.task] = bound

    def of(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the system attributes that Optuna reads."""
        from optuna.trial import create_trial

        scores = candidate.scores("search")
        if not self._bounds or not scores:
            return {}
        found = {task: shortfall(scores[task], bound) for task, bound in self._bounds.items() if task in scores}
        return dict(create_trial(value=0.0, constraints=found).system_attrs)


def _local(time: float) -> datetime:
    """Optuna's times are local, and say no zone."""
    return datetime.fromtimestamp(time, UTC).astimezone().replace(tzinfo=None)
