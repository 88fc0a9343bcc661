"""The scoring core against a naive one-by-one computation with transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, GenerationConfig

from evomerge_common.domain.kinds.exact_match import extracted
from evomerge_common.domain.kinds.multiple_choice import choose
from evomerge_common.domain.suite import Suite
from evomerge_common.errors import ModelError, NonFiniteScore, SuiteError
from evomerge_scoring import generate_text, generation, score_folder
from evomerge_scoring.asking import sums_of
from evomerge_scoring.batches import pack
from evomerge_scoring.generation import cut, generate
from evomerge_scoring.kinds import prepare
from evomerge_scoring.kinds.requests import Requests
from evomerge_scoring.loaded import TREE_TYPES, tree_limit
from evomerge_scoring.model import Stop
from evomerge_scoring.scorer import Scorer
from helpers.scoring import resident, score
from helpers.tiny_models import CHOICES, CONTEXT, PROMPTS, TEXTS, make, suite_of, tokenizer


def lls(folder: Path, suite: Suite) -> list[list[float]]:
    scorer = Scorer(device="cpu")
    model = scorer.resident.load_folder(folder)
    (task,) = suite.tasks
    prepared = prepare(task, task.items, scorer.encoder(model))
    assert isinstance(prepared, Requests)
    answers = prepared.encoded.answers(model, suite.batch_size)
    return [answer if isinstance(answer, list) else [answer] for answer in answers]


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


def naive_choice(model: Any, tok: Any, prompt: str, choice: str, lead: list[int]) -> float:
    """As lm-evaluation-harness defines it: what the encoding of prompt + choice adds to the prompt's."""
    bare = prompt.rstrip()
    if bare:
        prompt, choice = bare, prompt[len(bare) :] + choice
    before = lead + tok(prompt, add_special_tokens=False)["input_ids"]
    whole = lead + tok(prompt + choice, add_special_tokens=False)["input_ids"]
    if not before:
        before, whole = [tok.bos_token_id], [tok.bos_token_id, *whole]
    table = logprobs(model, whole[:-1])
    return sum(float(table[p - 1, whole[p]]) for p in range(len(before), len(whole)))


def flat(values: list[list[float]]) -> list[float]:
    return [v for row in values for v in row]


@pytest.mark.parametrize("kind", [*sorted(TREE_TYPES), "bloom"])
def test_choices_that_share_a_prompt_score_as_if_alone(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path, kind)
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = [[naive_choice(model, tok, i["prompt"], c, []) for c in i["choices"]] for i in CHOICES]
    assert (tree_limit(model.config) > 0) == (kind in TREE_TYPES)
    assert flat(lls(folder, suite_of("multiple_choice", CHOICES))) == pytest.approx(flat(expected), abs=1e-4)
    for metric in ("acc", "acc_norm"):
        (score,) = score_folder(folder, suite_of("multiple_choice", CHOICES, metric=metric), "all").scores
        chosen = [choose(i["choices"], row, metric) for i, row in zip(CHOICES, expected, strict=True)]
        answers = [float(c == i["answer"]) for c, i in zip(chosen, CHOICES, strict=True)]
        assert list(score.item_scores) == answers
        assert score.score == score.metric_value == sum(answers) / len(answers)


def test_padding_beside_a_tree_wider_than_the_context_has_a_place(tmp_path: Path) -> None:
    """A model that looks its positions up in a table has none beyond its context."""
    folder = make(tmp_path, "gpt2")
    endings = [f" {word} and so on and on, one two three {word}" for word in ("fox", "dog", "quick", "lazy")]
    items = [CHOICES[0], {"prompt": "The", "choices": endings, "answer": 0}]
    together, alone = (lls(folder, suite_of("multiple_choice", items, batch_size=size)) for size in (2, 1))
    assert flat(together) == pytest.approx(flat(alone), abs=1e-4)


