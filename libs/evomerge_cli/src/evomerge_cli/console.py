"""What the user sees: data on stdout, the story of how it came about on stderr. Rich on a terminal, plain otherwise."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, TextIO


class Console:
    """One command's voice.

    Args:
        json_output: `data` prints JSON instead of tables.
        verbose: `detail` speaks.
        quiet: `say` does not.
        again: the command line, to be typed again.

    Attributes:
        when_interrupted: what an interrupted command is to be given again for; empty: it begins anew.

    """

    def __init__(
        self,
        *,
        json_output: bool = False,
        verbose: bool = False,
        quiet: bool = False,
        again: str = "",
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json_output = json_output
        self.verbose = verbose
        self.quiet = quiet
        self.again = again
        self.when_interrupted = ""
        self.log_hint = ""
        self._stdout = stdout
        self._stderr = stderr

    @property
    def stdout(self) -> TextIO:
        """Returns stdout, looked up at each use, so that pytest's capture and redirections are seen."""
        return self._stdout or sys.stdout

    @property
    def stderr(self) -> TextIO:
        """Returns stderr, looked up at each use."""
        return self._stderr or sys.stderr

    @property
    def is_terminal(self) -> bool:
        """Tells whether a progress bar makes sense."""
        return self.stderr.isatty() and not self.quiet

    def say(self, text: str) -> None:
        """Writes a line of the story, unless --quiet."""
        if not self.quiet:
            print(text, file=self.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Writes a line of the story that only --verbose shows."""
        if self.verbose:
            self.say(text)

    def error(self, text: str) -> None:
        """Writes an error to stderr."""
        print(text, file=self.stderr, flush=True)

    def traceback(self) -> None:
        """Writes the traceback of the exception at hand to stderr."""
        traceback.print_exc(file=self.stderr)

    def data(self, value: Any) -> bool:
        """Prints the value as JSON if that was asked for; tells whether it was."""
        if self.json_output:
            print(json.dumps(value, indent=2, ensure_ascii=False), file=self.stdout, flush=True)
        return self.json_output

    def out(self, text: str) -> None:
        """Writes a line of the answer itself."""
        print(text, file=self.stdout, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
        """Writes a table; the first column is text, the others numbers or short words. The last row may be emphasised
        by its caller's words alone: no meaning is carried by colour.
        """
        if self.stdout.isatty():
            from rich.console import Console as RichConsole
            from rich.table import Table
            from rich.text import Text

            table = Table(title=title or None, title_justify="left", header_style="bold")
            for index, name in enumerate(columns):
                table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            RichConsole(file=self.stdout).print(table)
            return
        widths = [max(len(str(row[i])) for row in (columns, *rows)) for i in range(len(columns))]
        if title:
            self.out(title)
        for row in (columns, ["-" * width for width in widths], *rows):
            cells = [
                str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            self.out("  ".join(cells).rstrip())


@contextlib.contextmanager
def service_logs(console: Console) -> Iterator[None]:
    """Sends what a service's code logs in this process to stderr, warnings alone unless --verbose: it is no data."""
    import structlog

    if structlog.is_configured():
        yield
        return
    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(console.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if console.verbose else logging.WARNING),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
