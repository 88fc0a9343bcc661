"""The embedded stack: a private nats-server and the five services as child processes on loopback.

One thread starts, watches and stops all of them. (Linux ties a child's death signal to the thread that started it, so
that thread must live as long as they do.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from evomerge_cli.stack.broker import Broker, logging_to
from evomerge_cli.stack.child import forked
from evomerge_cli.stack.gpus import VISIBLE, evaluators_for, share_of, visible_gpus
from evomerge_cli.stack.libraries import Libraries, imported
from evomerge_cli.stack.ports import HOST, free_ports
from evomerge_cli.stack.process import SupervisedProcess
from evomerge_cli.stack.room import Room
from evomerge_common.errors import EvoMergeException, Unavailable
from evomerge_common.runtime.files import write_atomically
from evomerge_common.runtime.fork_server import ADDRESS, ForkedProcess, fork
from evomerge_common.runtime.settings import PREFIX, SERVICES, Settings

log = logging.getLogger(__name__)

START_SECONDS = 90.0
STOP_SECONDS = 6.0
POLL_SECONDS = 0.1
READY_SECONDS = 0.02
"""Between two looks whether a service is ready."""
ACK_WAIT = 8.0
"""Seconds after which a killed worker's job is done by another: short, since everything here is one machine."""
USER_SETTINGS = (
    *(
        "ALLOW_CODE",
        "BACKEND",
        "DEVICE",
        "DOWNLOAD_LIMIT",
        "LINK_MODELS",
        "LOG_FORMAT",
        "LOG_LEVEL",
        "LOG_SIZE",
        "MAX_DELIVER",
        "MODEL_STORE",
    ),
    *("MODEL_STORE_QUOTA", "SCORE_CACHE", "SCORE_TIMEOUT", "TENSOR_PARALLEL", "TRACE_FILE"),
)
"""What the user's EVOMERGE_* variables may say about an embedded stack; addresses and secrets are its own."""
STATE_FILE = "stack.json"


