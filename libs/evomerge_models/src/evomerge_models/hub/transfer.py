"""The bytes of files: in pieces over a few connections, gone on with where they stopped, hashed as they come."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path

from evomerge_common.errors import ModelNotFound, Unavailable, UnsafeFile
from evomerge_models.hub.bandwidth import Bandwidth
from evomerge_models.hub.files import ACCESS, Progress, RemoteFile
from evomerge_models.hub.part import Part
from evomerge_models.hub.patience import RETRIED, Broken, Patience, pause, retry_after
from evomerge_models.hub.wire import Answer, Wire

log = logging.getLogger(__name__)

Tell = Callable[[Progress], None]
"""Called with how far a download is: a few times a second, by one of its threads at a time."""

_TRIES = 5
_REFETCHES = 1
_TELL_SECONDS = 0.25
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Stopped(Exception):
    """Another piece failed for good."""


class _OtherFile(Exception):
    """The hub sends something that is not the file that it described."""


class _NoRanges(Exception):
    """The hub sends the whole file, whatever is asked for."""


class Transfer:
    """One download of files of a repository.

    Args:
        wire: the connections.
        name: the repository and commit, for errors.
        address: makes the URL of a file.
        folder: where the files go; what an earlier try left there is gone on with.
        bandwidth: the limit that all downloads of the process share.
        tell: see `Tell`.
        total: bytes of the whole download.

    """

    def __init__(
        self,
        wire: Wire,
        name: str,
        address: Callable[[str], str],
        folder: Path,
        bandwidth: Bandwidth,
        tell: Tell,
        total: int,
    ) -> None:
        self._wire, self._name, self._address, self._folder = wire, name, address, folder
        self._bandwidth, self._tell, self._total = bandwidth, tell, total
        self._stop = threading.Event()
        self._lock, self._telling = threading.Lock(), threading.Lock()
        self._work: deque[tuple[Part, int, Future[None]]] = deque()
        self._ready = threading.Condition(self._lock)
        self._error: BaseException | None = None
        self._addresses: dict[str, str] = {}
        self._done, self._told = 0, 0.0

    def run(self, files: Sequence[RemoteFile], done: int = 0) -> None:
        """Brings the files, whole and verified.

        Args:
            files: what to bring, in this order.
            done: bytes of the download that are there besides.

        Raises:
            UnsafeFile: a file is not what the hub's metadata says, fetched again too; it is removed.
            ModelNotFound: the hub refuses a file, or has it no longer.
            DiskFull: no room; Unavailable: the hub fails. What has come is kept, and calling again goes on with it.

        """
        parts = [Part(file, self._folder) for file in files]
        self._done = done + sum(part.bytes_done for part in parts)
        count = self._bandwidth.connections
        threads = [threading.Thread(target=self._serve, name="download", daemon=True) for _ in range(count)]
        try:
            self._report()
            queued = [(part, self._submit(part)) for part in parts]
            for thread in threads:
                thread.start()
            for part, pieces in queued:
                self._complete(part, pieces)
            self._report()
        except _Stopped:
            assert self._error is not None
            raise self._error from None
        finally:
            self._end(threads)
            for part in parts:
                part.close()

    def _end(self, threads: list[threading.Thread]) -> None:
        """Nobody writes when this returns: the caller lets go of the folder."""
        with self._ready:
            self._stop.set()
            self._ready.notify_all()
        self._wire.abort()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        self._wire.close()

    # ---- files ----

    def _submit(self, part: Part) -> list[Future[None]]:
        futures: list[Future[None]] = []
        with self._ready:
            self._check()  # after an error the threads have gone, and nobody would take them
            for piece, (start, stop) in enumerate(part.pieces):
                futures.append(Future())
                if part.done[piece] < stop - start:
                    self._work.append((part, piece, futures[-1]))
                else:
                    futures[-1].set_result(None)
            self._ready.notify_all()
        return futures

    def _complete(self, part: Part, pieces: list[Future[None]]) -> None:
        """Hashes a file's pieces as they come; one that came wrong is fetched once more."""
        refetches = 0
        while True:
            in_one_piece = False
            try:
                digest = part.hasher()
                for piece, future in enumerate(pieces):
                    future.result()
                    part.feed(digest, piece)
                problem = part.problem(digest)
            except CancelledError:
                raise _Stopped from None
            except _OtherFile as error:
                problem = str(error)
            except _NoRanges:
                problem, in_one_piece = "", True
            if not problem and not in_one_piece:
                part.finish()
                return
            for future in pieces:
                future.cancel()
            wait(pieces)
            self._check()
            with self._lock:
                self._done -= part.bytes_done
            part.restart(in_one_piece=in_one_piece)
            refetches += bool(problem)
            if refetches > _REFETCHES:
                raise UnsafeFile(
                    f"{part.file.name} of {self._name} is not the file that was asked for: {problem}; it was fetched "
                    f"{refetches} times and came wrong each time: the hub, or a proxy between, is broken"
                )
            if problem:
                self._note(f"{part.file.name} came wrong ({problem}); it is fetched again")
            pieces = self._submit(part)

    # ---- pieces, in threads ----

    def _serve(self) -> None:
        while (item := self._next()) is not None:
            part, piece, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self._bring(part, piece)
            except (_OtherFile, _NoRanges) as error:
                future.set_exception(error)
            except BaseException as error:
                if not isinstance(error, _Stopped):
                    self._error = self._error or error
                    self._stop.set()
                future.set_exception(_Stopped())
            else:
                future.set_result(None)

    def _next(self) -> tuple[Part, int, Future[None]] | None:
        with self._ready:
            while not self._work and not self._stop.is_set():
                self._ready.wait()
            if not self._stop.is_set():
                return self._work.popleft()
            while self._work:
                future = self._work.popleft()[2]
                future.cancel()
                future.set_running_or_notify_cancel()
            return None

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _bring(self, part: Part, piece: int) -> None:
        patience = Patience(self._name, _TRIES, self._note, lambda seconds: pause(seconds, self._check))
        start, stop = part.pieces[piece]
        while part.done[piece] < stop - start:
            before = part.done[piece]
            try:
                self._try(part, piece)
            except Broken as error:
                self._check()
                self._addresses.pop(part.file.name, None)
                patience.brought(part.done[piece] - before)
                patience.failed(error)

    def _try(self, part: Part, piece: int) -> None:
        name = part.file.name
        start, stop = part.pieces[piece]
        at = start + part.done[piece]
        with self._wire.get(self._addresses.get(name) or self._address(name), at, stop - 1) as answer:
            self._judge(answer, part.file, at)
            if answer.status == 200 and at > 0:
                if len(part.pieces) > 1:
                    raise _NoRanges
                self._count(-part.done[piece])
                part.done[piece], at = 0, 0
            if not answer.same_host:
                self._addresses[name] = answer.url
            while at < stop:
                data = answer.read(min(self._bandwidth.read_bytes, stop - at))
                self._check()
                if not data:
                    raise Broken("the connection ended early")
                part.write(piece, data)
                at += len(data)
                self._count(len(data))
                self._bandwidth.spend(len(data))

    def _judge(self, answer: Answer, file: RemoteFile, at: int) -> None:
        """Raises what an answer other than the wanted bytes means."""
        status, headers = answer.status, answer.headers
        if status in {200, 206} and headers.get("content-encoding", "identity") != "identity":
            raise Broken("the hub sends the file compressed, which was not asked for")
        if status == 206:
            place = _RANGE.fullmatch(headers.get("content-range", ""))
            if place is None or int(place[1]) != at:
                raise Broken("the hub sends another range than was asked for")
            if place[2] not in {"*", str(file.size)}:
                raise _OtherFile(f"it has {place[2]} bytes, the hub says {file.size}")
        elif status == 200:
            if (size := headers.get("content-length", "")).isdecimal() and int(size) != file.size:
                raise _OtherFile(f"it has {size} bytes, the hub says {file.size}")
        elif status == 416:
            raise _OtherFile(f"it ends before byte {at}, the hub says {file.size}")
        elif status in RETRIED or not answer.same_host:
            raise Broken(f"the hub answers HTTP {status}", retry_after(headers))
        elif status in {401, 403}:
            gated = headers.get("x-error-code") == "GatedRepo"
            raise ModelNotFound(
                f"{self._name} is gated; {ACCESS}" if gated else
                f"the hub refuses {file.name} of {self._name} (HTTP {status}); {ACCESS}"
            )  # fmt: skip
        elif status in {404, 410}:
            raise ModelNotFound(
                f"the hub listed {file.name} of {self._name} and has it no longer (HTTP {status}); start again, or "
                "give another revision"
            )
        else:
            raise Unavailable(f"the hub answers HTTP {status} for {file.name} of {self._name}; trying again may help")

    # ---- what is told ----

    def _count(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._told < _TELL_SECONDS:
                return
            self._told = now
        self._report()

    def _note(self, note: str) -> None:
        log.warning("%s: %s", self._name, note)
        self._report(note)

    def _report(self, note: str = "") -> None:
        with self._telling:
            self._tell(Progress(self._done, self._total, note))
