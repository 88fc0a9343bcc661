"""The fork servers of embedded stacks: what services and scoring import is imported once, from the command's first
moment on.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from evomerge_common.runtime import fork_server

SCORING = ("evomerge_scoring.preload",)
SERVICES = ("evomerge_cli.stack.preload",)


@dataclass
class Libraries:
    """The servers' names, by which they are asked; empty: there is none.

    Attributes:
        scoring: has torch and transformers.
        services: has what all services import.

    """

    scoring: str = ""
    services: str = ""


@dataclass
class _Servers:
    libraries: Libraries = field(default_factory=Libraries)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    users: int = 0

    @contextlib.contextmanager
    def imported(self) -> Iterator[Libraries]:
        """Has servers of this process run meanwhile, the same for all; yields their names.

        Their imports begin at once, and nobody waits for them. They end with the last who uses them, and with the
        thread of the first.
        """
        if not self.users:
            self.libraries = Libraries(services=self._start(SERVICES), scoring=self._start(SCORING))
        self.users += 1
        try:
            yield self.libraries
        finally:
            self.users -= 1
            if not self.users:
                for process in self.processes:
                    process.kill()  # and with it goes what it forked
                for process in self.processes:
                    process.wait()
                self.processes, self.libraries = [], Libraries()

    def _start(self, modules: tuple[str, ...]) -> str:
        if (started := fork_server.start(modules)) is None:
            return ""
        self.processes.append(started[0])
        return started[1]


imported = _Servers().imported