def test_a_tokenizer_that_adds_bos_has_it_added_once(tmp_path: Path) -> None:
    folder = make(tmp_path, tok=tokenizer(adds_bos=True))
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = [[naive_choice(model, tok, i["prompt"], c, [0]) for c in i["choices"]] for i in CHOICES]
    assert flat(lls(folder, suite_of("multiple_choice", CHOICES))) == pytest.approx(flat(expected), abs=1e-4)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_batch_size_changes_no_score(tmp_path: Path, size: int) -> None:
    folder = make(tmp_path)
    for kind, items in (("multiple_choice", CHOICES), ("perplexity", [{"text": t} for t in TEXTS])):
        one, other = lls(folder, suite_of(kind, items)), lls(folder, suite_of(kind, items, batch_size=size))
        assert flat(one) == pytest.approx(flat(other), abs=1e-4)


def naive_bits(model: Any, ids: list[int]) -> float:
    """Disjoint windows; each first token is conditioned on the token before."""
    total = 0.0
    for begin in range(0, len(ids) - 1, CONTEXT):
        window = ids[begin : begin + CONTEXT + 1]
        table = logprobs(model, window[:-1])
        total -= sum(table[p, token].item() for p, token in enumerate(window[1:]))
    return total / math.log(2)


@pytest.mark.parametrize("bos", [True, False])
def test_perplexity_is_bits_per_byte_of_the_whole_document(tmp_path: Path, bos: bool) -> None:
    folder = make(tmp_path, tok=tokenizer(bos=bos))
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    start = tok.bos_token_id if bos else tok.eos_token_id
    bits = [naive_bits(model, [start, *tok(t, add_special_tokens=False)["input_ids"]]) for t in TEXTS]
    (score,) = score_folder(folder, suite_of("perplexity", [{"text": t} for t in TEXTS]), "all").scores
    sizes = [len(t.encode()) for t in TEXTS]
    assert score.metric_value == pytest.approx(sum(bits) / sum(sizes), abs=1e-5)
    assert score.item_scores == pytest.approx([2 ** -(b / n) for b, n in zip(bits, sizes, strict=True)], rel=1e-4)
    assert score.score == sum(score.item_scores) / len(TEXTS)
    assert len(tok(TEXTS[3])["input_ids"]) > CONTEXT, "one document needs several windows"


@pytest.mark.parametrize("kind", [*sorted(TREE_TYPES), "mamba"])
def test_generation_is_what_transformers_generates(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path, kind)
    reference, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model: Any = Scorer(device="cpu").resident.load_folder(folder)
    prompts = [tok(p)["input_ids"] for p in PROMPTS]
    options = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=1, pad_token_id=2)
    made = generate(model, prompts, Stop((), 12), 4)
    for ids, tokens in zip(prompts, made, strict=True):
        output = reference.generate(torch.tensor([ids]), generation_config=options)[0, len(ids) :].tolist()
        assert tokens == [t for t in output if t != 1]


def test_rows_that_are_finished_leave_the_batch_and_change_no_other(tmp_path: Path) -> None:
    """Ends come at different steps: each prompt has a stop string of its own making."""
    folder = make(tmp_path)
    model: Any = Scorer(device="cpu").resident.load_folder(folder)
    tok = model.tokenizer
    prompts = [tok(p)["input_ids"] for p in PROMPTS]
    free = [tok.decode(tokens) for tokens in generate(model, prompts, Stop((), 16), 8)]
    strings = tuple(text[n : n + 2] for n, text in zip((1, 9, 5), free, strict=False))
    stopped = [tok.decode(tokens) for tokens in generate(model, prompts, Stop(strings, 16), 8)]
    assert [cut(text, strings) for text in stopped] == [cut(text, strings) for text in free]
    assert len({len(text) for text in stopped}) > 2
    assert sum(map(len, stopped)) < sum(map(len, free))


