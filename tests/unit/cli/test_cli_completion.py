"""Completion in real shells: what Tab puts on the line."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge_cli.completion import script

CASES = {
    "evomerge exp": "export",
    "evomerge runs wat": "watch",
    "evomerge run --evaluati": "--evaluations",
    "evomerge run --ps-technique1 sl": "slerp",
    "evomerge run my-": "my-spec.yaml",
    "evomerge report my-": "my-run",
}
"""What is on the line, and a word that Tab offers."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-spec.yaml").write_text("")
    (tmp_path / "my-run/.evomerge").mkdir(parents=True)
    (tmp_path / "my-run/.evomerge/run.json").write_text("{}")
    return tmp_path


def environ(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "EVOMERGE_STATE_DIR": str(folder / "state"), "TERM": "dumb"}


def ask(shell: str, code: str, folder: Path) -> str:
    done = subprocess.run(
        [shell, "-c", code], capture_output=True, text=True, check=True, cwd=folder, env=environ(folder), timeout=60
    )
    return done.stdout


def test_bash_completes(folder: Path) -> None:
    lines = [script("bash")]
    for line in CASES:
        words = line.split()
        lines += [
            f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}",
            f"COMP_TYPE=9; COMPREPLY=(); _python_argcomplete {words[0]} {words[-1]} {words[-2]} 2>/dev/null",
            'echo "${COMPREPLY[@]}"',
        ]
    answers = ask("bash", "\n".join(lines), folder).splitlines()
    for (line, word), answer in zip(CASES.items(), answers, strict=True):
        assert word in answer.split(), f"{line}: {answer}"


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
def test_fish_completes(folder: Path) -> None:
    asked = "\n".join(f"complete -C {shlex.quote(line)} | string join ' '; echo ." for line in CASES)
    answers = ask("fish", script("fish") + asked, folder).split("\n.\n")
    for (line, word), answer in zip(CASES.items(), answers, strict=False):
        assert any(one.startswith(word) for one in answer.split()), f"{line}: {answer}"


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_completes(folder: Path) -> None:
    (folder / "_evomerge").write_text(script("zsh"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], environ(folder))

    def type_until(typed: str, awaited: bytes) -> bytes:
        os.write(terminal, typed.encode())
        screen = b""
        while awaited not in screen and select.select([terminal], [], [], 10.0)[0]:
            screen += os.read(terminal, 4096)
        return screen

    try:
        type_until(f"autoload -U compinit; compinit -D -u; . {folder}/_evomerge; print rea''dy\n", b"ready")
        assert b"watch" in type_until("evomerge runs wat\t", b"watch")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
