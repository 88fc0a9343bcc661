"""What a command line answers: nearest words, help, examples, quiet and loud."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys

import pytest

from evomerge_cli.__main__ import GOES_ON, main
from evomerge_cli.arguments import COMMANDS, classic_parser, make_parser, parse
from evomerge_cli.command_line import Parser
from evomerge_cli.console import Console
from evomerge_cli.examples import EXAMPLES
from evomerge_cli.failure import guarded

Capture = pytest.CaptureFixture[str]
MODULES = {"--help": 115, "run --help": 145}
"""How many modules a help may import; it did 95 and 120 when this was written, which take 0.06 and 0.14 s."""


def every_parser() -> list[Parser]:
    return [*make_parser().walk(), classic_parser()]


@pytest.mark.parametrize(
    ("line", "nearest", "help_of"),
    [
        ("run --sed 3", "--seed", "evomerge run"),
        ("run --evaluation=3", "--evaluations", "evomerge run"),
        ("merge --dry-rum", "--dry-run", "evomerge merge"),  # before the two words that are missing
        ("runs wach x", "watch", "evomerge runs"),
        ("runs watch x --serber y", "--server", "evomerge runs watch"),
        ("--verbos run x", "--verbose", "evomerge"),
        ("exprot a b", "export", "evomerge"),
        ("help exprot", "export", "evomerge"),
        ("completion bsh", "bash", "evomerge completion"),
    ],
)
def test_a_near_miss_is_told_the_word_and_whose_help_to_read(
    line: str, nearest: str, help_of: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"did you mean '{nearest}'?" in error
    assert error.endswith(f"(see: {help_of} --help)\n")


@pytest.mark.parametrize(
    ("line", "begins"),
    [
        ("", "usage: evomerge "), ("help", "usage: evomerge "), ("help run", "usage: evomerge run "),
        ("help runs watch", "usage: evomerge runs watch "), ("runs", "usage: evomerge runs "),
        ("models", "usage: evomerge models "), ("gguf", "usage: evomerge gguf "),
    ],
)  # fmt: skip
def test_help_is_no_error(line: str, begins: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(begins)


@pytest.mark.parametrize("text", ["-1", "a -b", "-0.5"])
def test_what_is_no_flag_is_none(text: str) -> None:
    assert parse(["generate", "model", "--prompt", text]).prompt == text
    assert parse(["bench", "merge", "--anything", text]).rest == ["--anything", text]


def test_every_word_that_can_be_typed_has_a_help_text() -> None:
    silent = [
        f"{parser.prog} {action.dest}"
        for parser in every_parser()
        for action in parser.actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert not silent


def test_every_command_has_examples_and_each_can_be_typed(capsys: Capture) -> None:
    names = {parser.prog.partition(" ")[2] for parser in make_parser().walk()} - {""}
    assert set(EXAMPLES) == names
    for name, text in EXAMPLES.items():
        lines = re.findall(r"^  (evomerge .*?)(?:  .*)?$", text, flags=re.MULTILINE)
        assert lines, name
        for line in lines:
            words = shlex.split(re.split(r" [>&]", line)[0])[1:]
            if words[0] != "help":
                assert parse(words).command == words[0] == name.split()[0]
    with pytest.raises(SystemExit):
        parse(["merge", "--help"])
    assert f"examples:\n{EXAMPLES['merge']}" in capsys.readouterr().out


def test_quiet_says_the_result_and_errors_alone(capsys: Capture) -> None:
    for line in ("run x --quiet", "--quiet run x"):
        assert parse(line.split()).quiet
    console = Console(quiet=True)
    console.say("story")
    console.out("result")
    console.error("error")
    assert capsys.readouterr() == ("result\n", "error\n")
    with pytest.raises(SystemExit):
        parse(["run", "x", "--quiet", "--verbose"])


def test_an_interrupted_command_says_how_it_goes_on(capsys: Capture) -> None:
    def stopped() -> int:
        raise KeyboardInterrupt

    console = Console(again="evomerge run 'my spec.yaml' --out out")
    assert guarded(stopped, console) == 130
    assert capsys.readouterr().err == "\nstopped\n"
    console.when_interrupted = "stopped; to go on from here"
    assert guarded(stopped, console) == 130
    assert capsys.readouterr().err == "\nstopped; to go on from here: evomerge run 'my spec.yaml' --out out\n"
    assert set(COMMANDS) >= GOES_ON


@pytest.mark.parametrize("line", MODULES)
def test_help_imports_little(line: str) -> None:
    code = (
        "import sys; from evomerge_cli.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(len(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=True)
    assert int(done.stderr) <= MODULES[line]
