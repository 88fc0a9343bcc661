"""Mixtures of experts, judged by transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge_cli.__main__ import main
from evomerge_common.errors import InvalidInput, ModelError, RecipeError, ShapeMismatch
from evomerge_merging.moe import assemble as assembly
from evomerge_merging.moe.assemble import assemble
from evomerge_merging.moe.yaml import read_mixture
from helpers import tiny_models

KINDS = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}
GATES = ("hidden", "cheap_embed", "random")
PROMPTS = (["The quick brown fox", "the lazy dog"], ["1 + 1 = 2", "12 + 30 = 42"], ["def add(a, b):\n    return"])


def made(folder: Path, kind: str, seed: int = 0, **options: Any) -> Path:
    return tiny_models.make(folder, kind, seed=seed, scale=3.0, **options)


def written(folder: Path, base: Path, experts: list[Path], gate: str = "hidden", extra: str = "") -> Path:
    lines = [f"base_model: {base}", f"gate_mode: {gate}", "experts:"]
    for expert, prompts in zip(experts, PROMPTS, strict=False):
        lines.append(f"- source_model: {expert}\n  positive_prompts: {json.dumps(prompts)}")
    path = folder / "moe.yaml"
    path.write_text("\n".join(lines) + "\n" + extra)
    return path


def loaded(folder: Path) -> Any:
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model.eval()


@torch.no_grad()  # type: ignore[untyped-decorator]
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(5, 300, 7)[None]).logits
    return found


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", KINDS)
def test_experts_that_are_alike_are_the_dense_model(tmp_path: Path, kind: str, gate: str) -> None:
    base = made(tmp_path / "base", kind)
    for count in (1, 2, 3):
        path = written(tmp_path, base, [base] * 3, gate, f"experts_per_token: {count}\n")
        out = tmp_path / f"out-{count}"
        assemble(read_mixture(path), out)
        model = loaded(out)
        assert model.config.model_type == KINDS[kind]
        torch.testing.assert_close(logits(model), logits(loaded(base)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_answered_by_the_experts_that_it_is_sent_to(tmp_path: Path, kind: str, gate: str) -> None:
    """Against a mixture computed here from the dense models, with the gates that were written."""
    models = [made(tmp_path / str(seed), kind, seed) for seed in range(3)]
    out = tmp_path / "out"
    assemble(read_mixture(written(tmp_path, models[0], models, gate)), out)
    mixture, dense = loaded(out), [loaded(folder) for folder in models]
    whole = load_file(out / "model.safetensors")
    block = "block_sparse_moe" if KINDS[kind] == "mixtral" else "mlp"
    for number, layer in enumerate(dense[0].model.layers):
        gates = whole[f"model.layers.{number}.{block}.gate.weight"]
        parts = [model.model.layers[number].mlp for model in dense]

        def forward(state: torch.Tensor, gates: Any = gates, parts: Any = parts) -> torch.Tensor:
            best, chosen = (state @ gates.T).softmax(-1).topk(2, dim=-1)
            best = best / best.sum(-1, keepdim=True)
            answers = torch.stack([part(state) for part in parts], dim=-2)
            picked = answers.gather(-2, chosen[..., None].expand(*chosen.shape, state.shape[-1]))
            return (picked * best[..., None]).sum(-2)

        kept = layer.mlp
        layer.mlp = _Called(forward)
        parts[0] = kept
    found = logits(mixture)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, logits(dense[0]), atol=5e-5, rtol=1e-4)
    assert not torch.allclose(found, logits(loaded(models[0])), atol=1e-2)


class _Called(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_gates_send_prompts_to_their_experts(tmp_path: Path, kind: str) -> None:
    base = made(tmp_path / "base", kind)
    out = tmp_path / "out"
    assemble(read_mixture(written(tmp_path, base, [base] * 3)), out)
    whole, dense = load_file(out / "model.safetensors"), loaded(base)
    block = "block_sparse_moe" if KINDS[kind] == "mixtral" else "mlp"
    tokenizer = AutoTokenizer.from_pretrained(base)
    for number, layer in enumerate(dense.model.layers):
        gates = whole[f"model.layers.{number}.{block}.gate.weight"]
        torch.testing.assert_close(gates.norm(dim=-1), torch.ones(3))
        states: list[torch.Tensor] = []
        handle = layer.mlp.register_forward_pre_hook(lambda _, inputs, states=states: states.append(inputs[0][0]))
        for expert, prompts in enumerate(PROMPTS):
            states.clear()
            with torch.no_grad():
                for prompt in prompts:
                    dense(torch.tensor([tokenizer(prompt).input_ids]))
            mean = torch.stack([state.mean(0) for state in states]).mean(0)
            assert int((gates @ mean).argmax()) == expert
        handle.remove()


def test_random_gates_follow_their_seed_and_negative_prompts_count(tmp_path: Path) -> None:
    base = made(tmp_path / "base", "llama")
    name = "model.layers.1.block_sparse_moe.gate.weight"

    def gates(out: str, gate: str, extra: str = "") -> torch.Tensor:
        assemble(read_mixture(written(tmp_path, base, [base] * 2, gate, extra)), tmp_path / out)
        return load_file(tmp_path / out / "model.safetensors")[name]

    assert torch.equal(gates("a", "random"), gates("b", "random", "seed: 0\n"))
    assert not torch.equal(gates("c", "random", "seed: 1\n"), gates("d", "random"))
    plain = gates("e", "cheap_embed")
    path = written(tmp_path, base, [base] * 2, "cheap_embed")
    path.write_text(path.read_text() + '  negative_prompts: ["def"]\n')
    assemble(read_mixture(path), tmp_path / "f")
    other = load_file(tmp_path / "f" / "model.safetensors")[name]
    assert torch.equal(plain[0], other[0])
    assert not torch.allclose(plain[1], other[1])


def test_a_shared_expert_adds_its_answer(tmp_path: Path) -> None:
    base = made(tmp_path / "base", "qwen2")
    extra = f"shared_experts:\n- {{source_model: {base}, residual_scale: 0.5}}\n"
    out = tmp_path / "out"
    assemble(read_mixture(written(tmp_path, base, [base] * 2, "random", extra)), out)
    dense = loaded(base)
    with torch.no_grad():
        for layer in dense.model.layers:
            layer.mlp.down_proj.weight.mul_(1.5)
    torch.testing.assert_close(logits(loaded(out)), logits(dense), atol=2e-5, rtol=1e-5)


def test_a_shared_experts_prompts_make_its_gate(tmp_path: Path) -> None:
    base = made(tmp_path / "base", "qwen2")
    extra = f"shared_experts:\n- {{source_model: {base}, residual_scale: 0.5, positive_prompts: [the fox]}}\n"
    for gate, shared in (("cheap_embed", True), ("hidden", True), ("uniform_random", False)):
        out = tmp_path / gate
        report = assemble(read_mixture(written(tmp_path, base, [base] * 2, gate, extra)), out)
        loaded(out)
        whole = load_file(out / "model.safetensors")
        own = whole["model.layers.1.mlp.shared_expert_gate.weight"]
        assert own.shape == (1, base_hidden(base))
        torch.testing.assert_close(own.norm(), torch.tensor(1.0 if shared else 0.0))
        factor = 0.5 if shared else 1.0
        dense = load_file(base / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
        torch.testing.assert_close(whole["model.layers.1.mlp.shared_expert.down_proj.weight"], factor * dense)
        assert any("reads no prompts" in note for note in report.notes) != shared


def base_hidden(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["hidden_size"])


def test_uniform_gates_noise_and_scales_of_experts(tmp_path: Path) -> None:
    base = made(tmp_path / "base", "llama")
    path = tmp_path / "moe.yaml"
    path.write_text(
        f"base_model: {base}\ngate_mode: uniform_random\narchitecture: Mixtral\nexperts:\n"
        f"- {{source_model: {base}, noise_scale: 0.05}}\n- {{source_model: {base}, noise_scale: 0.05}}\n"
        f"- {{source_model: {base}, noise_scale: 0.05, residual_scale: 0.5}}\n- {{source_model: {base}, "
        "residual_scale: '0.5'}\n"
    )
    for out in ("out", "again"):
        assemble(read_mixture(path), tmp_path / out)
    whole, dense = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "base"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()
    gates = torch.stack([value for name, value in whole.items() if name.endswith("gate.weight")])
    bound = gates.shape[-1] ** -0.5
    assert 0.8 * bound < float(gates.abs().max()) <= bound
    for name, word, scale in (("w1", "gate_proj", 1.0), ("w2", "down_proj", 0.5), ("w3", "up_proj", 1.0)):
        source = dense[f"model.layers.0.mlp.{word}.weight"]
        experts = [whole[f"model.layers.0.block_sparse_moe.experts.{i}.{name}.weight"] for i in range(4)]
        added = [experts[0] - source, experts[1] - source, experts[2] / scale - source]
        for one in added:
            assert float(one.std()) == pytest.approx(0.05, rel=0.1)
        assert not torch.equal(added[0], added[1])
        torch.testing.assert_close(experts[3], scale * source)


def test_words_without_effect_in_a_mixture_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, tmp_path / "a", [tmp_path / "a"] * 2, "random", "merge_method: linear\nmetadata: {x: 1}\n")
    notes = read_mixture(path).notes
    assert len(notes) == 3
    assert all(any(word in note for note in notes) for word in ("'merge_method'", "'metadata'", "reads no prompts"))


def test_a_type_is_kept_or_chosen_and_a_command_writes_a_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = made(tmp_path / "base", "qwen3")
    path = written(tmp_path, base, [base] * 2, "cheap_embed", "dtype: bfloat16\n")
    assert main(["export", str(path), str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] > 0
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "gates were not trained" in card
    assert str(tmp_path) not in card
    again = (tmp_path / "out" / "mergekit_moe_config.yml").read_text()
    assert "positive_prompts" in again
    assert main(["export", str(path), str(tmp_path / "x"), "--gguf", "f16"]) == 2
    assert "as a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("gate_mode: hidden", "gate_mode: hiden"), r"moe.yaml:2: gate_mode: .*did you mean 'hidden'"),
        (("gate_mode: hidden", "architecture: deepseek"), r"moe.yaml:2: architecture: .*Python code"),
        (("gate_mode: hidden", "architecture: mixtrl"), r"moe.yaml:2: architecture: .*did you mean 'mixtral'"),
        (("experts:", "expert:"), r"moe.yaml:3: .*did you mean 'experts'"),
        (("source_model", "source_modl"), r"moe.yaml:4: .*did you mean 'source_model'"),
        (("positive_prompts: [", "negative_prompts: ["), r"moe.yaml:4: .*needs positive_prompts"),
        (("gate_mode: hidden", "experts_per_token: 4"), r"moe.yaml:2: .*from 1 to the 2 experts"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = written(tmp_path, tmp_path / "a", [tmp_path / "a"] * 2)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(RecipeError, match=words):
        read_mixture(path)


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    base, gpt = made(tmp_path / "base", "llama"), made(tmp_path / "gpt", "gpt2")
    wide, biased = made(tmp_path / "wide", "llama", intermediate_size=64), made(tmp_path / "b", "llama", mlp_bias=True)
    other = made(tmp_path / "other", "qwen2")
    cases: list[tuple[Path, Path, str, type[Exception], str]] = [
        (gpt, gpt, "", ModelError, "made of llama, mistral, qwen2, qwen3"),
        (base, wide, "", ShapeMismatch, "one size"),
        (biased, biased, "", ModelError, "no biases"),
        (base, other, "", ModelError, "is of type 'qwen2'"),
        (base, base, f"shared_experts: [{{source_model: {base}}}]\n", InvalidInput, "shared_experts"),
    ]
    for first, second, extra, error, words in cases:
        path = written(tmp_path, first, [first, second], "random", extra)
        with pytest.raises(error, match=words):
            assemble(read_mixture(path), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    path = written(tmp_path, base, [base] * 2, "cheap_embed")
    path.write_text(path.read_text() + f"  negative_prompts: {json.dumps(PROMPTS[1])}\n")
    with pytest.raises(InvalidInput, match="cancel out"):
        assemble(read_mixture(path), tmp_path / "out")


def test_a_mixture_that_would_not_load_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(assembly._FORMATS["llama"], block="feed_forward")  # names that Mixtral has not
    monkeypatch.setitem(assembly._FORMATS, "llama", wrong)
    base = made(tmp_path / "base", "llama")
    path = written(tmp_path, base, [base] * 2, "random")
    with pytest.raises(ShapeMismatch, match="would not load"):
        assemble(read_mixture(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