class Stack:
    """Use as a context manager: leaving it stops everything.

    Args:
        folder: where the broker's store, artifacts, logs and `stack.json` (pids and addresses) go.
        evaluators: processes that score; None: one a GPU, or for as many GPUs as one model is spread over; without a
            GPU, one.
        awaited: the services that `start` waits for; None: all. What others are to do waits in the broker for them.
        fixed_ports: the documented ports where they are free (50051 …), for a stack that outlives one command.

    """

    def __init__(
        self,
        folder: Path,
        *,
        evaluators: int | None = None,
        awaited: Sequence[str] | None = None,
        fixed_ports: bool = False,
        ack_wait: float = ACK_WAIT,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.failure: EvoMergeException | None = None
        self.addresses: dict[str, str] = {}
        self.metrics: dict[str, str] = {}
        self._environ = dict(os.environ if environ is None else environ)
        theirs = {PREFIX + key for key in USER_SETTINGS}
        user = Settings.from_env({key: value for key, value in self._environ.items() if key in theirs})
        self._each, self._gpus = user.tensor_parallel, visible_gpus(self._environ, user.device)
        self._log_size = user.log_size
        self._evaluators = evaluators or evaluators_for(self._gpus, self._each)
        self._awaited = awaited
        self._fixed_ports = fixed_ports
        self._ack_wait = ack_wait
        self._libraries = contextlib.ExitStack()
        self._servers = Libraries()
        self._services: list[SupervisedProcess] = []
        self._broker: SupervisedProcess | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def settings(self) -> Settings:
        """Says how a client talks to this stack: loopback, no token, no TLS."""
        return Settings()

    @property
    def selector(self) -> str:
        """Returns host:port of the selector's gRPC API."""
        return self.addresses["selector"]

    @property
    def logs(self) -> Path:
        """Returns the folder of the stack's logs."""
        return self.folder / "logs"

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- the caller's side ----

    def start(self, timeout: float = START_SECONDS) -> None:
        """Returns when every awaited service says SERVING.

        Raises:
            WorkerCrashed: one of them keeps dying.
            Unavailable: one of them is not ready in time.
            DiskFull: there is no room to work in.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._servers = self._libraries.enter_context(imported())
        self._plan()
        self._thread = threading.Thread(target=self._live, name="stack", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + timeout
        waiting = {
            name: address
            for name, address in self.addresses.items()
            if name not in {"nats", "page", "metrics"} and (self._awaited is None or name in self._awaited)
        }
        while waiting:
            self.check()
            for name, address in list(waiting.items()):
                if is_serving(address):
                    del waiting[name]
            if waiting and time.monotonic() > deadline:
                raise Unavailable(
                    f"not ready after {timeout:g} s: {', '.join(sorted(waiting))}; their logs are in {self.logs}"
                )
            if waiting:
                time.sleep(READY_SECONDS)
        log.info("stack is up: selector %s, page http://%s", self.selector, self.addresses["page"])

    def check(self) -> None:
        """Raises what the supervisor gave up on, if it did."""
        if self.failure is not None:
            raise self.failure

    def begin_stop(self) -> None:
        """Has everything stop, and does not wait for it."""
        self._stopping.set()

    def stop(self) -> None:
        """Stops services, then the broker; returns when all are gone. Harmless when nothing runs."""
        self.begin_stop()
        if self._thread is not None:
            self._thread.join(2 * STOP_SECONDS + 10)
            self._thread = None
        self._libraries.close()
        (self.folder / STATE_FILE).unlink(missing_ok=True)

    # ---- the plan ----

    def _plan(self) -> None:
        evaluators = [f"evaluator{i + 1 if i else ''}" for i in range(self._evaluators)]
        names = evaluators + [name for name in SERVICES if name != "evaluator"]  # the longest to start comes first
        wanted = {name: 50051 + SERVICES.index(name) for name in SERVICES} if self._fixed_ports else {}
        metrics = {name: 9101 + SERVICES.index(name) for name in SERVICES} if self._fixed_ports else {}
        preferred = [wanted.get(name, 0) for name in names] + [metrics.get(name, 0) for name in names]
        preferred += [4222, 8080] if self._fixed_ports else [0, 0]
        ports = free_ports(2 * len(names) + 2, preferred=tuple(preferred))
        grpc_ports = dict(zip(names, ports, strict=False))
        metrics_ports = dict(zip(names, ports[len(names) :], strict=False))
        nats_port, page_port = ports[-2:]
        self.addresses = {name: f"{HOST}:{port}" for name, port in grpc_ports.items()}
        self.addresses |= {"nats": f"{HOST}:{nats_port}", "page": f"{HOST}:{page_port}"}
        self.metrics = {name: f"{HOST}:{port}" for name, port in metrics_ports.items()}
        # -P: the user's current folder must not shadow a module.
        launcher = [sys.executable, "-P", "-m", "evomerge_cli.stack.child", str(os.getpid())]
        broker = Broker(
            self.folder / "nats",
            port=nats_port,
            extra_config=logging_to(self.logs / "nats.log", self._log_size),
            launcher=[*launcher, "--exec"],
        )
        self._broker = SupervisedProcess("nats-server", broker.command, env=self._environ, log=self.logs / "nats.log")
        for name in names:
            module = "evaluator" if name.startswith("evaluator") else name
            env = self._service_env(name, nats_port, grpc_ports[name], metrics_ports[name], page_port)
            if name == "reporter":
                env[PREFIX + "SELECTOR_ADDRESS"] = self.addresses["selector"]
                env[PREFIX + "EVALUATOR_ADDRESS"] = self.addresses["evaluator"]
            if self._gpus and module == "evaluator":
                env[VISIBLE] = share_of(self._gpus, evaluators.index(name), self._each)
            self._services.append(
                SupervisedProcess(
                    name,
                    [*launcher, f"evomerge_{module}"],
                    env=env,
                    log=self.logs / f"{name}.log",
                    fork=partial(self._forked, f"evomerge_{module}", env),
                )
            )

    def _service_env(self, name: str, nats: int, grpc: int, metrics: int, page: int) -> dict[str, str]:
        theirs = {PREFIX + key for key in USER_SETTINGS}
        env = {k: v for k, v in self._environ.items() if not k.startswith(PREFIX) or k in theirs}
        ours = {
            "NATS_URL": f"nats://{HOST}:{nats}",
            "GRPC_ADDRESS": f"{HOST}:{grpc}",
            "METRICS_ADDRESS": f"{HOST}:{metrics}",
            "HTTP_ADDRESS": f"{HOST}:{page}",
            "ARTIFACT_STORE": str(self.folder / "artifacts"),
            "LOG_FILE": str(self.logs / f"{name}.log"),
            "STATE_DIR": str(self.folder / "state" / name),
            "ACK_WAIT": str(self._ack_wait),
            "DRAIN_TIMEOUT": "1",
            "SHUTDOWN_GRACE": "1",
            "WARM": str(not self._fixed_ports).lower(),
        }
        env.update({PREFIX + key: value for key, value in ours.items()})
        if name.startswith("evaluator"):
            env[ADDRESS] = self._servers.scoring
        store = Path(env.get(PREFIX + "MODEL_STORE") or Settings().model_store).expanduser()
        env.setdefault(PREFIX + "SCORE_CACHE", str(store.parent / "scores"))
        env.setdefault("PYTHONUNBUFFERED", "1")
        env.setdefault("TOKENIZERS_PARALLELISM", "false")
        return env

    def _forked(self, module: str, env: Mapping[str, str], log_file: int) -> ForkedProcess | None:
        if not self._servers.services:
            return None
        return fork(forked, None, (module,), server=self._servers.services, environ=env, output=log_file)

    # ---- the supervisor's thread ----

    def _live(self) -> None:
        try:
            self._supervise()
        except EvoMergeException as error:
            log.error("%s", error)
            self.failure = error
        except Exception as error:
            log.exception("the supervisor failed")
            self.failure = Unavailable(f"the embedded stack failed: {type(error).__name__}: {error}")
        finally:
            self._shut_down()

    def _supervise(self) -> None:
        assert self._broker is not None
        everything = [self._broker, *self._services]
        room = Room(self.folder, self._broker.log)
        room.check(patience=0.0)
        for process in everything:
            process.start()
        self._write_state()
        while not self._stopping.wait(POLL_SECONDS):
            room.check()
            for process in everything:
                if process.supervise():
                    log.warning("%s died and was started again (restart %d)", process.name, process.restarts)
                    self._write_state()

    def _shut_down(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._services:
            process.terminate()
        for process in self._services:
            process.wait(deadline)
        # The broker last: the services give their unfinished jobs back through it.
        if self._broker is not None:
            self._broker.terminate()
            self._broker.wait(time.monotonic() + STOP_SECONDS)

    def _write_state(self) -> None:
        """Pids and addresses, for `evomerge status` and for whoever looks from outside."""
        assert self._broker is not None
        state = {
            "pid": os.getpid(),
            "addresses": self.addresses,
            "metrics": self.metrics,
            "processes": {process.name: process.pid for process in (self._broker, *self._services)},
        }
        write_atomically(self.folder / STATE_FILE, json.dumps(state, indent=2) + "\n")


def is_serving(address: str, timeout: float = 1.0) -> bool:
    """Tells whether the service there says that it is ready (gRPC health)."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
