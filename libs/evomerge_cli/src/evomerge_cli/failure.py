"""Where every exception of the CLI ends: a sentence on stderr and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from evomerge_cli.console import Console
from evomerge_common.errors import EvoMergeException, InvalidInput, is_disk_full

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP, raised where the main thread was."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


def interrupt_on_signals() -> None:
    """Makes SIGTERM and SIGHUP end a command as Ctrl-C does: through its `finally` blocks."""

    def raise_interrupted(number: int, _frame: object) -> None:
        # A second signal during the clean-up must not break it off half-way.
        for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, raise_interrupted)


def exit_code(error: BaseException) -> int:
    """Returns the exit code that an exception becomes."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + getattr(error, "number", signal.SIGINT)
    return BAD_INPUT if isinstance(error, InvalidInput) else FAILED


def guarded(command: Callable[[], int], console: Console) -> int:
    """Runs a command and tells how it failed, if it did."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        again = f"{console.when_interrupted}: {console.again}" if console.when_interrupted else "stopped"
        console.error(f"\n{again}")
        return exit_code(stop)
    except EvoMergeException as error:
        if console.verbose:
            console.traceback()
        console.error(f"error: {error}")
        return exit_code(error)
    except BrokenPipeError:
        # The reader (head, less) went away: nothing more to say, to anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if isinstance(error, OSError) and is_disk_full(error):
            where = f" for {error.filename}" if error.filename else ""
            console.error(f"error: no room is left on the disk{where}: free some and run the same command again")
            return FAILED
        console.traceback()
        console.error(f"error: this is a bug in EvoMerge: {type(error).__name__}: {error}")
        if console.log_hint:
            console.error(f"the log is at {console.log_hint}")
        return FAILED
