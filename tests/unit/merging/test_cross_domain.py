"""A model in another build: copies that only look different are recovered, and nothing is dropped in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge_common.domain.cross_domain import CrossDomain
from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import ModelError, RecipeError
from evomerge_merging import merge_recipe, plan_merge, read_recipe_text
from evomerge_merging.cross_domain import Fitted, adapt
from evomerge_merging.cross_domain.adapted import layer_at
from evomerge_merging.engine.source import open_source
from helpers.tiny_merging import load_model, make_model
from helpers.tiny_models import make, tokenizer

WIDTH, HEADS, UNITS = 32, 4, 48
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross")
    make(folder / "bert", "bert", scale=1.0)
    make(folder / "llama", "llama", scale=1.0)
    return folder


def tensors_of(folder: Path) -> Tensors:
    found: Tensors = load_file(folder / "model.safetensors")
    return found


def copy_of(folder: Path, out: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy whose tensors went through `change`."""
    shutil.copytree(folder, out)
    changed = {name: change(name, tensor).contiguous() for name, tensor in tensors_of(folder).items()}
    save_file(changed, out / "model.safetensors", {"format": "pt"})
    return out


@contextmanager
def fitted(source: Path, target: Path, how: CrossDomain | None = None) -> Iterator[Fitted]:
    opened = [open_source(ModelReference(str(path)), {}) for path in (source, target)]
    try:
        yield adapt(opened[0], opened[1], how or CrossDomain())
    finally:
        for one in opened:
            one.store.close()


def adapted(source: Path, target: Path, how: CrossDomain | None = None) -> Tensors:
    """All tensors, as a merge reads them: piece by piece."""
    with fitted(source, target, how) as found:
        store = found.source.store
        result = {}
        for name, info in store.tensors.items():
            middle = min(7, info.numel)
            pieces = [store.block(name, 0, middle), store.block(name, middle, info.numel)]
            result[name] = torch.cat([piece.float() for piece in pieces]).reshape(info.shape)
        return result


