"""SelectorService: parse, call, map."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import grpc

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_common.adapters import codec
from evomerge_common.domain.messages import TERMINAL, RunContinued
from evomerge_common.domain.spec import RunRequest
from evomerge_common.errors import SpecError
from evomerge_common.ports import Recorded
from evomerge_common.runtime.documents import read_text
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.streams import until
from evomerge_selector.domain.run import Phase
from evomerge_selector.domain.summary import RunSummary
from evomerge_selector.runs import Runs

STATUS = {
    Phase.NEW: selector_pb2.RUN_STATUS_PREPARING,
    Phase.PREPARING: selector_pb2.RUN_STATUS_PREPARING,
    Phase.RUNNING: selector_pb2.RUN_STATUS_RUNNING,
    Phase.FINISHING: selector_pb2.RUN_STATUS_FINISHING,
    Phase.FINISHED: selector_pb2.RUN_STATUS_FINISHED,
    Phase.CANCELLED: selector_pb2.RUN_STATUS_CANCELLED,
    Phase.FAILED: selector_pb2.RUN_STATUS_FAILED,
}


class SelectorServicer(selector_pb2_grpc.SelectorServiceServicer):
    """Control of runs."""

    def __init__(self, runs: Runs, ports: Ports) -> None:
        self._runs = runs
        self._ports = ports

    async def StartRun(
        self, request: selector_pb2.StartRunRequest, context: grpc.aio.ServicerContext
    ) -> selector_pb2.Run:
        """Starts a run, or finds the one that this request id started."""
        asked = await asyncio.to_thread(_read_request, request.spec)
        earlier = [codec.from_proto(one) for one in request.earlier]
        run_id = await self._runs.start(asked, request.request_id, earlier)
        return _run(await self._runs.find(run_id))

    async def ContinueRun(
        self, request: selector_pb2.ContinueRunRequest, context: grpc.aio.ServicerContext
    ) -> selector_pb2.Run:
        """Lets a run go on with another budget."""
        asked = await asyncio.to_thread(_read_request, request.spec)
        await self._runs.go_on(request.run_id, asked)
        return _run(await self._runs.find(request.run_id))

    async def GetRun(self, request: selector_pb2.GetRunRequest, context: grpc.aio.ServicerContext) -> selector_pb2.Run:
        """Answers with one run."""
        return _run(await self._runs.find(request.run_id))

    async def ListRuns(
        self, request: selector_pb2.ListRunsRequest, context: grpc.aio.ServicerContext
    ) -> selector_pb2.ListRunsResponse:
        """Answers with all runs."""
        return selector_pb2.ListRunsResponse(runs=[_run(one) for one in await self._runs.all()])

    async def WatchRun(
        self, request: selector_pb2.WatchRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[selector_pb2.WatchRunResponse]:
        """Streams a run's events from a sequence on, then live."""
        await self._runs.find(request.run_id)
        events = self._ports.log.follow(request.run_id, from_sequence=request.from_sequence)
        stopping = asyncio.ensure_future(self._ports.stop.wait())  # an open stream must not use up the whole grace
        try:
            async with contextlib.aclosing(until(events, stopping)) as live:
                async for one in live:
                    yield selector_pb2.WatchRunResponse(sequence=one.sequence, event=codec.to_proto(one.event))
                    if isinstance(one.event.payload, TERMINAL) and not await self._goes_on(one):
                        return
        finally:
            stopping.cancel()

    async def _goes_on(self, end: Recorded) -> bool:
        """Tells whether the run was continued after this end."""
        later = self._ports.log.read(end.event.run_id, from_sequence=end.sequence + 1)
        return any([isinstance(one.event.payload, RunContinued) async for one in later])

    async def PauseRun(
        self, request: selector_pb2.PauseRunRequest, context: grpc.aio.ServicerContext
    ) -> selector_pb2.Run:
        """Pauses a run."""
        return _run(await self._runs.pause(request.run_id))

    async def ResumeRun(
        self, request: selector_pb2.ResumeRunRequest, context: grpc.aio.ServicerContext
    ) -> selector_pb2.Run:
        """Lets a paused run go on."""
        return _run(await self._runs.resume(request.run_id))

    async def CancelRun(
        self, request: selector_pb2.CancelRunRequest, context: grpc.aio.ServicerContext
    ) -> selector_pb2.Run:
        """Ends a run; with `finish` its champion is still proven and exported."""
        return _run(await self._runs.cancel(request.run_id, finish=request.finish, reason=request.reason))


def _read_request(text: str) -> RunRequest:
    """YAML or JSON into a checked spec and its suite."""
    document = read_text(text, "spec")
    try:
        return RunRequest.from_dict(document.data)
    except SpecError as error:
        raise document.located(error) from error


def _run(summary: RunSummary) -> selector_pb2.Run:
    fields = dataclasses.asdict(summary)
    status = selector_pb2.RUN_STATUS_PAUSED if fields.pop("paused") else STATUS[summary.phase]
    del fields["phase"]
    return selector_pb2.Run(status=status, **fields)
