"""The shell around the state machine: one `RunActor` a run folds the log, appends decisions, queues jobs.

It is crash-only: after any trouble with the broker it forgets everything and folds the log again, so a restart, a lost
acknowledgement and a broker outage are one and the same case. A snapshot of an earlier fold spares most of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from evomerge_common.domain.messages import (
    TERMINAL,
    CandidateProposed,
    Decision,
    Event,
    JobPostponed,
    RunPaused,
    RunResumed,
)
from evomerge_common.errors import BackPressure, EvoMergeException, Fenced, NotFound, Unavailable
from evomerge_common.ports import Recorded
from evomerge_common.runtime import spans
from evomerge_common.runtime.logging import short
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.streams import until
from evomerge_selector.candidate_traces import CandidateTraces
from evomerge_selector.domain import snapshot
from evomerge_selector.domain.run import Phase, Run
from evomerge_selector.domain.summary import RunEntry
from evomerge_selector.log_lines import line_of

log = structlog.get_logger()

STANDBY = 20.0
"""Seconds without a decision after which a fenced-off selector takes a run over again."""
RETRY, LONGEST_RETRY = 15.0, 600.0
"""Seconds after which a run that lacks something tries again: at first, and at most, since each time they double."""
SNAPSHOT_EVENTS = 500
"""Events after which a snapshot is worth its while; the next one waits until the log has grown by a quarter besides."""


class RunActor:
    """Drives one run until its end."""

    def __init__(self, run_id: str, ports: Ports) -> None:
        self.run = Run(run_id)
        self.ready = asyncio.Event()
        self._run_id = run_id
        self._ports = ports
        self.traces = CandidateTraces(run_id, ports.clock)
        self._lock = asyncio.Lock()
        self._sequence = 0  # newest event folded in
        self._decision = 0  # newest decision folded in
        self._dispatched: set[str] = set()
        self._blocked = False  # the queue refused a job: try again soon
        self._folded = self._snapshot_length = 0  # events in the state, and in the newest snapshot
        self._keeping: asyncio.Task[None] | None = None
        self._retry = RETRY
        self._paused_at = float("-inf")  # for want of something; a run that was left so tries again at once

    async def drive(self) -> None:
        """Drives the run until it has ended; survives every broker outage."""
        delay = 0.2
        while True:
            try:
                await self._attempt()
                return
            except Fenced:
                log.warning("another selector decides this run; standing by", run_id=self._run_id)
                await self._stand_by()
            except (Unavailable, OSError) as error:
                log.warning("lost the broker; folding the log again", run_id=self._run_id, error=str(error))
                await asyncio.sleep(delay)
                delay = min(5.0, delay * 2)

    async def decide(self, make: Callable[[Run], Decision | None]) -> None:
        """Appends a decision that a person asked for, and what follows from it."""
        await self.ready.wait()
        async with self._lock:
            decision = make(self.run)
            if decision is not None:
                await self._append(decision)
                await self._settle()

    async def _attempt(self) -> None:
        await self._fold()
        if self.run.phase.is_terminal:
            return
        ticker = asyncio.create_task(self._tick())
        following = self._ports.log.follow(self._run_id, from_sequence=self._sequence + 1)
        try:
            async with self._lock:
                await self._settle()
            async with contextlib.aclosing(until(following, ticker)) as events:
                while not self.run.phase.is_terminal and (recorded := await anext(events, None)):
                    async with self._lock:
                        await self._take(recorded)
            if ticker.done():
                ticker.result()  # raises what went wrong at a tick
            if not self.run.phase.is_terminal:
                raise Unavailable(f"the log of run {self._run_id} ended before the run")
        finally:
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError, EvoMergeException):
                await ticker
            if self._keeping:
                await asyncio.gather(self._keeping, return_exceptions=True)

    async def _fold(self) -> None:
        """Reads the run's log into a fresh state machine, or what came after the newest snapshot into that one's."""
        async with self._lock:
            self._dispatched.clear()
            self.traces.forget()
            found = await self._snapshot()
            self.run = found.run if found else Run(self._run_id)
            self._sequence, self._decision = (found.sequence, found.decision) if found else (0, 0)
            self._folded = self._snapshot_length = 0
            async for recorded in self._ports.log.read(self._run_id, from_sequence=self._sequence + 1):
                self._note(recorded)
            if self.run.phase is Phase.NEW:
                raise NotFound(f"the log holds no run {self._run_id}")
            self.traces.resume(
                self._decision, (one.proposed.recipe_digest for one in self.run.candidates if one.fitness is None)
            )
            self.ready.set()

    async def _snapshot(self) -> snapshot.Snapshot | None:
        entry = await self._ports.kv.get("runs", self._run_id)
        uri = RunEntry.from_bytes(entry[0]).snapshot if entry else ""
        if not uri:
            return None
        try:
            data = await asyncio.to_thread(self._ports.artifacts.get, uri)
            found = await asyncio.to_thread(snapshot.decode, data)
        except (EvoMergeException, OSError) as error:
            log.info("the snapshot is out of reach; folding the whole log", run_id=self._run_id, error=str(error))
            return None
        if found is None or found.run.run_id != self._run_id:
            log.info("the snapshot is another version's; folding the whole log", run_id=self._run_id)
            return None
        if found.decision > await self._ports.log.last_sequence():
            log.warning("the snapshot is of another log; folding the whole log", run_id=self._run_id)
            return None
        return found

    def _keep(self) -> None:
        """Starts a snapshot when the log has grown enough since the last one: all of them together cost O(log)."""
        due = self._folded - self._snapshot_length >= max(SNAPSHOT_EVENTS, self._snapshot_length // 4)
        if not due or (self._keeping and not self._keeping.done()) or self.run.phase.is_terminal:
            return
        self._snapshot_length = self._folded
        try:
            packed = snapshot.pack(self.run)
        except TypeError as error:
            log.warning("no snapshot of this run", run_id=self._run_id, error=str(error))
            return
        place = {"sequence": self._sequence, "decision": self._decision}
        self._keeping = asyncio.create_task(self._write(lambda: snapshot.encode(packed, **place)))

    async def _write(self, encode: Callable[[], bytes]) -> None:
        try:
            data = await asyncio.to_thread(encode)
            uri = await asyncio.to_thread(self._ports.artifacts.put, f"snapshots/{self._run_id}", data)
            entry = await self._ports.kv.get("runs", self._run_id)
            if entry and (known := RunEntry.from_bytes(entry[0])).state == "active" and known.snapshot != uri:
                made = replace(known, snapshot=uri).to_bytes()
                await self._ports.kv.update("runs", self._run_id, made, revision=entry[1])
        except (EvoMergeException, OSError, TypeError) as error:  # it would only have saved time
            log.warning("a snapshot could not be kept", run_id=self._run_id, error=str(error))

    def _note(self, recorded: Recorded) -> None:
        if recorded.event.is_result:
            self._sequence = max(self._sequence, recorded.sequence)
        elif recorded.sequence <= self._decision:
            return  # in the snapshot already
        else:
            self._decision = recorded.sequence
        self._folded += 1
        self.run.apply(recorded.event)
        self.traces.note(recorded.event, recorded.sequence)

    async def _take(self, recorded: Recorded) -> None:
        """One event from the live log; a decision that is not our own means that another selector is at work."""
        if not recorded.event.is_result:
            if recorded.sequence > self._decision:
                raise Fenced(f"another selector decided {recorded.event.type} for run {self._run_id}")
            return
        self._sequence = max(self._sequence, recorded.sequence)
        self._folded += 1
        self.run.apply(recorded.event)
        self.traces.note(recorded.event, recorded.sequence)
        if not isinstance(recorded.event.payload, JobPostponed):
            self._retry = RETRY
        await self._settle()
        log.info("result taken in", run_id=self._run_id, **line_of(recorded.event.payload))
        self._keep()

    async def _settle(self) -> None:
        """Appends every decision that follows, queues every job that is new, deletes what nobody needs."""
        run = self.run
        while (decision := run.next_decision()) is not None:
            await self._append(decision)
        self._blocked = False
        for job in run.jobs():
            if job.message_id in self._dispatched:
                continue
            try:
                with spans.inside(self.traces.of(getattr(job.payload, "recipe_digest", ""))):
                    await self._ports.queue.publish(job)
            except BackPressure as error:
                log.warning("the work queue is full; trying again", run_id=self._run_id, error=str(error))
                self._blocked = True
                break
            self._dispatched.add(job.message_id)
            self.traces.queued(job)
        self.traces.settle()
        while run.discarded:
            uri = run.discarded.pop()
            if uri:
                try:
                    await asyncio.to_thread(self._ports.artifacts.delete, uri)
                except (EvoMergeException, OSError) as error:  # a leftover costs disk, never a run
                    log.warning("an artifact could not be deleted", uri=uri, error=str(error))

    async def _append(self, decision: Decision) -> None:
        event = Event(run_id=self._run_id, payload=decision, time=self._ports.clock.now())
        with spans.inside(self.traces.of(getattr(decision, "recipe_digest", ""))):
            sequence = await self._ports.log.append_decision(event, expected_last=self._decision)
        self._decision = sequence
        self._folded += 1
        self.run.apply(event)
        self.traces.note(event, sequence)
        log.info("decided", run_id=self._run_id, **line_of(decision), **self._downloads(decision))
        if isinstance(decision, RunPaused):
            self._paused_at = event.time

    def _downloads(self, decision: Decision) -> dict[str, Any]:
        """Of a proposal, which models it stands on, as the downloader's lines name them."""
        if not isinstance(decision, CandidateProposed):
            return {}
        return {"downloaded": [f"{one.reference}@{short(one.digest)}" for one in self.run.models.values()]}

    async def _tick(self) -> None:
        """What only time brings: the limit in hours, and another try at a full queue or at what a machine lacked."""
        while True:
            await asyncio.sleep(1.0)
            spec, run = self.run.spec, self.run
            hours = spec.search.hours if spec else None
            late = hours is not None and self._ports.clock.now() - run.started_at > hours * 3600
            retry = run.lack is not None and self._ports.clock.now() - self._paused_at >= self._retry
            if (late and run.phase is Phase.RUNNING) or self._blocked or retry:
                async with self._lock:
                    if late and run.phase is Phase.RUNNING:
                        await self._append(run.end_search("hours"))
                    if retry and run.lack is not None:
                        self._retry = min(LONGEST_RETRY, 2 * self._retry)
                        await self._append(RunResumed(reason="trying again"))
                    await self._settle()

    async def _stand_by(self) -> None:
        """Until the run has ended or had no decision for STANDBY seconds, so that two selectors never take turns."""
        newest, quiet_since = 0, self._ports.clock.now()
        while self._ports.clock.now() - quiet_since < STANDBY:
            try:
                async for recorded in self._ports.log.read(self._run_id, from_sequence=newest + 1):
                    newest = recorded.sequence
                    if not recorded.event.is_result:
                        quiet_since = self._ports.clock.now()
                    if isinstance(recorded.event.payload, TERMINAL):
                        return
            except Unavailable:
                quiet_since = self._ports.clock.now()
            await asyncio.sleep(1.0)
