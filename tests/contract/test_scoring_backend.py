"""What a scoring backend promises: the same of torch, of vLLM's API computed by transformers, and of vLLM itself.

The real one needs an environment of its own: `make test-vllm`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import ModelError, NonFiniteScore, NotAModel
from evomerge_merging import plan_merge
from evomerge_scoring.model import Row
from evomerge_scoring.report import ScoreReport
from evomerge_scoring.resident import Resident
from evomerge_scoring.scorer import Scorer
from evomerge_scoring.vllm_backend import VllmResident
from helpers import fake_vllm
from helpers.scoring import score, score_plan, score_tensors
from helpers.tiny_models import CHOICES, PROMPTS, TEXTS, make, tokenizer

SUITE = Suite.from_dict(
    {
        "holdout": 0,
        "tasks": [
            {"name": "choices", "kind": "multiple_choice", "items": CHOICES},
            {
                "name": "answers",
                "kind": "exact_match",
                "max_new_tokens": 8,
                "items": [{"prompt": f"{p} {p}", "answer": "x"} for p in PROMPTS],
            },
            {"name": "texts", "kind": "perplexity", "items": [{"text": text} for text in TEXTS]},
        ],
    }
)
TOLERANCE = 2e-4
"""Of scores: the sums of another library come in another order."""
STOP = 12


@pytest.fixture(
    params=["torch", "fake vllm", "fake vllm by files", pytest.param("vllm", marks=pytest.mark.vllm)],
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A backend on the CPU that computes in float32, and holds nothing yet."""
    cpu = torch.device("cpu")
    if request.param == "torch":
        yield Resident(cpu)
        return
    if request.param == "vllm":
        importlib.import_module("vllm")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
        monkeypatch.setattr(fake_vllm.LLM, "engines", [])
        device = cpu
    made = VllmResident(device, tensor_parallel=2 if request.param.endswith("files") else 1)
    yield made
    made._forget()


@pytest.fixture
def scorer(backend: Any) -> Scorer:
    made = Scorer(device="cpu", backend="torch")
    made.resident = backend
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shape: dict[str, Any] = {"hidden_size": 128, "max_position_embeddings": 256}
    for seed, name in enumerate(("one", "two", "three")):
        make(folder / name, seed=seed, **shape)
    make(folder / "tied", tie_word_embeddings=True, **shape)
    make(folder / "deeper", num_hidden_layers=3, **shape)
    make(folder / "nan", scale=float("nan"), **shape)
    make(folder / "words", tok=tokenizer(adds_bos=True), **shape)
    return folder


def expected(folder: Path) -> ScoreReport:
    return score(Scorer(device="cpu", backend="torch"), folder, SUITE)


def hold(found: ScoreReport, wanted: ScoreReport) -> None:
    """Equal up to the order of sums, item by item."""
    assert found.items == wanted.items
    assert found.truncated == wanted.truncated
    for one, other in zip(found.scores, wanted.scores, strict=True):
        assert one.item_scores == pytest.approx(other.item_scores, abs=TOLERANCE), one.task
        assert one.metric_value == pytest.approx(other.metric_value, rel=TOLERANCE), one.task


def test_candidates_of_one_build_are_swapped_and_score_as_if_alone(scorer: Scorer, models: Path) -> None:
    backend: Any = scorer.resident
    for name in ("one", "two", "three", "one"):
        hold(score(scorer, models / name, SUITE), expected(models / name))
    assert (backend.loads, backend.swaps) == (1, 3)


def test_what_is_continued_is_continued_by_the_weights_of_now(scorer: Scorer, models: Path) -> None:
    """Keys and values of a prompt are remembered; those of the candidate before are not."""
    made: dict[str, list[str]] = {}
    for name in ("one", "two", "one"):
        found = [scorer.generate(models / name, f"{prompt} {prompt}", STOP).text for prompt in PROMPTS]
        assert found == made.setdefault(name, found)
    assert made["one"] != made["two"]
    fresh = Scorer(device="cpu", backend="torch")
    for name, found in made.items():
        assert found == [fresh.generate(models / name, f"{prompt} {prompt}", STOP).text for prompt in PROMPTS]


def test_a_merge_is_scored_without_its_folder(scorer: Scorer, models: Path, tmp_path: Path) -> None:
    from evomerge_merging import execute

    backend: Any = scorer.resident
    references = [ModelReference(str(models / name)) for name in ("one", "two")]
    for number, weight in enumerate((0.25, 0.75)):
        recipe = Recipe.of_models("linear", [(references[0], {"weight": weight}), (references[1], {"weight": 1.0})])
        with plan_merge(recipe) as plan:
            found = score_plan(scorer, plan, SUITE)
            execute(plan, tmp_path / str(number))
        hold(found, expected(tmp_path / str(number)))
    assert (backend.loads, backend.swaps) == (1, 1)


