"""One small run by the real command, and what an operator finds of one candidate: its lines in the logs, its trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny_family import write_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Observed:
    """A run that is done.

    Attributes:
        events: its log, a dictionary an event.
        lines: all lines of all services' logs, the service before each.

    """

    out: Path
    events: list[dict[str, Any]]
    lines: list[str]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def grep(self, *words: str) -> list[str]:
        return [line for line in self.lines if all(word in line for word in words)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    spec = write_family(tmp_path_factory.mktemp("family"))
    search = {"evaluations": 7, "population": 3}
    spec.write_text(yaml.safe_dump({**yaml.safe_load(spec.read_text()), "search": search}))
    out = spec.parent / "out"
    environ = {
        **os.environ,
        "EVOMERGE_MODEL_STORE": str(spec.parent / "store"),
        "EVOMERGE_STATE_DIR": str(spec.parent / "state"),
        "EVOMERGE_SCORE_CACHE": "off",
    }
    command = [sys.executable, "-m", "evomerge_cli", "run", str(spec), "--out", str(out)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return Observed(
        out,
        [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()],
        [f"{file.name}: {line}" for file in sorted((out / ".evomerge/logs").glob("*.log*"))
         for line in file.read_text().splitlines()],
    )  # fmt: skip


def test_grep_of_a_digest_finds_a_candidates_life_in_the_logs(observed: Observed) -> None:
    merged = [one["recipe_digest"] for one in observed.all("CandidateMerged")]
    assert merged
    for digest in merged:
        short = digest[:12]
        (proposed,) = observed.grep("selector.log", short, "decided", "CandidateProposed", "candidate")
        assert observed.grep("merger.log", short, "job done", "job_id", "run_id", "attempt")
        assert observed.grep("selector.log", short, "result taken in", "CandidateMerged")
        assert observed.grep("evaluator.log", short, "job done", "evaluate-search")
        assert observed.grep("selector.log", short, "result taken in", "CandidateEvaluated", "fitness")
        # The models that it stands on, and where each came from: their digests are in the downloader's lines.
        for model in observed.all("ModelReady"):
            said = f"{model['model']['reference']}@{model['model']['digest'].removeprefix('sha256:')[:12]}"
            assert said in proposed
            assert observed.grep("downloader.log", "model ready", said, "job_id")
    champion = observed.all("RunFinished")[0]["champion_digest"]
    assert observed.grep("selector.log", champion[:12], "decided", "ChampionChanged")
    assert observed.grep("merger.log", champion[:12], "job done", "export")
