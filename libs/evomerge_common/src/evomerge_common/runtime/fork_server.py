"""A process that has imported what other processes need, and forks them: torch and transformers are imported once.

`python -m evomerge_common.runtime.fork_server PARENT_PID SOCKET_FD MODULE…` is the server; `start` starts one, and
`fork` asks it for a process. Linux alone; elsewhere, and where no server answers, the caller starts a process of its
own (`child.ChildProcess` spawns one).

Two things end a forked process at once: the kernel, when the server ends (its parent, whose one thread forked it), and
the server, when the connection of whoever asked for it closes, which the kernel does however that process ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from evomerge_common.runtime.parent import end_with_parent

ADDRESS = "_EVOMERGE_FORK_SERVER"
"""Environment variable: the server's name, for processes that may ask it."""
REQUEST_SECONDS = 10.0
"""Seconds that whoever connected has to say what it wants."""
_NUMBER = struct.Struct("!i")


class ForkedProcess:
    """A process that a server forked for this one; of multiprocessing's `Process` what `ChildProcess` needs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._pid: int | None = None
        self.exitcode: int | None = None

    @property
    def pid(self) -> int | None:
        """Returns the process id; waits until the server has forked it. None where it did not come to that."""
        with self._lock:
            if self._pid is None and self.exitcode is None:
                self._receive()
            return self._pid

    def is_alive(self) -> bool:
        """Tells whether it runs, or will."""
        self.join(0.0)
        return self.exitcode is None

    def kill(self) -> None:
        """Ends it at once (SIGKILL)."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def join(self, timeout: float) -> None:
        """Waits for its end, so many seconds at most."""
        with self._lock:
            while self.exitcode is None and select.select([self._connection], [], [], timeout)[0]:
                self._receive()

    def _receive(self) -> None:
        """Takes what the server says: first the process id, then the exit code. With the server ends the process."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = self._connection.recv(_NUMBER.size, socket.MSG_WAITALL)
        number = _NUMBER.unpack(data)[0] if len(data) == _NUMBER.size else None
        if number is not None and self._pid is None:
            self._pid = number
        else:
            self.exitcode = -signal.SIGKILL if number is None else number
            self._connection.close()


def start(modules: Sequence[str], *, launcher: Sequence[str] = ()) -> tuple[subprocess.Popen[bytes], str] | None:
    """Starts a server that imports these modules at once, and ends with the thread that called this.

    Returns its process and its name, which is what `ADDRESS` says to those who may ask it; None on other systems than
    Linux. Nobody else can guess the name, and the server answers this user alone.
    """
    if sys.platform != "linux":
        return None
    name = f"evomerge-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(16)
        number = listener.fileno()
        command = [sys.executable, "-P", "-m", __name__, str(os.getpid()), str(number), *modules]
        process = subprocess.Popen(
            [*launcher, *command], pass_fds=[number], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return process, name


def fork(
    target: Callable[..., None],
    pipe: Connection | None,
    args: tuple[Any, ...],
    *,
    server: str | None = None,
    environ: Mapping[str, str] | None = None,
    output: int | None = None,
) -> ForkedProcess | None:
    """Asks a server for a process that runs `target(pipe, *args, the server's pid)`; without a pipe, without it.

    It has this process's folder and sys.path. None where there is no server; the process is not waited for.

    Args:
        target: a function of a module.
        pipe: an end of a pipe, for the process.
        args: picklable.
        server: its name; None: the one that this process's environment names.
        environ: the process's environment; None: this process's own.
        output: a file descriptor for what the process writes; None: where this process writes.

    """
    name = server or os.environ.get(ADDRESS)
    if not name or sys.platform != "linux":
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"\0{name}")
        request = pickle.dumps((sys.path, dict(environ or os.environ), os.getcwd(), pickle.dumps((target, args))))
        files = [*([] if pipe is None else [pipe.fileno()]), *((1, 2) if output is None else (output, output))]
        socket.send_fds(connection, [_NUMBER.pack(len(request))], files)
        connection.sendall(request)
    except OSError:
        connection.close()
        return None
    return ForkedProcess(connection)


# ---- the server ----


class _Server:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._pid = os.getpid()
        self._wakeup, theirs = socket.socketpair()
        for end in (self._wakeup, theirs):
            end.setblocking(False)
        self._theirs = theirs
        self._children: dict[int, socket.socket] = {}  # pid → whose it is

    def serve(self) -> None:
        """Forks, kills and reaps until it is killed."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._theirs.fileno())
        while True:
            owners = {connection: pid for pid, connection in self._children.items()}
            ready, _, _ = select.select([self._listener, self._wakeup, *owners], [], [])
            for one in ready:
                if one is self._listener:
                    with contextlib.suppress(OSError):
                        self._accept()
                elif one in owners:
                    os.kill(owners[one], signal.SIGKILL)  # not reaped yet, so the number is still its own
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
            self._reap()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            connection.close()
            return
        connection.settimeout(REQUEST_SECONDS)
        data, files, _, _ = socket.recv_fds(connection, _NUMBER.size, 3)
        request = b""
        while len(data) == _NUMBER.size and len(request) < (size := _NUMBER.unpack(data)[0]):
            part = connection.recv(size - len(request))
            if not part:
                break
            request += part
        pid = os.fork() if len(files) in {2, 3} and request else -1
        if pid == 0:
            self._become(connection, request, files)
        for number in files:
            os.close(number)
        if pid < 0:
            connection.close()
            return
        self._children[pid] = connection
        with contextlib.suppress(OSError):
            connection.send(_NUMBER.pack(pid))

    def _become(self, connection: socket.socket, request: bytes, files: list[int]) -> None:
        """Turns the forked process into what was asked for; does not return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (connection, self._listener, self._wakeup, self._theirs, *self._children.values()):
                one.close()
            *pipe, output, errors = files
            os.dup2(output, 1)
            os.dup2(errors, 2)
            sys.path[:], environ, folder, work = pickle.loads(request)  # noqa: S301 - this user's own process wrote it
            os.environ.clear()
            os.environ.update(environ)
            with contextlib.suppress(OSError):
                os.chdir(folder)
            target, args = pickle.loads(work)  # noqa: S301
            target(*map(Connection, pipe), *args, self._pid)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                connection = self._children.pop(pid)
                with contextlib.suppress(OSError):
                    connection.send(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
                connection.close()


def _preload(modules: Sequence[str]) -> None:
    """Imports the modules; what is missing, the forked processes tell of."""
    gc.disable()
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # no collection may write to pages that the forked processes share
    gc.enable()


def _holds_device() -> bool:
    """Whether a GPU's driver is in use already: its state does not survive a fork."""
    links = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
    return any(os.readlink(link).startswith(("/dev/nvidia", "/dev/kfd")) for link in links if os.path.islink(link))


def main() -> None:
    """Runs the server."""
    parent, number, *modules = sys.argv[1:]
    end_with_parent(int(parent), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(fileno=int(number))
    _preload(modules)
    if not _holds_device():  # else nobody is answered, and everybody spawns
        _Server(listener).serve()


if __name__ == "__main__":
    main()