@pytest.mark.parametrize("beginning", ["", "Once upon a time there was a number of people who said: "])
def test_the_next_prompts_take_the_rows_of_the_finished(tmp_path: Path, beginning: str) -> None:
    folder = make(tmp_path, max_position_embeddings=256)
    model: Any = Scorer(device="cpu").resident.load_folder(folder)
    prompts = [model.tokenizer(f"{beginning}{p * (1 + n % 2)} {n}")["input_ids"] for n, p in enumerate(PROMPTS * 4)]
    passes: list[torch.Size] = []
    model.module.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    free = [model.tokenizer.decode(tokens) for tokens in generate(model, prompts, Stop((), 16), 1)]
    stop = Stop(tuple(text[4 + 2 * n : 7 + 2 * n] for n, text in enumerate(free[:4])), 16)
    alone = generate(model, prompts, stop, 1)
    assert len(set(map(len, alone))) > 3, "they end at different steps"
    for size in (3, 8):
        passes.clear()
        told: list[int] = []
        assert generate(model, prompts, stop, size, told.extend) == alone
        assert sorted(told) == list(range(len(prompts)))
        assert max(rows for rows, _ in passes) <= size
        in_order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        batches = [in_order[start : start + size] for start in range(0, len(in_order), size)]
        one_after_the_other = sum(max(len(alone[i]) for i in batch) - 1 for batch in batches)
        further = sum(width == 1 for _, width in passes)
        assert size < 8 or further < one_after_the_other, "no batch waits for its longest answer"


def test_prompts_are_read_without_padding_and_many_are_decoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path, max_position_embeddings=256)
    model: Any = Scorer(device="cpu").resident.load_folder(folder)
    prompts = [model.tokenizer("a b c d " * (1 + n % 7) + str(n))["input_ids"] for n in range(40)]
    stop = Stop((), 8)
    alone = generate(model, prompts, stop, 1)
    passes: list[torch.Size] = []
    model.module.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    assert model.continuations(prompts, stop, 4) == alone
    assert max(rows for rows, width in passes if width == 1) == 40
    read = sum(rows * width for rows, width in passes if width > 1)
    assert read < 0.6 * sum(map(len, prompts)), "shared beginnings are read once"
    monkeypatch.setattr(generation, "CACHE_BYTES", 0)
    passes.clear()
    assert model.continuations(prompts, stop, 4) == alone
    assert max(rows for rows, _ in passes) == 4


@pytest.mark.parametrize("beginning", ["", "Once upon a time there was a number of people who said: "])
def test_short_rows_are_read_side_by_side_and_not_padded(tmp_path: Path, beginning: str) -> None:
    folder = make(tmp_path, max_position_embeddings=256)
    items: list[dict[str, Any]] = [
        {"prompt": f"{beginning}{n}" + " and so on" * (n % 3 * 2), "choices": [" a", " b c", " b d"], "answer": 0}
        for n in range(12)
    ]
    scorer = Scorer(device="cpu")
    model: Any = resident(scorer).load_folder(folder)
    encoded = scorer.encoder(model).choices([(item["prompt"], item["choices"]) for item in items])
    read: list[int] = []
    model.module.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    packed = sums_of(model, encoded, 12)
    tokens = sum(read)
    read.clear()
    assert flat(packed) == pytest.approx(flat(sums_of(model, encoded, 1)), abs=1e-4)
    lengths = [len(row.ids) for row in encoded.rows]
    assert tokens <= 0.9 * max(lengths) * len(lengths)
    assert all(sum(lengths[i] for i in some) <= 9 for some in pack(lengths, 9) if len(some) > 1)