def test_tensors_in_memory_are_scored(scorer: Scorer, models: Path) -> None:
    for name in ("one", "two", "tied"):
        tensors = load_file(models / name / "model.safetensors")
        hold(score_tensors(scorer, tensors, models / name, SUITE), expected(models / name))


def test_another_build_or_another_tokenizer_starts_anew(scorer: Scorer, models: Path) -> None:
    backend: Any = scorer.resident
    for name in ("one", "deeper", "tied", "one", "words"):
        hold(score(scorer, models / name, SUITE), expected(models / name))
    assert backend.loads + backend.swaps == 5
    assert backend.loads >= 4


def test_broken_weights_are_told_and_leave_no_trace(scorer: Scorer, models: Path) -> None:
    hold(score(scorer, models / "one", SUITE), expected(models / "one"))
    whole = SUITE.to_dict()
    for task in whole["tasks"]:
        alone = Suite.from_dict({**whole, "tasks": [task]})
        with pytest.raises(NonFiniteScore, match="NaN"):
            score(scorer, models / "nan", alone)
    hold(score(scorer, models / "one", SUITE), expected(models / "one"))


def test_no_model_is_refused(scorer: Scorer, models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        score(scorer, tmp_path / "nothing", SUITE)
    hold(score(scorer, models / "two", SUITE), expected(models / "two"))


def test_it_computes_in_the_dtype_that_is_asked_for(scorer: Scorer, models: Path) -> None:
    backend: Any = scorer.resident
    found = {}
    for dtype in ("float32", "bfloat16"):
        backend.dtype = dtype
        model = backend.load_folder(models / "one")
        assert f" {dtype} " in model.describe(1) + " "
        ids = model.tokenizer("The quick brown fox")["input_ids"]
        row = Row.plain(ids[:-1], [(place, token) for place, token in enumerate(ids[1:])])
        (answer,) = model.answers([row], 1, greedy=True)
        assert len(answer.greedy) == len(answer.logprobs) == len(ids) - 1
        found[dtype] = answer.logprobs
    assert found["float32"] != found["bfloat16"]
    assert found["float32"] == pytest.approx(found["bfloat16"], rel=0.2, abs=0.3)


def test_an_engine_that_cannot_forget_is_replaced(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    monkeypatch.setattr(fake_vllm.LLM, "engines", [])
    scorer = Scorer(device="cpu", backend="torch")
    scorer.resident = VllmResident(torch.device("cpu"))
    score(scorer, models / "one", SUITE)
    fake_vllm.LLM.engines[0].stuck = True
    hold(score(scorer, models / "two", SUITE), expected(models / "two"))
    assert (scorer.resident.loads, scorer.resident.swaps) == (2, 0)
    assert fake_vllm.LLM.engines[0].module is None, "it is shut down before the next one takes the device's memory"


def test_a_swap_that_breaks_off_leaves_no_half_candidate(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    monkeypatch.setattr(fake_vllm.LLM, "engines", [])
    scorer = Scorer(device="cpu", backend="torch")
    scorer.resident = VllmResident(torch.device("cpu"))
    score(scorer, models / "one", SUITE)
    with monkeypatch.context() as patch:
        patch.setattr(fake_vllm.LLM, "_reload_weights", lambda *_, **__: 1 / 0)
        with pytest.raises(NotAModel, match="division by zero"):
            score(scorer, models / "two", SUITE)
    hold(score(scorer, models / "one", SUITE), expected(models / "one"))
    assert scorer.resident.loads == 2


@pytest.mark.vllm
def test_the_stand_in_has_the_signatures_of_the_real_one() -> None:
    real = importlib.import_module("vllm")
    worker = importlib.import_module("vllm.v1.worker.gpu_worker").Worker
    runner = importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    arguments = importlib.import_module("vllm.engine.arg_utils").EngineArgs
    pairs: list[tuple[Any, Any]] = [
        (fake_vllm.LLM.collective_rpc, real.LLM.collective_rpc),
        (fake_vllm.LLM.reset_prefix_cache, real.LLM.reset_prefix_cache),
        (fake_vllm.LLM.generate, real.LLM.generate),
        (fake_vllm.LLM._reload_weights, runner.reload_weights),
        (fake_vllm.SamplingParams, real.SamplingParams),
    ]
    for fake, true in pairs:
        assert set(inspect.signature(fake).parameters) <= set(inspect.signature(true).parameters), fake
    assert hasattr(worker, "reload_weights")
    started = set(inspect.signature(fake_vllm.LLM).parameters)
    assert started <= {*inspect.signature(real.LLM).parameters, *inspect.signature(arguments).parameters}
