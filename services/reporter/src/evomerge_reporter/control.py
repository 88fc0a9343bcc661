"""Pause, resume, finish and cancel: what the page may ask of the selector, where it is told of one."""

from __future__ import annotations

import contextlib

import grpc

from evomerge.v1 import selector_pb2, selector_pb2_grpc
from evomerge_common.errors import InvalidInput, did_you_mean
from evomerge_common.runtime.grpc_server import client_channel, error_from_rpc
from evomerge_common.runtime.settings import Settings

ACTIONS = ("pause", "resume", "finish", "cancel")


class Control:
    """A client of the selector, which connects with the first request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel: grpc.aio.Channel | None = None

    @property
    def is_there(self) -> bool:
        """Tells whether there is a selector to ask."""
        return bool(self._settings.selector_address)

    async def ask(self, run_id: str, action: str) -> None:
        """Has a run paused, resumed, finished (the best so far becomes the champion) or cancelled.

        Raises:
            InvalidInput: another action.
            EvoMergeException: what the selector answers, such as NotFound or InvalidInput.

        """
        if action not in ACTIONS:
            raise InvalidInput(f"a run cannot be asked to {action!r}; {did_you_mean(action, ACTIONS)}")
        if self._channel is None:
            self._channel = client_channel(self._settings.selector_address, self._settings)
        stub = selector_pb2_grpc.SelectorServiceStub(self._channel)
        try:
            if action == "pause":
                await stub.PauseRun(selector_pb2.PauseRunRequest(run_id=run_id))
            elif action == "resume":
                await stub.ResumeRun(selector_pb2.ResumeRunRequest(run_id=run_id))
            else:
                request = selector_pb2.CancelRunRequest(
                    run_id=run_id, finish=action == "finish", reason="asked on the page"
                )
                await stub.CancelRun(request)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async def close(self) -> None:
        """Ends the connection."""
        if self._channel is not None:
            with contextlib.suppress(grpc.RpcError):
                await self._channel.close()
