"""The output folder of a run: whose it is, who works on it, and what stands in it at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import logging.handlers
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge_common.adapters.codec import from_json_line, to_json_line
from evomerge_common.domain.spec import BUDGET_KEYS, RunRequest, RunSpec
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import InvalidInput, NotFound, UnservedScheme
from evomerge_common.ports import Recorded
from evomerge_common.runtime.files import lock_file, remove, write_atomically
from evomerge_common.runtime.ports_factory import open_artifact

HIDDEN = ".evomerge"
RESULTS = ("model", "gguf", "report", "result.json", "events.jsonl")
LOG_BYTES = 5 * 2**20


class RunFolder:
    """`OUT`. Everything that only EvoMerge needs (the broker's store, artifacts, logs, state) is in `OUT/.evomerge`."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.hidden = self.out / HIDDEN
        self._state_file = self.hidden / "run.json"

    # ---- whose it is ----

    def check(self, spec_digest: str) -> None:
        """Refuses a folder that holds something else; writes nothing.

        Raises:
            InvalidInput: the folder belongs to a run with another spec, or holds results that no run of ours wrote.

        """
        if self.out.exists() and not self.out.is_dir():
            raise InvalidInput(f"{self.out} is a file; choose a folder with --out")
        state = self.state()
        if state:
            if state["spec_digest"] != spec_digest:
                raise InvalidInput(
                    f"{self.out} holds a run with another spec (other models, suite, seed or search settings); "
                    "choose another --out, or remove that folder to start afresh. A run goes on where nothing but "
                    f"search.{', search.'.join(BUDGET_KEYS)} differ"
                )
            return
        foreign = [name for name in RESULTS if (self.out / name).exists()]
        if foreign:
            raise InvalidInput(
                f"{self.out} has {', '.join(foreign)} in it, but no run of EvoMerge; nothing is overwritten: "
                "choose another --out"
            )

    def has_other_budget(self, request: RunRequest) -> bool:
        """Tells whether the folder's run may go on with this request: it differs from its own in the budget alone."""
        state = self.state()
        if not {"spec", "run_id"} <= state.keys():
            return False
        before = RunSpec.from_dict(state["spec"])
        same_suite = RunRequest(before, request.suite).digest == state["spec_digest"]
        return same_suite and before != request.spec and request.spec.differs_in_budget_alone(before)

    def claim(self, spec_digest: str, spec: RunSpec | None = None) -> dict[str, Any]:
        """Returns the run's state, made if there is none; a run that failed or was cancelled gets another attempt."""
        state = self.state()
        if not state or state.get("status") in {"failed", "cancelled"}:
            attempt = state.get("attempt", 0) + 1 if state else 1
            request = f"{spec_digest}:{self.out}:{attempt}"
            state = {
                "version": 1, "spec_digest": spec_digest, "attempt": attempt, "status": "started",
                "request_id": hashlib.sha256(request.encode()).hexdigest()[:32],
                **({} if spec is None else {"spec": spec.to_dict()}),
            }  # fmt: skip
            self.save(state)
        return state

    def state(self) -> dict[str, Any]:
        """Reads what an earlier command left here; empty when none did."""
        try:
            state = json.loads(self._state_file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{self._state_file} cannot be read ({error}); remove {self.out} to start afresh"
            ) from error
        return dict(state)

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state."""
        self.hidden.mkdir(parents=True, exist_ok=True)
        write_atomically(self._state_file, json.dumps(state, indent=2) + "\n")

    def note_end(self) -> None:
        """Notes that this process's command on the run, which its state names, has ended."""
        state = self.state()
        commands = state.get("commands", [])
        if commands and commands[-1].get("pid") == os.getpid():
            commands[-1]["ended"] = time.time()
            self.save(state)

    def command(self) -> tuple[float, float] | None:
        """Tells when the command that made the run was given and when it ended; None: it took several, or is not done.

        Unix seconds.
        """
        commands = self.state().get("commands", [])
        if len(commands) != 1 or "ended" not in commands[0]:
            return None
        return commands[0]["given"], commands[0]["ended"]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second command out; the lock goes with the process, however that ends.

        Raises:
            InvalidInput: another command works on this folder.

        """
        self.hidden.mkdir(parents=True, exist_ok=True)
        path = self.hidden / "lock"
        try:
            handle = lock_file(path, wait=False)
        except BlockingIOError as error:
            pid = path.read_text(errors="replace").strip()
            raise InvalidInput(
                f"another evomerge command{f' (pid {pid})' if pid else ''} is at work in {self.out}; "
                "wait for it, stop it, or choose another --out"
            ) from error
        try:
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def logging(self, level: int = logging.INFO) -> Iterator[Path]:
        """Sends the CLI's own log to OUT/evomerge.log, rotating; the services' logs are in .evomerge/logs."""
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / "evomerge.log"
        handler = logging.handlers.RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=3, encoding="utf-8")
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk: the console says so
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("evomerge_cli")
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
        try:
            yield file
        finally:
            logger.removeHandler(handler)
            handler.close()

    # ---- what stands in it at the end ----

    def keep_suite(self, suite: Suite) -> None:
        """Writes the suite, so that the report can be written again without the files that it came from."""
        write_atomically(self.hidden / "suite.json", suite.to_json())

    def suite(self) -> Suite:
        """Reads what `keep_suite` wrote.

        Raises:
            InvalidInput: the folder holds no run.

        """
        try:
            return Suite.from_json((self.hidden / "suite.json").read_text("utf-8"))
        except OSError as error:
            raise InvalidInput(f"{self.out} holds no run of EvoMerge: {error}") from error

    def events(self) -> list[Recorded]:
        """Reads events.jsonl.

        Raises:
            InvalidInput: there is none.

        """
        try:
            text = (self.out / "events.jsonl").read_text("utf-8")
        except OSError as error:
            why = (
                "no event of the run there is known here yet" if self.hidden.is_dir() else "it holds no run of EvoMerge"
            )
            raise InvalidInput(f"{self.out} has no events.jsonl: {why}") from error
        # Not splitlines: a text inside the JSON may hold U+2028.
        return [Recorded(*from_json_line(line)) for line in text.split("\n") if line]

    def write_events(self, events: Sequence[Recorded]) -> None:
        """Writes events.jsonl: the whole log."""
        write_atomically(self.out / "events.jsonl", "".join(to_json_line(e.event, e.sequence) + "\n" for e in events))

    def take_model(self, uri: str, *, move: bool, name: str = "model") -> Path:
        """Brings the exported champion to OUT/model, or a copy of it in another format to the folder of that `name`.

        It is moved when it is the embedded stack's, copied from a server's.

        Raises:
            NotFound: the URI is out of this machine's reach.

        """
        target = self.out / name
        try:
            source = open_artifact(uri)
        except (NotFound, UnservedScheme) as error:
            if move and target.is_dir() and any(target.iterdir()):
                return target  # an earlier command moved it already
            raise NotFound(
                f"the champion is at {uri}, which cannot be reached from here; fetch it from there"
            ) from error
        fresh = self.out / f".{name}.part"
        remove(fresh)
        if move:
            shutil.move(source, fresh)
        else:
            shutil.copytree(source, fresh)
        remove(target)
        fresh.rename(target)
        return target
