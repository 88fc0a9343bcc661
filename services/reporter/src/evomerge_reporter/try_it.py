"""One prompt to the champion and the sources, where the page is told of an evaluator: what they write, side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import grpc

from evomerge.v1 import evaluator_pb2, evaluator_pb2_grpc, types_pb2
from evomerge_common.errors import InvalidInput, Unavailable
from evomerge_common.runtime.grpc_server import client_channel, error_from_rpc
from evomerge_common.runtime.settings import Settings
from evomerge_report.queries import Queries

MOST_CHARACTERS, MOST_TOKENS, MOST_MODELS = 4000, 256, 8
SECONDS = 60.0
"""That a model may take for one answer; the evaluator does one thing at a time, and candidates go first come."""


class TryIt:
    """A client of an evaluator, which connects with the first prompt; one prompt at a time."""

    def __init__(self, settings: Settings, queries: Queries) -> None:
        self._settings = settings
        self._queries = queries
        self._channel: grpc.aio.Channel | None = None
        self._busy = asyncio.Lock()

    @property
    def is_there(self) -> bool:
        """Tells whether there is an evaluator to ask."""
        return bool(self._settings.evaluator_address)

    async def ask(self, run_id: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Puts a prompt to the models of a run: the champion, once it has been exported, and the sources.

        Args:
            run_id: the run.
            asked: `prompt`, and as one likes `tokens` (at most, default 64) and `chat` (through the chat template).

        Returns:
            `name`, `text`, `tokens`, `seconds` and `error` ("" for none) of each model.

        Raises:
            InvalidInput: no prompt, too long a one, or too many tokens.
            Unavailable: another prompt is being answered.

        """
        prompt, tokens, chat = asked.get("prompt"), asked.get("tokens", 64), asked.get("chat", False)
        if not isinstance(prompt, str) or not 0 < len(prompt) <= MOST_CHARACTERS:
            raise InvalidInput(f"prompt: expected 1 to {MOST_CHARACTERS} characters")
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens <= MOST_TOKENS:
            raise InvalidInput(f"tokens: expected 1 to {MOST_TOKENS}")
        if self._busy.locked():
            raise Unavailable("another prompt is being answered; ask again in a moment")
        async with self._busy:
            if self._channel is None:
                self._channel = client_channel(self._settings.evaluator_address, self._settings)
            stub = evaluator_pb2_grpc.EvaluatorServiceStub(self._channel)
            found = []
            for name, uri in self._models(run_id):
                request = evaluator_pb2.GenerateRequest(
                    model=types_pb2.Model(uri=uri), prompt=prompt, max_new_tokens=tokens, chat=chat is True
                )
                answer = {"name": name, "text": "", "tokens": 0, "seconds": 0.0, "error": ""}
                try:
                    made = await stub.Generate(request, timeout=SECONDS)
                    answer |= {"text": made.text, "tokens": made.tokens, "seconds": round(made.seconds, 3)}
                except grpc.aio.AioRpcError as error:
                    answer["error"] = str(error_from_rpc(error))
                found.append(answer)
        return found

    def _models(self, run_id: str) -> list[tuple[str, str]]:
        """Name and URI of what can be asked."""
        run, models = self._queries.run(run_id), self._queries.models(run_id)
        exported = [one["uri"] for one in self._queries.exports(run_id) if one["format"] == "hf"]
        sources = [
            (one.name, models[one.source]["uri"]) for one in self._queries.sources(run_id) if one.source in models
        ]
        champion = [("champion", exported[-1])] if exported and run.champion else []
        return [*champion, *sources][:MOST_MODELS]

    async def close(self) -> None:
        """Ends the connection."""
        if self._channel is not None:
            with contextlib.suppress(grpc.RpcError):
                await self._channel.close()
