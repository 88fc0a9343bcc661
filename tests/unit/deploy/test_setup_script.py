"""scripts/setup, on a machine that lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    "constraints.txt", "requirements-dev.txt", "libs/a/pyproject.toml", "services/b/pyproject.toml", "libs/a/setup.py",
    "libs/a/src/a/native/kernels.c",
)  # fmt: skip


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_setup_says_what_to_install_and_installs_nothing_of_the_system(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup", tmp_path / "scripts/setup")
    python, called = tmp_path / "bin/python-without-ensurepip", tmp_path / "called"
    program(python, f'[ "$2" = venv ] && exit 1\nexec {sys.executable} "$@"')
    for name in ("apt-get", "sudo"):
        program(tmp_path / "bin" / name, f"touch {called}")
    environ = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": str(python)}
    done = subprocess.run(
        [tmp_path / "scripts/setup", "run"], env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"install it with: sudo apt-get install python{version}-venv" in done.stderr
    assert not called.exists()
    assert not (tmp_path / ".venv").exists()