def test_exact_match_compares_up_to_the_stop(tmp_path: Path) -> None:
    folder = make(tmp_path)
    texts = [generate_text(folder, p, 10).text for p in PROMPTS[:3]]
    assert all(texts)
    stops = [t.strip()[3] for t in texts]
    items = [
        {"prompt": p, "answer": cut(t, stops)} for p, t in zip(PROMPTS, texts, strict=False) if cut(t, stops).strip()
    ]
    items.append({"prompt": PROMPTS[3], "answer": "never"})
    (score,) = score_folder(folder, suite_of("exact_match", items, max_new_tokens=10, stop=stops), "all").scores
    assert list(score.item_scores) == [1.0] * (len(items) - 1) + [0.0]


def test_extract_takes_the_first_group() -> None:
    assert extracted(" so the answer is 42. \n", r"answer is (\d+)") == "42"
    assert extracted("41 42", r"\d+") == "41"
    assert extracted("none", r"\d+") is None
    assert extracted("  plain ", "") == "plain"


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_masked_models_by_pseudo_likelihood(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path, kind)
    model, tok = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    text = "the quick brown fox was good"
    ids = tok(text)["input_ids"]
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = [*ids]
        masked[place] = tok.mask_token_id
        total -= logprobs(model, masked)[place, ids[place]].item() / math.log(2)
    (score,) = score_folder(folder, suite_of("perplexity", [{"text": text}]), "all").scores
    assert score.metric_value == pytest.approx(total / len(text), abs=1e-5)
    long = "the quick brown fox jumps over the lazy dog . " * 12
    report = score_folder(folder, suite_of("perplexity", [{"text": long}, {"text": text}]), "all")
    assert 0 < report.scores[0].item_scores[0] < 1
    assert score_folder(folder, suite_of("multiple_choice", CHOICES), "all").items == len(CHOICES)
    with pytest.raises(SuiteError, match="cannot continue a text"):
        score_folder(folder, suite_of("exact_match", [{"prompt": "a", "answer": "b"}]), "all")


def test_same_scores_twice_bit_for_bit(tmp_path: Path) -> None:
    folder = make(tmp_path)
    suite = Suite.from_dict(
        {
            "holdout": 0.3, "batch_size": 4,
            "tasks": [
                {"name": "a", "kind": "multiple_choice", "items": CHOICES * 4, "weight": 2},
                {"name": "b", "kind": "exact_match", "items": [{"prompt": p, "answer": "x"} for p in PROMPTS * 3]},
                {"name": "c", "kind": "perplexity", "items": [{"text": f"{t} {n}"} for n, t in enumerate(TEXTS * 3)]},
            ],
        }
    )  # fmt: skip
    seen: list[tuple[int, int]] = []
    first = score_folder(folder, suite, "search", progress=lambda done, total: seen.append((done, total)))
    second = score_folder(folder, suite, "search")
    assert first.scores == second.scores
    assert first.fitness == second.fitness == suite.fitness({s.task: s.score for s in first.scores})
    assert first.items == sum(len(suite.items(task, "search")) for task in suite.tasks)
    assert seen[-1] == (first.items, first.items)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    both = score_folder(folder, suite, "all")
    assert both.items == first.items + score_folder(folder, suite, "holdout").items


