"""argparse as we want it: unknown words answered with the nearest valid one, help that ends in examples."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from evomerge_cli.examples import EXAMPLES
from evomerge_common.errors import did_you_mean

_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


class Parser(argparse.ArgumentParser):
    """argparse, except that an unknown command, flag or choice is answered with the nearest valid word, and every error
    with the help of the command at hand.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})
        if (words := self.prog.partition(" ")[2]) in EXAMPLES:
            self.epilog = f"examples:\n{EXAMPLES[words]}"

    @property
    def actions(self) -> Sequence[argparse.Action]:
        """Returns what can be typed, subcommands included."""
        return self._actions

    @property
    def commands(self) -> dict[str, Parser]:
        """Returns the parsers of the subcommands by name; empty when there are none."""
        groups = [one for one in self._actions if isinstance(one, argparse._SubParsersAction)]
        return {name: parser for group in groups for name, parser in group.choices.items()}

    def walk(self) -> Iterator[Parser]:
        """Goes through this parser and all below it."""
        yield self
        for parser in self.commands.values():
            yield from parser.walk()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses as argparse does, unknown flags first: what else is missing would hide them."""
        self.refuse_unknown(self._own_words(args or ()), self._option_string_actions)
        return super().parse_known_args(args, namespace)

    def refuse_unknown(self, words: Iterable[str], flags: Iterable[str]) -> None:
        """Ends the program when a word looks like a flag and is none of these."""
        for word in words:
            name = word.partition("=")[0]
            if len(word) > 1 and word[0] == "-" and " " not in word and not _NUMBER.fullmatch(word):
                known = name in flags if name.startswith("--") else word[:2] in flags
                if not known:
                    hint = did_you_mean(name, flags)
                    self.error(f"unknown flag {name!r}" + (f"; {hint}" if hint.startswith("did") else ""))

    def _own_words(self, args: Iterable[str]) -> Iterator[str]:
        """The words that no subcommand and no other program reads."""
        handed_on = self.commands or any(one.nargs == argparse.REMAINDER for one in self._actions)
        for word in args:
            if word == "--" or (handed_on and not word.startswith("-")):
                return
            yield word

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            kind = "command" if isinstance(action, argparse._SubParsersAction) else "value"
            raise argparse.ArgumentError(
                action, f"unknown {kind} {value!r}; {did_you_mean(str(value), map(str, action.choices))}"
            )

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2 and the help of the command at hand."""
        self.exit(2, f"error: {message}\n(see: {self.prog} --help)\n")
