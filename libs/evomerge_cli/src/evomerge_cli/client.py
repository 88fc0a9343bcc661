"""The selector's API for a command line: blocking calls, and a watch that survives restarts of the selector."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import grpc

from evomerge.v1 import selector_pb2 as pb
from evomerge.v1 import selector_pb2_grpc
from evomerge_common.adapters.codec import from_proto, to_proto
from evomerge_common.domain.messages import EarlierCandidate, Event, ends
from evomerge_common.errors import DeadlineExceeded, EvoMergeException, Unavailable
from evomerge_common.ports import Recorded
from evomerge_common.runtime.grpc_server import client_channel, error_from_rpc
from evomerge_common.runtime.settings import Settings

T = TypeVar("T")
START_SECONDS = 60.0
PAUSE_SECONDS = 0.3
MAX_PAUSE_SECONDS = 3.0
LIVE_SECONDS = 2.0
"""A stream that is silent for so long has told what there was."""


class SelectorClient:
    """One selector. Use as a context manager.

    gRPC's asyncio stack wants one event loop for all its objects: it gets a thread of its own.
    """

    def __init__(self, address: str, settings: Settings) -> None:
        self.address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()
        self._watch: asyncio.Task[None] | None = None
        self._channel: grpc.aio.Channel = self._run(self._connect(settings))
        self._stub = selector_pb2_grpc.SelectorServiceStub(self._channel)

    async def _connect(self, settings: Settings) -> grpc.aio.Channel:
        return client_channel(self.address, settings)

    def __enter__(self) -> SelectorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the watch and the connection."""
        if self._loop.is_closed():
            return
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()

    async def _close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._channel.close()

    def start_run(self, request_id: str, spec: str, earlier: Iterable[EarlierCandidate] = ()) -> pb.Run:
        """Starts a run, or finds the one that this request id started."""
        known = [to_proto(one) for one in earlier]
        run: pb.Run = self._call(
            self._stub.StartRun, pb.StartRunRequest(request_id=request_id, spec=spec, earlier=known), START_SECONDS
        )
        return run

    def continue_run(self, run_id: str, spec: str) -> pb.Run:
        """Lets a run go on with a spec that has another budget."""
        run: pb.Run = self._call(self._stub.ContinueRun, pb.ContinueRunRequest(run_id=run_id, spec=spec), START_SECONDS)
        return run

    def get_run(self, run_id: str) -> pb.Run:
        """Asks for one run."""
        run: pb.Run = self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id))
        return run

    def list_runs(self) -> list[pb.Run]:
        """Asks for all runs."""
        return list(self._call(self._stub.ListRuns, pb.ListRunsRequest()).runs)

    def pause(self, run_id: str) -> pb.Run:
        """Pauses a run."""
        run: pb.Run = self._call(self._stub.PauseRun, pb.PauseRunRequest(run_id=run_id))
        return run

    def resume(self, run_id: str) -> pb.Run:
        """Lets a paused run go on."""
        run: pb.Run = self._call(self._stub.ResumeRun, pb.ResumeRunRequest(run_id=run_id))
        return run

    def cancel(self, run_id: str, *, finish: bool, reason: str) -> pb.Run:
        """Ends a run; with `finish` its champion is still proven and exported."""
        run: pb.Run = self._call(self._stub.CancelRun, pb.CancelRunRequest(run_id=run_id, finish=finish, reason=reason))
        return run

    def watch(self, run_id: str, *, from_sequence: int = 0, persistent: bool = True) -> Watch:
        """Watches every event of the run from a sequence on, then live.

        Args:
            persistent: a selector that does not answer is waited for; else it is an error.

        """
        watch = Watch()
        future = asyncio.run_coroutine_threadsafe(self._spawn(run_id, from_sequence, watch, persistent), self._loop)
        future.result(10)
        return watch

    def events(self, run_id: str) -> list[Recorded]:
        """Reads what the log holds of a run now: the stream is left where it turns live."""
        watch = self.watch(run_id, persistent=False)
        found: list[Recorded] = []
        while True:
            try:
                recorded = watch.next(LIVE_SECONDS)
            except TimeoutError:
                return found
            if recorded is None:
                return found
            found.append(recorded)

    async def _spawn(self, run_id: str, start: int, watch: Watch, persistent: bool) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.create_task(self._follow(run_id, start, watch, persistent))

    async def _follow(self, run_id: str, start: int, watch: Watch, persistent: bool) -> None:
        pause = PAUSE_SECONDS
        try:
            while True:
                request = pb.WatchRunRequest(run_id=run_id, from_sequence=start)
                try:
                    async for response in self._stub.WatchRun(request):
                        if response.sequence >= start:
                            event: Event = from_proto(response.event)
                            start = response.sequence + 1
                            pause = PAUSE_SECONDS
                            watch.put(Recorded(response.sequence, event))
                    # The stream ends with the run, or with the selector's shutdown.
                    if watch.saw_end or not persistent:
                        return
                except grpc.aio.AioRpcError as error:
                    ours = error_from_rpc(error)
                    broken = error.code() in {
                        grpc.StatusCode.CANCELLED,
                        grpc.StatusCode.UNKNOWN,
                        grpc.StatusCode.INTERNAL,
                    }
                    if not persistent or not (broken or isinstance(ours, Unavailable | DeadlineExceeded)):
                        raise ours from error
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, MAX_PAUSE_SECONDS)
        except Exception as error:
            watch.fail(error)
        finally:
            watch.finish()

    def _call(self, method: Any, request: Any, seconds: float = 20.0) -> Any:
        async def call() -> Any:
            return await method(request, timeout=seconds, wait_for_ready=False)

        try:
            return self._run(call(), seconds + 5)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    def _run(self, work: Coroutine[Any, Any, T], seconds: float = 15.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)


class Watch:
    """Events as they come, for a thread that must also look at other things."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Recorded | EvoMergeException | Exception | None] = queue.SimpleQueue()
        self.saw_end = False

    def put(self, recorded: Recorded) -> None:
        """Takes in the next event; called by the thread that reads the stream."""
        if (ended := ends(recorded.event.payload)) is not None:
            self.saw_end = ended
        self._queue.put(recorded)

    def fail(self, error: Exception) -> None:
        """Takes in the error that ended the stream; `next` raises it."""
        self._queue.put(error)

    def finish(self) -> None:
        """Takes in the end of the run; `next` answers None."""
        self._queue.put(None)

    def next(self, timeout: float) -> Recorded | None:
        """Returns the next event.

        Raises:
            TimeoutError: none came within `timeout` seconds.
            EvoMergeException: the watch failed.

        Returns:
            None at the end of the run.

        """
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty as error:
            raise TimeoutError from error
        if isinstance(item, Exception):
            raise item
        return item

    def ready(self) -> Iterator[Recorded]:
        """Gives the events that have come, without waiting.

        Raises:
            EvoMergeException: the watch failed.

        """
        with contextlib.suppress(TimeoutError):
            while (recorded := self.next(0.0)) is not None:
                yield recorded
