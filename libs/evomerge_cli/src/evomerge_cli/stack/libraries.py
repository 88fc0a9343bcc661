"""The fork server of embedded stacks: torch and transformers imported once, from the command's first moment on."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from evomerge_common.runtime import fork_server

PRELOADED = ("evomerge_scoring.preload",)


class _Libraries:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._users = 0
        self.environ: dict[str, str] = {}

    @contextlib.contextmanager
    def imported(self) -> Iterator[dict[str, str]]:
        """Has a server of this process run meanwhile, the same for all; yields what tells processes of it.

        Its imports begin at once, and nobody waits for them. It ends with the last who uses it, and with the thread
        of the first.
        """
        if not self._users and (started := fork_server.start(PRELOADED)):
            self._process, name = started
            self.environ = {fork_server.ADDRESS: name}
        self._users += 1
        try:
            yield self.environ
        finally:
            self._users -= 1
            if not self._users and self._process is not None:
                self._process.kill()  # and with it goes what it forked
                self._process.wait()
                self._process, self.environ = None, {}


imported = _Libraries().imported
