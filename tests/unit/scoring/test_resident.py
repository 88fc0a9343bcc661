"""The resident model: swapping tensors equals loading afresh, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import (
    EvoMergeException,
    ModelNotFound,
    NotAModel,
    OutOfMemory,
    ShapeMismatch,
    UnsafeFile,
)
from evomerge_merging import merge_recipe, plan_merge
from evomerge_models.pair import write_pair
from evomerge_scoring import forward, score_folder
from evomerge_scoring.batches import compose
from evomerge_scoring.devices import choose_threads
from evomerge_scoring.scorer import Scorer
from helpers.scoring import resident, score, score_plan, score_tensors
from helpers.tiny_models import CHOICES, PROMPTS, TEXTS, make, suite_of

SUITE = Suite.from_dict(
    {
        "holdout": 0, "batch_size": 4,
        "tasks": [
            {"name": "a", "kind": "multiple_choice", "items": CHOICES},
            {"name": "b", "kind": "exact_match", "items": [{"prompt": p, "answer": "x"} for p in PROMPTS]},
            {"name": "c", "kind": "perplexity", "items": [{"text": t} for t in TEXTS]},
        ],
    }
)  # fmt: skip


def fresh(folder: Path) -> tuple[Any, ...]:
    return score(Scorer(device="cpu"), folder, SUITE).scores


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"kind": "gpt2"}, {"kind": "bert"}])
def test_a_swap_scores_bit_for_bit_as_a_fresh_load(tmp_path: Path, options: dict[str, Any]) -> None:
    folders = [make(tmp_path / str(seed), seed=seed, **options) for seed in range(3)]
    suite = suite_of("perplexity", [{"text": t.lower()[:40]} for t in TEXTS]) if "kind" in options else SUITE
    scorer = Scorer(device="cpu")
    for folder in [*folders, folders[0]]:
        assert score(scorer, folder, suite).scores == score_folder(folder, suite, "all").scores
    assert len({score(scorer, folder, suite).scores for folder in folders}) == 3
    assert (resident(scorer).loads, resident(scorer).swaps) == (1, 6)


def test_bfloat16_weights_swap_too(tmp_path: Path) -> None:
    folders = []
    for seed in range(2):
        folder = make(tmp_path / str(seed), seed=seed)
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
        folders.append(folder)
    scorer = Scorer(device="cpu")
    for folder in folders:
        report = score(scorer, folder, SUITE)
        assert report.scores == fresh(folder)
        assert report.device == "cpu float32 1 thread"
    assert resident(scorer).swaps == 1


def test_another_config_or_another_tying_is_loaded_afresh(tmp_path: Path) -> None:
    scorer = Scorer(device="cpu")
    folders = [
        make(tmp_path / "a"),
        make(tmp_path / "b", num_hidden_layers=1),
        make(tmp_path / "c", "qwen2"),
        make(tmp_path / "d", tie_word_embeddings=True),
    ]
    for folder in folders:
        assert score(scorer, folder, SUITE).scores == fresh(folder)
    assert resident(scorer).loads == 4
    single = folders[3] / "model.safetensors"
    tensors = load_file(single)
    assert "lm_head.weight" not in tensors
    same = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(same, single, metadata={"format": "pt"})
    assert score(scorer, folders[3], SUITE).scores == fresh(folders[3])
    assert resident(scorer).loads == 4, "both names of a tied tensor, alike"


def test_tensors_in_memory_score_as_their_folder(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b", seed=1)
    scorer = Scorer(device="cpu")
    for folder in (first, second):
        tensors = load_file(folder / "model.safetensors")
        assert score_tensors(scorer, tensors, first, SUITE).scores == fresh(folder)
    assert (resident(scorer).loads, resident(scorer).swaps) == (1, 1)


def test_shards_and_pytorch_files_are_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    expected = fresh(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    scorer = Scorer(device="cpu")
    assert score(scorer, folder, SUITE).scores == expected
    assert score(scorer, tmp_path / "sharded", SUITE).scores == expected
    assert resident(scorer).swaps == 1
    shutil.copytree(folder, tmp_path / "bin", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert score(scorer, tmp_path / "bin", SUITE).scores == expected


class Bomb:
    """Would run on unpickling."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = make(tmp_path / "whole")

    def variant(name: str, change: dict[str, Any] | None = None, drop: str = "") -> Path:
        folder = tmp_path / name
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(drop) if drop else None)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **(change or {})}))
        return folder

    cases: list[tuple[Path, type[EvoMergeException], str]] = [
        (tmp_path / "nowhere", ModelNotFound, "no folder"),
        (variant("bare", drop="*.safetensors"), NotAModel, "no weights"),
        (variant("wide", {"hidden_size": 64}), ShapeMismatch, r"has shape \[.*32.*the config asks for \[.*64"),
        (variant("deep", {"num_hidden_layers": 3}), NotAModel, "9 tensors are missing"),
        (variant("odd", {"model_type": "lama"}), NotAModel, "lama"),
        (
            variant("code", {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}), UnsafeFile,
            "never runs a model's code",
        ),
    ]  # fmt: skip
    (tmp_path / "code" / "mine.py").write_text("import pathlib; pathlib.Path('exploded').touch()")
    pickled = variant("pickled", drop="*.safetensors")
    torch.save({"model.norm.weight": Bomb()}, pickled / "pytorch_model.bin")
    cases.append((pickled, UnsafeFile, "cannot be read safely"))
    cut_short = variant("cut")
    data = (cut_short / "model.safetensors").read_bytes()
    (cut_short / "model.safetensors").write_bytes(data[: len(data) // 2])
    cases.append((cut_short, UnsafeFile, "cut short"))
    broken = variant("broken")
    (broken / "tokenizer.json").write_text("{}")
    cases.append((broken, NotAModel, "cannot be loaded"))
    scorer = Scorer(device="cpu")
    for folder, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            score(scorer, folder, SUITE)
        assert str(folder) in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    assert score(scorer, whole, SUITE).scores == fresh(whole), "the next candidate is not affected"


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path)
    expected = fresh(folder)
    real = forward._score
    sizes: list[int] = []

    def small(limit: int) -> Any:
        def score(model: Any, rows: list[Any]) -> Any:
            sizes.append(len(rows))
            if len(rows) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, rows)

        return score

    monkeypatch.setattr(forward, "_score", small(1))
    report = score(Scorer(device="cpu"), folder, SUITE)
    assert 2 in sizes
    assert report.device.endswith(", batches halved"), "the record says what may show in last bits"
    assert [s.score for s in report.scores] == pytest.approx([s.score for s in expected], abs=1e-5)
    monkeypatch.setattr(forward, "_score", small(0))
    with pytest.raises(OutOfMemory, match="one item alone"):
        fresh(folder)