def test_company_shows_in_no_score(tmp_path: Path) -> None:
    """A score follows from the model, its task's items and the batch size; of nothing else, bit for bit.

    Not from what the process scored before, nor from the other tasks, nor from how much memory torch has in hand. What
    a batch holds may show in a log-likelihood's last bits; in no choice and no continuation.
    """
    one, two = make(tmp_path / "one"), make(tmp_path / "two", seed=1)
    prompts = [f"{p} {n}" for n in range(4) for p in PROMPTS]
    said = {p: generate_text(one, p, 16).text.split("\n")[0] for p in prompts[::2]}
    tasks: list[dict[str, Any]] = [
        {"name": "a", "kind": "multiple_choice", "items": CHOICES * 4},
        {"name": "b", "kind": "exact_match", "max_new_tokens": 16,
         "items": [{"prompt": p, "answer": said.get(p, "x")} for p in prompts]},
        {"name": "c", "kind": "perplexity", "items": [{"text": f"{t} {n}"} for n, t in enumerate(TEXTS * 3)]},
    ]  # fmt: skip

    def suite(*chosen: dict[str, Any], size: int = 4) -> Suite:
        return Suite.from_dict({"holdout": 0, "batch_size": size, "tasks": list(chosen)})

    alone = [score_folder(one, suite(task), "all").scores[0] for task in tasks]
    assert 0.3 < alone[1].score < 0.9, "some answers are right, some are not"
    scorer = Scorer(device="cpu")
    for folder, order in ((two, tasks), (one, tasks), (two, tasks[::-1]), (one, tasks[::-1])):
        scores = score(scorer, folder, suite(*order)).scores
        if folder == one:
            assert sorted(scores, key=lambda score: score.task) == alone
    for size in (1, 7, 64):
        scores = score(scorer, one, suite(*tasks, size=size)).scores
        assert [score.item_scores for score in scores[:2]] == [score.item_scores for score in alone[:2]]
        assert list(scores[2].item_scores) == pytest.approx(alone[2].item_scores, abs=1e-6)


def test_long_prompts_are_cut_from_the_left_and_reported(tmp_path: Path) -> None:
    folder = make(tmp_path)
    huge = "1 + 1 = 2, " * 1_000_000 + "1 + 1 ="
    items = [{"prompt": huge, "choices": [" 2", " 3"], "answer": 0}, CHOICES[0]]
    report = score_folder(folder, suite_of("multiple_choice", items), "all")
    assert report.truncated == 1
    short = lls(folder, suite_of("multiple_choice", [{**items[0], "prompt": huge[-1000:]}]))
    assert lls(folder, suite_of("multiple_choice", items))[0] == pytest.approx(short[0], abs=1e-4)
    report = score_folder(folder, suite_of("exact_match", [{"prompt": huge, "answer": "x"}], max_new_tokens=500), "all")
    assert report.truncated == 1
    with pytest.raises(SuiteError, match="split it into documents"):
        score_folder(folder, suite_of("perplexity", [{"text": huge}]), "all")


def test_chat_goes_through_the_models_template(tmp_path: Path) -> None:
    tok = tokenizer()
    tok.chat_template = "{% for m in messages %}Q: {{ m['content'] }}{% endfor %}{{ '\nA:' }}"
    folder = make(tmp_path / "chat", tok=tok)
    items = [{"prompt": "1 + 1", "choices": [" 2", " 3"], "answer": 0}]
    plain = [{**items[0], "prompt": "Q: 1 + 1\nA:"}]
    assert lls(folder, suite_of("multiple_choice", items, chat=True)) == lls(folder, suite_of("multiple_choice", plain))
    with pytest.raises(ModelError, match="no chat template"):
        score_folder(make(tmp_path / "plain"), suite_of("multiple_choice", items, chat=True), "all")


@pytest.mark.parametrize("kind", ["multiple_choice", "exact_match", "perplexity"])
def test_nan_weights_are_a_typed_failure(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    model.save_pretrained(folder)
    items: dict[str, list[dict[str, Any]]] = {
        "multiple_choice": CHOICES, "exact_match": [{"prompt": "a", "answer": "b"}], "perplexity": [{"text": "abc"}],
    }  # fmt: skip
    with pytest.raises(NonFiniteScore, match="NaN"):
        score_folder(folder, suite_of(kind, items[kind]), "all")


def test_generate_text(tmp_path: Path) -> None:
    folder = make(tmp_path)
    result = generate_text(folder, "1 + 1 =", 9)
    assert 0 < result.tokens <= 9
    assert result.text
    assert generate_text(folder, "", 3).tokens > 0
    assert generate_text(folder, "x y z " * 100_000, 1000).tokens < CONTEXT
    with pytest.raises(ModelError, match="cannot continue"):
        generate_text(make(tmp_path / "bert", "bert"), "a", 3)
