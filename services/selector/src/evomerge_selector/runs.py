"""All runs: started, found, controlled. A `RunActor` drives each that is under way; of the others a summary is kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Callable, Sequence

import structlog

from evomerge_common import __version__
from evomerge_common.domain.earlier import RUNS, EarlierRun, can_begin, earlier_candidates, joined
from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.messages import (
    Decision,
    EarlierCandidate,
    Event,
    RunCancelled,
    RunContinued,
    RunPaused,
    RunResumed,
    RunStarted,
    TaskShape,
)
from evomerge_common.domain.spec import AUTO, BUDGET_KEYS, RunRequest
from evomerge_common.domain.suite import Suite
from evomerge_common.domain.task import EXACT
from evomerge_common.errors import EvoMergeException, Fenced, InvalidInput, NotFound, Unavailable
from evomerge_common.runtime import spans
from evomerge_common.runtime.ports_factory import Ports
from evomerge_selector.domain.run import Phase, Run
from evomerge_selector.domain.summary import RunEntry, RunSummary
from evomerge_selector.run_actor import RunActor

log = structlog.get_logger()


class Runs:
    """All runs of this selector."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._actors: dict[str, RunActor] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def adopt(self, stop: asyncio.Event) -> None:
        """Takes up every run that has not ended, then waits for the stop."""
        while not stop.is_set():
            try:
                for run_id in await self._ports.kv.keys("runs"):
                    await self._drive_if_active(run_id)
                break
            except Unavailable as error:
                log.warning("the broker does not answer yet", error=str(error))
                await asyncio.sleep(1.0)
        await stop.wait()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def start(self, request: RunRequest, request_id: str, earlier: Sequence[EarlierCandidate] = ()) -> str:
        """Starts a run and returns its id; the same request id always means the same run.

        `earlier`: results of runs that the spec means and this log does not have.

        One that is paused since a machine lacks something tries again.
        """
        called = self._ports.clock.now()
        request_id = request_id or uuid.uuid4().hex
        run_id = "run-" + hashlib.sha256(request_id.encode()).hexdigest()[:12]
        spec, suite = request.spec, request.suite
        name = f"suites/{suite.digest}.json"
        uri = await asyncio.to_thread(self._ports.artifacts.put, name, suite.to_json().encode())
        started = RunStarted(
            spec_json=spec.to_json(),
            request_id=request_id,
            version=__version__,
            suite_uri=uri,
            suite_digest=suite.digest,
            has_holdout=suite.holdout > 0,
            tasks=tuple(
                TaskShape(
                    task=task.name,
                    weight=task.weight,
                    items=len(suite.items(task, "search")),
                    fitness=task.fitness if task.fitness != EXACT and kind_of(task.kind).grades(task) else "",
                )
                for task in suite.tasks
            ),
            earlier=tuple(await self._earlier(request, earlier)),
        )
        if await self._ports.kv.create("runs", run_id, RunEntry().to_bytes()):
            log.info("run started", run_id=run_id, models=len(spec.models))
        event = Event(run_id=run_id, payload=started, time=self._ports.clock.now(), began=called)
        try:
            await self._ports.log.append_decision(event, expected_last=0)
        except Fenced:
            existing = (await self._folded(run_id))[0].started
            if (existing.spec_json, existing.suite_digest) != (started.spec_json, started.suite_digest):
                raise InvalidInput(
                    f"request id {request_id!r} belongs to run {run_id}, which has another spec; "
                    "use another request id for another run"
                ) from None
        await self._drive_if_active(run_id)
        if actor := self._actors.get(run_id):
            actor.traces.started_by = spans.here()
            await actor.decide(_resumed)
        return run_id

    async def _earlier(self, request: RunRequest, given: Sequence[EarlierCandidate]) -> list[EarlierCandidate]:
        """What the search begins with, of the runs that its spec names; with `auto`, of those that fit best."""
        named = request.spec.search.warm_start
        if named == (AUTO,):
            named = await self._similar(request)
        else:
            given = [one for one in given if one.run_id in named]
        runs = [await self._earlier_run(run_id) for run_id in named if all(one.run_id != run_id for one in given)]
        return joined([*given, *earlier_candidates(runs, request.spec, request.suite)])

    async def _similar(self, request: RunRequest) -> tuple[str, ...]:
        """Names the finished runs of the same models and suite that ended highest, best first."""
        ended = []
        for run_id in await self._ports.kv.keys("runs"):
            entry = await self._ports.kv.get("runs", run_id)
            summary = RunEntry.from_bytes(entry[0]).summary if entry else None
            if summary is not None and summary.phase is Phase.FINISHED:
                ended.append((-summary.best_fitness, run_id))
        found: list[str] = []
        for _, run_id in sorted(ended):
            async for recorded in self._ports.log.read(run_id):
                first = recorded.event.payload
                if isinstance(first, RunStarted) and can_begin(first, request.spec, request.suite):
                    found.append(run_id)
                break
            if len(found) == RUNS:
                break
        return tuple(found)

    async def _earlier_run(self, run_id: str) -> EarlierRun:
        events = [one.event async for one in self._ports.log.read(run_id)]
        if not events or not isinstance(started := events[0].payload, RunStarted):
            raise InvalidInput(f"search.warm_start names {run_id}, and there is no such run here")
        suite = None
        with contextlib.suppress(EvoMergeException, OSError):
            data = await asyncio.to_thread(self._ports.artifacts.get, started.suite_uri)
            suite = Suite.from_json(data.decode())
        return EarlierRun(run_id, events, suite)

    async def go_on(self, run_id: str, request: RunRequest) -> None:
        """Lets a run go on with another budget, a finished one too; one that has it already stays as it is.

        Raises:
            NotFound: there is no such run.
            InvalidInput: the spec differs in more than its budget, the run has had that many evaluations, it failed
                or was cancelled.
            Fenced, Unavailable: somebody else changed the run at this moment.

        """
        await self._drive_if_active(run_id)
        if (actor := self._actors.get(run_id)) is not None:
            await actor.ready.wait()
            if not actor.run.phase.is_terminal:
                await actor.decide(lambda run: _continued(run, request))
                await actor.decide(_resumed)
                return
            await asyncio.wait({self._tasks[run_id]})
        run, decision = await self._folded(run_id)
        if (event := _continued(run, request)) is None:
            return
        entry = await self._ports.kv.get("runs", run_id)
        if entry is None or not await self._ports.kv.update("runs", run_id, RunEntry().to_bytes(), revision=entry[1]):
            raise Unavailable(f"run {run_id} has just been changed by somebody else: try again")
        recorded = Event(run_id=run_id, payload=event, time=self._ports.clock.now())
        await self._ports.log.append_decision(recorded, expected_last=decision)
        log.info("run continued", run_id=run_id, evaluations=request.spec.search.evaluations)
        await self._drive_if_active(run_id)

    async def _folded(self, run_id: str) -> tuple[Run, int]:
        """The run as its whole log tells it, and the number of its last decision."""
        run, decision = Run(run_id), 0
        async for recorded in self._ports.log.read(run_id):
            run.apply(recorded.event)
            decision = decision if recorded.event.is_result else recorded.sequence
        if run.phase is Phase.NEW:
            raise NotFound(f"there is no run {run_id!r}; ListRuns names them all")
        return run, decision

    async def find(self, run_id: str) -> RunSummary:
        """Finds the run's state.

        Raises:
            NotFound: there is no such run.

        """
        actor = self._actors.get(run_id)
        if actor is None:
            entry = await self._ports.kv.get("runs", run_id)
            summary = RunEntry.from_bytes(entry[0]).summary if entry else None
            return summary or await self._fold(run_id)
        await actor.ready.wait()
        if actor.run.phase is Phase.NEW:
            raise NotFound(f"the log holds no run {run_id}")
        return RunSummary.of(actor.run)

    async def _fold(self, run_id: str) -> RunSummary:
        """Of a run that nobody drives and that left no summary: another version's, or dropped from the bucket."""
        run, _ = await self._folded(run_id)
        summary = RunSummary.of(run)
        if run.phase.is_terminal:
            entry = await self._ports.kv.get("runs", run_id)
            if entry is not None:
                record = RunEntry(summary.phase.value, summary).to_bytes()
                await self._ports.kv.update("runs", run_id, record, revision=entry[1])
        return summary

    async def all(self) -> list[RunSummary]:
        """Returns every run that the broker knows."""
        found = []
        for run_id in sorted(await self._ports.kv.keys("runs")):
            with contextlib.suppress(NotFound):
                found.append(await self.find(run_id))
        return found

    async def pause(self, run_id: str) -> RunSummary:
        """Pauses a run: nothing new is proposed or queued until `resume`."""
        return await self._ask(run_id, lambda run: None if run.paused and not run.lack else RunPaused(reason="asked"))

    async def resume(self, run_id: str) -> RunSummary:
        """Goes on after `pause`."""
        return await self._ask(run_id, lambda run: RunResumed(reason="asked") if run.paused else None)

    async def cancel(self, run_id: str, *, finish: bool, reason: str) -> RunSummary:
        """Ends the run at once, or, with `finish`, with the best candidate so far as champion."""

        def make(run: Run) -> Decision | None:
            if finish and run.phase is Phase.RUNNING:
                return run.end_search(reason or "asked")
            if finish and run.phase is Phase.FINISHING:
                return None
            return RunCancelled(reason=reason or "asked")

        return await self._ask(run_id, make)

    async def _ask(self, run_id: str, make: Callable[[Run], Decision | None]) -> RunSummary:
        found = await self.find(run_id)
        actor = self._actors.get(run_id)
        if found.phase.is_terminal or actor is None:
            raise InvalidInput(f"run {run_id} has ended: {found.phase.value}")
        await actor.decide(make)
        return RunSummary.of(actor.run)

    async def _drive_if_active(self, run_id: str) -> None:
        entry = await self._ports.kv.get("runs", run_id)
        if entry is None or RunEntry.from_bytes(entry[0]).state != "active" or run_id in self._actors:
            return
        actor = RunActor(run_id, self._ports)
        self._actors[run_id] = actor
        self._tasks[run_id] = asyncio.create_task(self._until_end(run_id, actor), name=run_id)

    async def _until_end(self, run_id: str, actor: RunActor) -> None:
        try:
            await actor.drive()
        except NotFound:
            log.warning("no event of this run is in the log; dropped", run_id=run_id)
            actor.ready.set()
        except Exception:
            log.exception("the run's loop failed; it goes on when the selector starts again", run_id=run_id)
            actor.ready.set()
            raise
        log.info("run ended", run_id=run_id, phase=actor.run.phase.value)
        await self._remember(run_id, RunSummary.of(actor.run))
        del self._actors[run_id], self._tasks[run_id]

    async def _remember(self, run_id: str, summary: RunSummary) -> None:
        """Keeps the summary of a run that has ended, and nothing else of it in this process."""
        while True:
            try:
                entry = await self._ports.kv.get("runs", run_id)
                record = RunEntry(summary.phase.value, summary if summary.phase.is_terminal else None).to_bytes()
                if entry is None or await self._ports.kv.update("runs", run_id, record, revision=entry[1]):
                    break
            except Unavailable:
                await asyncio.sleep(1.0)
        if entry is not None and (uri := RunEntry.from_bytes(entry[0]).snapshot):
            with contextlib.suppress(EvoMergeException, OSError):
                await asyncio.to_thread(self._ports.artifacts.delete, uri)


def _resumed(run: Run) -> RunResumed | None:
    """The decision by which a run that a machine's lack had paused tries again."""
    return RunResumed(reason="started again") if run.lack else None


def _continued(run: Run, request: RunRequest) -> RunContinued | None:
    """The decision that gives a run another budget; None where it has that one."""
    spec, before = request.spec, run.spec
    if run.phase in (Phase.CANCELLED, Phase.FAILED):
        raise InvalidInput(f"run {run.run_id} has ended: {run.phase.value}; only a finished run goes on")
    if request.suite.digest != run.started.suite_digest or not (before and spec.differs_in_budget_alone(before)):
        raise InvalidInput(
            f"run {run.run_id} can go on with another budget ({', '.join(BUDGET_KEYS)}), and this spec differs in "
            "more than that: start another run"
        )
    had = len(run.candidates)
    if spec.search.evaluations < min(had, before.search.evaluations):
        raise InvalidInput(f"run {run.run_id} has had {had} evaluations: give it more, not {spec.search.evaluations}")
    return None if spec == before else RunContinued(spec_json=spec.to_json())
