"""A kind of task is added by one file and its entry point: here in a package made on the spot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evomerge_common.domain.kinds import kind_of
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import SuiteError
from evomerge_common.runtime.suite_file import load_suite
from evomerge_evaluator.fitness_cache import item_digests
from evomerge_scoring import score_folder
from helpers.tiny_models import make

KIND = '''
from evomerge_common.domain.kinds import Choices, Kind


class Antonyms(Kind):
    """Which of two words is the opposite."""

    name = "antonyms"
    summary = "the opposite of a word against the word itself"
    fields = ("word", "opposite")
    texts = filled = fields
    metrics = ("acc",)
    options = {"template": "The opposite of {word} is"}
    document_field = "word"

    def requests(self, task, content):
        prompt = task.options["template"].replace("{word}", content["word"])
        return [Choices(prompt, [" " + content["opposite"], " " + content["word"]])]

    def score(self, task, content, answers):
        (right, wrong), = answers
        return float(right > wrong)
'''
ENTRY_POINT = "[evomerge.tasks]\nantonyms = evomerge_antonyms:Antonyms\n"
SUITE = """
holdout: 0.5
tasks:
- {name: opposites, kind: antonyms, data: words.jsonl}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's two files, as pip would install them."""
    site = tmp_path / "site"
    (site / "evomerge_antonyms-1.0.dist-info").mkdir(parents=True)
    (site / "evomerge_antonyms.py").write_text(KIND)
    (site / "evomerge_antonyms-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINT)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "evomerge_antonyms", raising=False)
    return site


def test_two_files_make_a_kind_that_scores(package: Path, tmp_path: Path) -> None:
    assert len([path for path in package.rglob("*") if path.is_file()]) == 2
    lines = [f'{{"word": "good {n}", "opposite": "bad {n}"}}\n' for n in range(12)]
    (tmp_path / "words.jsonl").write_text("".join(lines))
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite = load_suite(tmp_path / "suite.yaml")
    assert Suite.from_json(suite.to_json()) == suite
    report = score_folder(make(tmp_path / "model"), suite, "all", device="cpu")
    (score,) = report.scores
    assert score.metric == "acc"
    assert set(score.item_scores) <= {0.0, 1.0}
    assert len(set(item_digests(suite.tasks[0], suite.tasks[0].items))) == 12
    with pytest.raises(SuiteError, match="needs 'opposite'"):
        Suite.from_dict({"tasks": [{"name": "a", "kind": "antonyms", "items": [{"word": "x"}]}]})


def test_a_kind_that_nobody_installed_is_named() -> None:
    with pytest.raises(SuiteError, match="unknown kind of task 'antonym_s'"):
        kind_of("antonym_s")