def assert_recovered(found: Tensors, expected: Tensors, tolerance: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor.float(), rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def orthogonal(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0].float()


def shuffled(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def in_basis(name: str, tensor: Tensor, basis: Tensor) -> Tensor:
    """A BERT or llama tensor with the residual stream in another basis; norms must be constant."""
    if "LayerNorm" in name or name.endswith(("norm.weight", "layernorm.weight")):
        return tensor if name.endswith("weight") else tensor @ basis
    if name.endswith("predictions.bias"):
        return tensor
    writes = name.endswith(("output.dense.weight", "o_proj.weight", "down_proj.weight", "transform.dense.weight"))
    if writes:
        tensor = basis.T @ tensor
    elif name.endswith(("output.dense.bias", "transform.dense.bias")):
        return tensor @ basis
    reads = tensor.dim() == 2 and (not writes or "transform" in name)
    return tensor @ basis if reads else tensor


def constant_norms(folder: Path, out: Path) -> Path:
    return copy_of(
        folder, out, lambda name, t: torch.full_like(t, 1.25) if "norm" in name.lower() and "weight" in name else t
    )


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_rotated_copy_is_recovered(root: Path, kind: str, tmp_path: Path) -> None:
    base = constant_norms(root / kind, tmp_path / "base")
    basis = orthogonal(WIDTH, 1)
    copy = copy_of(base, tmp_path / "copy", lambda name, tensor: in_basis(name, tensor, basis))
    assert_recovered(adapted(copy, base), tensors_of(base))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_copy_with_dimensions_heads_and_neurons_in_another_order_is_recovered(
    root: Path, kind: str, tmp_path: Path
) -> None:
    base = root / kind
    order, units, heads = shuffled(WIDTH, 2), shuffled(UNITS, 3), shuffled(HEADS, 4)
    groups = torch.tensor([1, 0])  # llama: two query heads share keys and values
    size = WIDTH // HEADS

    def rows(tensor: Tensor, index: Tensor) -> Tensor:
        return tensor.reshape(len(index), size, *tensor.shape[1:])[index].reshape(tensor.shape)

    def change(name: str, tensor: Tensor) -> Tensor:
        norm = "norm" in name.lower()
        if norm or name.endswith(("output.dense.bias", "transform.dense.bias")):
            return tensor[order]
        if name.endswith(("output.dense.weight", "o_proj.weight", "down_proj.weight", "transform.dense.weight")):
            tensor = tensor[order]
            if "transform" in name:
                return tensor[:, order]
            index = units if "down_proj" in name or "layer.0.output" in name or "layer.1.output" in name else heads
            return tensor[:, units] if index is units else rows(tensor.T.contiguous(), head_order).T
        if name.endswith(
            ("intermediate.dense.weight", "up_proj.weight", "gate_proj.weight", "intermediate.dense.bias")
        ):
            tensor = tensor[units]
        elif ".self." in name or "q_proj" in name:
            tensor = rows(tensor, head_order)
        elif "k_proj" in name or "v_proj" in name:
            tensor = rows(tensor, groups)
        return tensor[:, order] if tensor.dim() == 2 else tensor

    head_order = heads if kind == "bert" else torch.tensor([3, 2, 0, 1])
    copy = copy_of(base, tmp_path / "copy", change)
    assert_recovered(adapted(copy, base), tensors_of(base))


def test_a_copy_whose_heads_use_another_basis_is_recovered(root: Path, tmp_path: Path) -> None:
    size = WIDTH // HEADS
    bases = {key: [orthogonal(size, 10 + 4 * i + head) for head in range(HEADS)] for i, key in enumerate(("qk", "vo"))}

    def change(name: str, tensor: Tensor) -> Tensor:
        which = "qk" if ".query." in name or ".key." in name else "vo" if ".value." in name else ""
        if "attention.output.dense.weight" in name:
            return torch.cat([tensor[:, i * size : i * size + size] @ bases["vo"][i].T for i in range(HEADS)], 1)
        if not which:
            return tensor
        return torch.cat([bases[which][i] @ tensor[i * size : i * size + size] for i in range(HEADS)])

    copy = copy_of(root / "bert", tmp_path / "copy", change)
    assert not torch.equal(
        tensors_of(copy)["bert.encoder.layer.0.attention.self.query.weight"],
        tensors_of(root / "bert")["bert.encoder.layer.0.attention.self.query.weight"],
    )
    assert_recovered(adapted(copy, root / "bert"), tensors_of(root / "bert"))


_DISTILBERT = {
    "attention.self.query": "attention.q_lin", "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin", "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm", "intermediate.dense": "ffn.lin1", "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm", "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm", "cls.predictions.bias": "vocab_projector.bias",
    "bert.encoder.layer": "distilbert.transformer.layer", "bert.embeddings": "distilbert.embeddings",
}  # fmt: skip


def renamed_as_distilbert(folder: Path, out: Path) -> Path:
    """The same weights as a DistilBERT, but for the type embeddings, which that has not."""
    tensors = {}
    for name, tensor in tensors_of(folder).items():
        if "token_type" in name:
            continue
        renamed = name
        for old, new in _DISTILBERT.items():
            renamed = renamed.replace(old, new)
        tensors[renamed] = tensor
    shutil.copytree(folder, out)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "dim": WIDTH, "n_heads": HEADS,
        "n_layers": 2, "hidden_dim": UNITS, "vocab_size": len(tensors["vocab_projector.bias"]),
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_a_renamed_copy_is_the_model_bit_for_bit(root: Path, tmp_path: Path) -> None:
    copy = renamed_as_distilbert(root / "bert", tmp_path / "copy")
    found, expected = adapted(copy, root / "bert"), tensors_of(root / "bert")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_model_adapted_to_itself_is_itself_bit_for_bit(root: Path, kind: str) -> None:
    found, expected = adapted(root / kind, root / kind), tensors_of(root / kind)
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in expected.items())


def shuffle_vocabulary(folder: Path, out: Path, *, seed: int = 5) -> Path:
    """The same tokens in other rows."""
    data = json.loads((folder / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    order = shuffled(len(vocab), seed).tolist()
    copy = copy_of(
        folder,
        out,
        lambda name, t: t[torch.tensor(order)] if t.shape[0] == len(vocab) else t,
    )
    place = {old: new for new, old in enumerate(order)}
    data["model"]["vocab"] = {token: place[row] for token, row in vocab.items()}
    for entry in data["added_tokens"]:
        entry["id"] = place[entry["id"]]
    (copy / "tokenizer.json").write_text(json.dumps(data))
    return copy


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_copy_with_its_vocabulary_in_another_order_is_the_model_bit_for_bit(
    root: Path, kind: str, tmp_path: Path
) -> None:
    copy = shuffle_vocabulary(root / kind, tmp_path / "copy")
    assert len(json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]) == len(
        tensors_of(copy)[next(n for n in tensors_of(copy) if "embed" in n and t_rows(copy, n))]
    )
    found, expected = adapted(copy, root / kind), tensors_of(root / kind)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def t_rows(folder: Path, name: str) -> bool:
    return name.endswith(("word_embeddings.weight", "embed_tokens.weight"))


def test_all_of_it_at_once_is_recovered(root: Path, tmp_path: Path) -> None:
    base = constant_norms(root / "bert", tmp_path / "base")
    basis = orthogonal(WIDTH, 1)
    rotated = copy_of(base, tmp_path / "rotated", lambda name, tensor: in_basis(name, tensor, basis))
    copy = renamed_as_distilbert(shuffle_vocabulary(rotated, tmp_path / "shuffled"), tmp_path / "copy")
    assert_recovered(adapted(copy, base), tensors_of(base))


def test_a_wider_copy_with_empty_dimensions_is_recovered(root: Path, tmp_path: Path) -> None:
    """32 dimensions turned into 48 by a map that loses nothing; the copy answers as the model does."""
    base = constant_norms(root / "llama", tmp_path / "base")
    wide = torch.linalg.qr(torch.randn(48, WIDTH, generator=torch.Generator().manual_seed(6)))[0].T.contiguous()

    def change(name: str, tensor: Tensor) -> Tensor:
        if "norm" in name:  # the mean square of 48 dimensions, 16 of them empty, is smaller
            return torch.full((48,), 1.25 * (WIDTH / 48) ** 0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return wide.T @ tensor
        return tensor @ wide

    copy = copy_of(base, tmp_path / "copy", change)
    config = json.loads((copy / "config.json").read_text())
    epsilon = config["rms_norm_eps"] * WIDTH / 48
    sizes = {"hidden_size": 48, "head_dim": WIDTH // HEADS, "rms_norm_eps": epsilon}
    (copy / "config.json").write_text(json.dumps({**config, **sizes}))
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(load_model(copy)(ids).logits, load_model(base)(ids).logits, atol=1e-4, rtol=0)
    assert_recovered(adapted(copy, base), tensors_of(base))
    back = adapted(base, copy)  # what the narrow model cannot say is the wide one's own; norms stay as they are
    matrices = {name: tensor for name, tensor in tensors_of(copy).items() if "norm" not in name}
    assert_recovered({name: back[name] for name in matrices}, matrices)


def test_bits_do_not_depend_on_threads(root: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", "roberta", seed=3, hidden_size=48, num_hidden_layers=3)
    models: list[Any] = [(ModelReference(str(path)), {"weight": 0.5}) for path in (root / "bert", tmp_path / "other")]
    recipe = Recipe.of_models("ties", models, base=models[0][0], parameters={"density": 0.6})
    for threads in (1, 4):
        from evomerge_merging.cross_domain import adapted as module

        module._known.clear()  # so that alignments are found again
        merge_recipe(recipe, {}, tmp_path / str(threads), threads=threads)
    one, four = ((tmp_path / str(n) / "model.safetensors").read_bytes() for n in (1, 4))
    assert one == four


@pytest.mark.parametrize(
    ("depth", "other", "expected"),
    [(6, 12, [0, 2, 4, 7, 9, 11]), (12, 6, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), (1, 4, [3]), (3, 1, [0, 0, 0])],
)
def test_depth_goes_by_relative_position(depth: int, other: int, expected: list[int]) -> None:
    assert [layer_at(i, depth, other) for i in range(depth)] == expected


def test_truncated_and_padded_where_asked(root: Path, tmp_path: Path) -> None:
    make(tmp_path / "narrow", "llama", seed=1, hidden_size=16, intermediate_size=24, head_dim=8, num_attention_heads=2,
         num_key_value_heads=2)  # fmt: skip
    own, narrow = tensors_of(root / "llama"), tensors_of(tmp_path / "narrow")
    name = "model.layers.0.mlp.up_proj.weight"
    for width in ("truncate", "pad"):
        found = adapted(tmp_path / "narrow", root / "llama", CrossDomain(width=width))
        assert torch.equal(found[name][:24, :16], narrow[name])
        rest = torch.zeros_like(own[name]) if width == "pad" else own[name]
        assert torch.equal(found[name][24:], rest[24:])
        assert torch.equal(found[name][:24, 16:], rest[:24, 16:])
        embedding = "model.embed_tokens.weight"
        assert torch.equal(found[embedding][:, :16], narrow[embedding])
    cut = adapted(root / "llama", tmp_path / "narrow", CrossDomain(width="truncate"))
    assert torch.equal(cut[name], own[name][:24, :16])


def test_strategies_and_weight(root: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", "distilbert", seed=4, n_layers=2, hidden_dim=40)
    own = tensors_of(root / "bert")
    found = {
        name: adapted(tmp_path / "other", root / "bert", CrossDomain(strategy=name, weight=weight))
        for name, weight in (("full", 1.0), ("embedding_only", 1.0), ("adapter", 0.25))
    }

    def changed(strategy: str) -> set[str]:
        return {name for name, tensor in own.items() if not torch.allclose(found[strategy][name], tensor, atol=1e-6)}

    norms_and_biases = {name for name in own if "LayerNorm.weight" in name or name.endswith("bias")}  # alike in both
    assert own.keys() - changed("full") == {"bert.embeddings.token_type_embeddings.weight"} | norms_and_biases
    assert changed("embedding_only") == {"bert.embeddings.word_embeddings.weight"}
    neurons = {n for n in own if "intermediate" in n or (n.endswith("output.dense.weight") and "attention" not in n)}
    assert changed("adapter") == changed("full") - neurons  # 40 neurons do not fit into 48
    query = "bert.encoder.layer.1.attention.self.query.weight"
    theirs = tensors_of(tmp_path / "other")["distilbert.transformer.layer.1.attention.q_lin.weight"]
    torch.testing.assert_close(found["adapter"][query], 0.75 * own[query] + 0.25 * theirs)


def test_fused_and_transposed_layouts_meet_by_role(tmp_path: Path) -> None:
    """GPT-2's c_attn is [in, query + key + value]; Phi-3 fuses too; GPT-NeoX alternates by head."""
    for kind in ("gpt2", "phi3", "gpt_neox"):
        make(tmp_path / kind, kind, seed=2, **({"num_key_value_heads": 4} if kind == "phi3" else {}))
    size = WIDTH // HEADS
    how = CrossDomain(strategy="adapter")
    gpt2 = tensors_of(tmp_path / "gpt2")["transformer.h.0.attn.c_attn.weight"].T
    neox = adapted(tmp_path / "gpt2", tmp_path / "gpt_neox", how)["gpt_neox.layers.0.attention.query_key_value.weight"]
    by_head = neox.reshape(HEADS, 3, size, WIDTH)
    for i, part in enumerate(gpt2.split(WIDTH)):
        assert torch.equal(by_head[:, i].reshape(WIDTH, WIDTH), part)
    phi3 = adapted(tmp_path / "gpt2", tmp_path / "phi3", how)["model.layers.0.self_attn.qkv_proj.weight"]
    assert torch.equal(phi3, gpt2)
    back = adapted(tmp_path / "phi3", tmp_path / "gpt2", how)["transformer.h.1.attn.c_attn.weight"]
    assert torch.equal(back.T, tensors_of(tmp_path / "phi3")["model.layers.1.self_attn.qkv_proj.weight"])


def test_the_plan_says_what_was_matched_adapted_and_left_out(root: Path, tmp_path: Path) -> None:
    make(tmp_path / "deep", "qwen3", seed=1, num_hidden_layers=4, hidden_size=48)
    models: list[Any] = [(ModelReference(str(path)), {"weight": 0.5}) for path in (root / "llama", tmp_path / "deep")]
    with plan_merge(Recipe.of_models("linear", models)) as plan:
        notes = "\n".join(plan.notes)
        assert {tensor.name for tensor in plan.tensors} == tensors_of(root / "llama").keys()
    for words in (
        "deep: adapted to llama (qwen3 and llama, 4 and 2 layers, 48 and 32 dimensions)",
        "attention input norm, mlp input norm in 2 layers; token embedding, final norm, head",
        "layers by relative position: 0 to 1 take 0, 3; left out: 1, 2",
        "48 dimensions into 32 by an orthogonal map fitted to the embeddings of 320 shared tokens",
        "left out: query norm, key norm in 2 layers",
    ):
        assert words in notes


def test_models_of_one_build_are_not_touched(root: Path, tmp_path: Path) -> None:
    make(tmp_path / "b", "llama", seed=1)
    models: list[Any] = [(ModelReference(str(path)), {"weight": 0.5}) for path in (root / "llama", tmp_path / "b")]
    for cross_domain in (None, CrossDomain("adapter")):
        with plan_merge(replace(Recipe.of_models("linear", models), cross_domain=cross_domain)) as plan:
            assert not plan.notes
            assert not any(source.fitted for source in plan.sources.values())


def test_a_build_that_nobody_knows_is_refused_where_it_was_asked_for(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "llama", tmp_path / "odd")
    tensors = {name.replace("self_attn", "mixer"): t for name, t in tensors_of(root / "llama").items()}
    save_file(tensors, tmp_path / "odd" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    models: list[Any] = [(ModelReference(str(path)), {}) for path in (root / "llama", tmp_path / "odd")]
    recipe = replace(Recipe.of_models("linear", models, parameters={"weight": 1.0}), cross_domain=CrossDomain())
    with pytest.raises(ModelError, match=r"mamba.*no architecture family that is known"):
        plan_merge(recipe)
    with pytest.raises(ModelError, match="mamba"):
        plan_merge(replace(recipe, cross_domain=None))


def test_the_setting_is_read_and_kept_by_a_recipe() -> None:
    text = "merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters: {weight: 1}\ncross_domain: "
    recipe = read_recipe_text(text + "{strategy: adapter, weight: 0.3, width: pad, target: b}\n")
    assert recipe.cross_domain == CrossDomain("adapter", "pad", 0.3, ModelReference("b"))
    assert Recipe.from_json(recipe.to_json()) == recipe
    resolved = recipe.with_digests({"a": "sha256:a", "b": "sha256:b"})
    assert resolved.cross_domain is not None
    assert resolved.cross_domain.target == ModelReference("b", digest="sha256:b")
    assert resolved.digest != replace(resolved, cross_domain=None).digest
    assert read_recipe_text(text + "embedding_only\n").cross_domain == CrossDomain("embedding_only")
    for mistake, words in (
        ("{strategy: fulll}", "did you mean 'full'"),
        ("{widht: pad}", "did you mean 'width'"),
        ("{weight: 2}", "0 to 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            read_recipe_text(text + mistake + "\n")


def test_bert_folders_with_and_without_a_pooler_merge(tmp_path: Path) -> None:
    """Saved as BertForMaskedLM (no pooler) and as BertModel (a pooler, names without `bert.`), in either order."""
    folders = [make_model(tmp_path / str(i), kind, seed=i) for i, kind in enumerate(("bert", "bert", "bert_pooled"))]
    models: list[Any] = [(ModelReference(str(path)), {"weight": 1.0}) for path in folders]
    merge_recipe(Recipe.of_models("linear", models[:2]), {}, tmp_path / "plain")
    report = merge_recipe(Recipe.of_models("linear", models), {}, tmp_path / "mixed")
    load_model(tmp_path / "plain")
    load_model(tmp_path / "mixed")
    assert any("pooler.dense.weight of" in note and "is left out" in note for note in report.notes)
    name = "encoder.layer.0.attention.self.query.weight"
    one, two = (tensors_of(path)["bert." + name] for path in folders[:2])
    torch.testing.assert_close(tensors_of(tmp_path / "plain")["bert." + name], (one + two) / 2)
    merge_recipe(Recipe.of_models("linear", models[::-1]), {}, tmp_path / "pooled")
    pooler = "pooler.dense.weight"  # the others have none: the average of three equal ones
    torch.testing.assert_close(tensors_of(tmp_path / "pooled")[pooler], tensors_of(folders[2])[pooler])
    load_model(tmp_path / "pooled")


SENTENCES = [
    f"{who} {verb} the {what} {when}."
    for who in ("The fox", "A dog", "My cat") for verb in ("found", "lost", "ate")
    for what in ("soup", "bone", "fish") for when in ("today", "again", "at noon")
]  # fmt: skip


def trained(folder: Path, layers: int, width: int, seed: int) -> Path:
    """A small llama that knows the sentences, which it was shown in an order of its own."""
    tok = tokenizer()
    make(folder, tok=tok, seed=seed, scale=1.0, hidden_size=width, num_hidden_layers=layers, head_dim=8,
         intermediate_size=2 * width, num_key_value_heads=4)  # fmt: skip
    model = load_model(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    for _ in range(50):
        chosen = [SENTENCES[i] for i in torch.randint(len(SENTENCES), (12,), generator=order)]
        found = tok(chosen, padding=True, return_tensors="pt")
        labels = found.input_ids.masked_fill(found.attention_mask == 0, -100)
        model(**found, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()  # type: ignore[untyped-decorator]
def loss_of(folder: Path) -> float:
    """Mean negative log-probability of a sentence's token."""
    found = tokenizer()(SENTENCES[::5], padding=True, return_tensors="pt")
    model = load_model(folder)
    return float(model(**found, labels=found.input_ids.masked_fill(found.attention_mask == 0, -100)).loss)


def test_a_merge_with_a_model_of_another_size_and_vocabulary_is_better_than_chance(tmp_path: Path) -> None:
    deep = trained(tmp_path / "deep", 4, 48, 1)
    other = shuffle_vocabulary(trained(tmp_path / "narrow", 2, 32, 2), tmp_path / "other")
    ids = torch.tensor([token for text in SENTENCES for token in tokenizer()(text).input_ids])
    shares = ids.bincount()[ids.bincount() > 0] / len(ids)
    chance = float(-(shares * shares.log()).sum())  # of whoever knows how often each token occurs
    models: list[Any] = [(ModelReference(str(path)), {"weight": 0.5}) for path in (deep, other)]
    merge_recipe(Recipe.of_models("linear", models), {}, tmp_path / "out")
    assert loss_of(deep) < 0.6 * chance
    assert loss_of(tmp_path / "out") < 0.5 * chance
