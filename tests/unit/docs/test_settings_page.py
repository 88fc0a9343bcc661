"""docs/settings.md says what the settings' docstring says, and tells of every variable that any code reads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/settings.md"
FOLDERS = ("libs", "services", "deploy", "scripts", "benchmarks", ".ci")
FILES = ("docker-compose.yml", "Makefile")


def tracked(*paths: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/settings", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_variable_that_code_reads_is_on_the_page() -> None:
    page = set(re.findall(r"EVOMERGE_[A-Z0-9_]+", PAGE.read_text()))
    for path in tracked(*FOLDERS, *FILES):
        if path.suffix in {".md", ".c", ".jsonl"}:
            continue
        read = set(re.findall(r"\bEVOMERGE_[A-Z0-9_]*[A-Z0-9]\b(?!_)", path.read_text(errors="replace")))
        assert read <= page, (path.relative_to(ROOT), read - page)
