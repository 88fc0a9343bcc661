"""mergekit-evolve's files: what search they mean, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evomerge_cli import spec_source
from evomerge_cli.arguments import parse
from evomerge_cli.spec_source import Prepared, prepare
from evomerge_common.domain.messages import Model
from evomerge_common.domain.spec import RunSpec
from evomerge_common.errors import InvalidInput
from evomerge_selector.domain.proposer import search_space

EVOLVE = """\
genome:
  models:
    - org/one
    - org/two
    - org/three
  merge_method: dare_ties
  base_model: org/base
  layer_granularity: 8
  normalize: true
  allow_negative_weights: true
  filters:
    - self_attn
    - mlp
tasks:
  - name: gsm8k
    weight: 0.7
    metric: exact_match,strict-match
  - name: wikitext
    weight: -0.3
    metric: word_perplexity,none
  - name: arc_easy
limit: 50
num_fewshot: 5
"""


@pytest.fixture(autouse=True)
def _no_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items in place of those that the harness would load."""

    def expanded(task: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**task, "items": [{"id": f"{task['task']}:{i}", "document": f"{i:064x}"} for i in range(20)]}

    monkeypatch.setattr(spec_source, "expand_task", expanded)


def read(folder: Path, text: str, *flags: str) -> Prepared:
    path = folder / "evolve.yml"
    path.write_text(text)
    return prepare(parse(["run", str(path), *flags]))


def test_genome_tasks_weights_and_search(tmp_path: Path) -> None:
    prepared = read(tmp_path, EVOLVE)
    spec, search = prepared.spec, prepared.spec.search
    assert (spec.models, spec.base) == (("org/one", "org/two", "org/three"), "org/base")
    assert (search.strategy, search.methods, search.evaluations) == ("cmaes", ("dare_ties",), 100)
    assert search.layer_granularity == 8
    found = [(t.name, t.kind, t.weight, t.metric, t.options["filter"]) for t in prepared.suite.tasks]
    assert found == [
        ("gsm8k", "lm_eval", 0.7, "exact_match", "strict-match"),
        ("wikitext", "lm_eval", 0.3, "word_perplexity", ""),
        ("arc_easy", "lm_eval", 1.0, "acc", ""),
    ]
    assert all(t.options["num_fewshot"] == 5 for t in prepared.suite.tasks)
    for word in ("CMA-ES", "filters", "allow_negative_weights", "normalize", "word_perplexity", "apply_chat_template"):
        assert sum(word in note for note in prepared.notes) == 1, (word, prepared.notes)
    assert RunSpec.from_json(spec.to_json()) == spec


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    prepared = read(tmp_path, EVOLVE, "--evaluations", "12", "--seed", "3", "--suite", "general")
    assert (prepared.spec.search.evaluations, prepared.spec.seed, prepared.suite.name) == (12, 3, "general")


def test_without_granularity_all_layers_have_one_weight(tmp_path: Path) -> None:
    spec = read(tmp_path, EVOLVE.replace("  layer_granularity: 8\n", "")).spec
    assert (spec.search.layer_groups, spec.search.layer_granularity) == (1, 0)


@pytest.mark.parametrize(("layers", "groups"), [(32, 4), (30, 4), (6, 1)])
def test_a_granularity_counts_the_models_layers(tmp_path: Path, layers: int, groups: int) -> None:
    spec = read(tmp_path, EVOLVE).spec
    models = {name: Model(reference=name, digest=name, num_layers=layers) for name in spec.sources}
    assert search_space(spec, models).spans_count == groups


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("layer_granularity", "layer_granularty"), r"evolve.yml:8: genome.layer_granularty: .*'layer_granularity'"),
        (("merge_method: dare_ties", "merge_method: passthrough"), r"evolve.yml:6: genome.merge_method: CMA-ES"),
        (("metric: exact_match,strict-match", "metrc: acc"), r"evolve.yml:17: tasks\[0\].metrc: .*'metric'"),
        (("metric: word_perplexity,none", "metric: acc"), r"evolve.yml:19: tasks\[1\].weight: .*below zero"),
        (("limit: 50", "limt: 50"), r"evolve.yml:22: limt: .*'limit'"),
        (("  models:\n", "  model:\n"), r"evolve.yml:2: genome.model: .*'models'"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read(tmp_path, EVOLVE.replace(*change))


def test_tasks_of_ones_own_are_found_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("dataset_path: json\ntask: arc_easy\n")
    (folder / "b.yaml").write_text("task: gsm8k_of_mine\n")
    prepared = read(tmp_path, EVOLVE, "--task-search-path", str(tmp_path / "mine"))
    found = {task.name: task.options.get("folder", "") for task in prepared.suite.tasks}
    assert found == {"gsm8k": "", "wikitext": "", "arc_easy": str(tmp_path / "mine")}
    with pytest.raises(InvalidInput, match="no folder of task files"):
        read(tmp_path, EVOLVE, "--task-search-path", str(tmp_path / "nowhere"))
