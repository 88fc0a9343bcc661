"""The compose stack, as a user starts it, with fakes of images that no registry serves in CI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
OVERRIDE = ROOT / ".ci" / "compose.ci.yml"


def run(*command: str | Path, timeout: float = 120, check: bool = True, **options: Any) -> str:
    """Standard output of a command; a failure shows both streams."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    if check and done.returncode:
        pytest.fail(
            f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def grpcurl(port: int | str, method: str, data: dict[str, Any] | None = None, timeout: float = 60) -> list[Any]:
    """What a user's grpcurl answers: one value for each message."""
    given = [] if data is None else ["-d", json.dumps(data)]
    text = run(BIN / "grpcurl", "-plaintext", *given, f"127.0.0.1:{port}", method, timeout=timeout)
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        value, place = decoder.raw_decode(text, place)
        found.append(value)
        place += len(text[place:]) - len(text[place:].lstrip())
    return found


@dataclass
class Stack:
    """The running stack. `models` is mounted as /models."""

    models: Path
    environ: dict[str, str]

    def compose(self, *words: str, timeout: float = 120, check: bool = True) -> str:
        files = ["-f", "docker-compose.yml", "-f", str(OVERRIDE), "-p", os.environ.get("TEST_PROJECT", "evomerge-test")]
        return run("docker", "compose", *files, *words, timeout=timeout, check=check, cwd=ROOT, env=self.environ)


def write_models(folder: Path) -> list[str]:
    """Two tiny models that the services' user may read; their names."""
    from helpers.tiny_models import make

    names = ["one", "two"]
    for seed, name in enumerate(names):
        make(folder / name, seed=seed)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return names


def sums() -> dict[str, Any]:
    """A task of twenty items."""
    items = [{"prompt": f"{a} + {b} =", "choices": [f" {a + b}", f" {a - b}"], "answer": 0}
             for a in range(5) for b in range(4)]  # fmt: skip
    return {"name": "sums", "kind": "multiple_choice", "items": items}