def test_threads_follow_from_the_model_and_the_job_alone() -> None:
    assert [choose_threads(4, parameters=n) for n in (10**6, 10**7, 10**9)] == [1, 4, 4]
    assert choose_threads(0, parameters=10**9) == 1


def test_batches_depend_on_lengths_alone() -> None:
    assert compose([3, 9, 3, 5, 9], 2) == [[1, 4], [3, 0], [2]]
    assert compose([5, 6, 7], 8, fits=lambda rows, longest: rows * longest <= 13) == [[2], [1, 0]]
    assert compose([100], 8, fits=lambda *_: False) == [[0]]
    assert compose([], 8) == []


def adapter_of(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        model.save_pretrained(folder)
    return folder


def test_of_adapters_only_what_they_change_is_swapped(tmp_path: Path) -> None:
    """Over one base, in any order with whole models in between, and bit for bit as from files."""
    base, other = make(tmp_path / "base"), make(tmp_path / "other", seed=5)
    pairs = []
    for seed in range(2):
        pairs.append(tmp_path / f"pair-{seed}")
        pairs[-1].mkdir()
        write_pair(pairs[-1], base, adapter_of(base, tmp_path / f"adapter-{seed}", seed))
    names = [(ModelReference(str(pair)), {"weight": 0.6}) for pair in pairs]
    recipes = [Recipe.of_models("task_arithmetic", names, base=ModelReference(str(base)))]
    recipes += [Recipe.of_source(reference) for reference, _ in names]
    expected = []
    for i, recipe in enumerate(recipes):
        merge_recipe(recipe, {}, tmp_path / f"merged-{i}")
        expected.append(fresh(tmp_path / f"merged-{i}"))
    assert len(set(expected)) == 3
    scorer = Scorer(device="cpu")
    backend = resident(scorer)
    assert score(scorer, base, SUITE).scores == fresh(base)
    total = len(load_file(base / "model.safetensors"))
    for i in (1, 0, 2, 1):
        before = backend.copied
        if i:
            assert score(scorer, pairs[i - 1], SUITE).scores == expected[i]
        else:
            with plan_merge(recipes[0]) as plan:
                assert score_plan(scorer, plan, SUITE).scores == expected[0]
        assert backend.copied - before == 4, "two matrices in each of two layers"
    before = backend.copied
    assert score(scorer, base, SUITE).scores == fresh(base)
    assert backend.copied - before == 4
    assert score(scorer, other, SUITE).scores == fresh(other)
    before = backend.copied
    assert score(scorer, pairs[0], SUITE).scores == expected[1]
    assert backend.copied - before == total
    assert backend.loads == 1


def test_an_adapter_with_a_head_of_its_own_over_a_tied_base(tmp_path: Path) -> None:
    base = make(tmp_path / "base", tie_word_embeddings=True)
    adapter = adapter_of(base, tmp_path / "adapter", 1, modules_to_save=["embed_tokens"])
    (tmp_path / "pair").mkdir()
    write_pair(tmp_path / "pair", base, adapter)
    merge_recipe(Recipe.of_source(ModelReference(str(base), adapter=str(adapter))), {}, tmp_path / "merged")
    scorer = Scorer(device="cpu")
    for folder in (base, tmp_path / "pair", base, tmp_path / "pair"):
        same_as = tmp_path / "merged" if folder.name == "pair" else base
        assert score(scorer, folder, SUITE).scores == fresh(same_as)


def test_a_base_that_changed_under_its_adapter_is_read_again(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    (tmp_path / "pair").mkdir()
    write_pair(tmp_path / "pair", base, adapter_of(base, tmp_path / "adapter", 1))
    scorer = Scorer(device="cpu")
    before = score(scorer, tmp_path / "pair", SUITE).scores
    make(base, seed=9)
    after = score(scorer, tmp_path / "pair", SUITE).scores
    assert after == fresh(tmp_path / "pair") != before
