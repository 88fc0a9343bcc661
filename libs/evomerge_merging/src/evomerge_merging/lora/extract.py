"""From a model back to an adapter: what it changed in its base, as low-rank updates.

Sums of adapters of one base are taken over as they are, factors side by side, and are exact; of anything else each
linear layer's change is decomposed. Norms, biases and (unless asked otherwise) embeddings and heads are kept whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge_common.domain.recipe import Recipe
from evomerge_common.domain.reference import ModelReference
from evomerge_common.errors import InvalidInput, ModelError, ShapeMismatch
from evomerge_merging.engine import architecture
from evomerge_merging.engine.execute import Progress, merge_in_memory, workplace
from evomerge_merging.engine.nodes import Load
from evomerge_merging.engine.plan import OutputTensor, Plan, plan_merge
from evomerge_merging.engine.source import Source, open_source
from evomerge_merging.io.writer import write_text
from evomerge_merging.lora.folder import AdapterParts, same, write_adapter
from evomerge_merging.lora.low_rank import Product, decompose, reduce
from evomerge_merging.lora.sum import SumStore
from evomerge_models import card as cards

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from evomerge_merging.torch_later import torch

EMBEDDINGS = ("save", "lora", "skip")


@dataclass(frozen=True)
class ModuleError:
    """One tensor of an adapter: its rank (0: kept whole), and what of its change is lost, as a share (Frobenius)."""

    tensor: str
    rank: int
    relative_error: float
    squared_norm: float


@dataclass(frozen=True)
class AdapterReport:
    """What an extraction did.

    Attributes:
        relative_error: of all changes together.
        skipped: changed tensors that were left out, as asked.

    """

    out_dir: Path
    bytes: int
    modules: tuple[ModuleError, ...]
    relative_error: float
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def extract_lora(
    finetuned: ModelReference,
    base: ModelReference,
    out: Path,
    *,
    rank: int,
    models: Mapping[str, Path] | None = None,
    embeddings: str = "save",
    threads: int = 2,
    progress: Progress | None = None,
) -> AdapterReport:
    """Writes what a fine-tuned model changed in its base as a LoRA adapter that PEFT loads.

    Args:
        finetuned: the model; also base+adapter.
        base: what it was fine-tuned from.
        out: must not exist, or be empty.
        rank: of each linear layer, at most.
        models: see `plan_merge`.
        embeddings: what becomes of embeddings and head that changed: "save" keeps them whole, "lora" decomposes them
            too, "skip" leaves them out.
        threads: of the work; the result does not depend on it.
        progress: called with (bytes done, bytes in all).

    Raises:
        InvalidInput: rank or `embeddings` mean nothing; `out` is not empty.
        ShapeMismatch, ModelError: the two do not fit, or nothing changed.

    """
    with plan_merge(Recipe.of_source(finetuned), models) as plan:
        root = open_source(base, models or {})
        try:
            return _write(plan, root, str(base), out, rank, embeddings, threads, progress)
        finally:
            root.store.close()


def export_adapter(
    recipe: Recipe,
    out: Path,
    *,
    rank: int | None = None,
    models: Mapping[str, Path] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> AdapterReport:
    """Writes the model of a recipe over adapters of one base as one adapter of that base.

    Args:
        recipe: sources that are all adapters of one base (and the base).
        out: must not exist, or be empty.
        rank: of each layer, at most; None: as large as the sum needs, which is exact.
        models, threads, progress: see `extract_lora`.

    Raises:
        ModelError: the sources are not adapters of one base; or a linear layer is no sum of updates and no rank is
            given.

    """
    with plan_merge(recipe, models) as plan:
        found = plan.kept()
        if found is None:
            raise ModelError(
                "the recipe's models are not adapters of one base, so it is no adapter; `evomerge extract-lora` makes "
                "one of any model and its base"
            )
        root = found[0]
        name = next((source.name for source in recipe.sources() if source.adapter), str(root.folder))
        return _write(plan, root, name, out, rank, "save", threads, progress)


def _write(
    plan: Plan,
    root: Source,
    name: str,
    out: Path,
    rank: int | None,
    embeddings: str,
    threads: int,
    progress: Progress | None,
) -> AdapterReport:
    if rank is not None and rank < 1:
        raise InvalidInput(f"the rank must be 1 or more, not {rank}")
    if embeddings not in EMBEDDINGS:
        raise InvalidInput(f"embeddings must be one of {', '.join(EMBEDDINGS)}, not {embeddings!r}")
    tied = architecture.is_tied(plan.config, [tensor.name for tensor in plan.tensors])
    work = _Extraction(plan, root, rank, embeddings, tied=tied)
    work.check()
    with workplace(out, staged=False) as folder:
        modules = work.run(threads, progress)
        if not work.parts.products:
            raise ModelError(f"no linear layer of {root.label} was changed, so there is nothing for an adapter to hold")
        size = write_adapter(folder, work.parts, root.store.tensors, root.config, name, tied=tied)
        plan.tokenizer.write(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        norm = math.fsum(module.squared_norm for module in modules)
        error = math.fsum(module.relative_error**2 * module.squared_norm for module in modules)
        report = AdapterReport(
            out, size, tuple(modules), math.sqrt(error / norm) if norm else 0.0, tuple(sorted(work.skipped)), plan.notes
        )
        write_text(folder / cards.CARD, _card(report, ModelReference.of_name(name)))
    return report


class _Extraction:
    def __init__(self, plan: Plan, root: Source, rank: int | None, embeddings: str, *, tied: bool) -> None:
        self.parts = AdapterParts()
        self.skipped: list[str] = []
        self._plan, self._root, self._rank, self._embeddings, self._tied = plan, root, rank, embeddings, tied
        self._base = root.store.tensors

    def check(self) -> None:
        """Names and shapes, before anything is computed."""
        types = self._plan.config.get("model_type"), self._root.config.get("model_type")
        if types[0] != types[1]:
            raise ModelError(f"the model is of type {types[0]!r}, its base {self._root.label} of type {types[1]!r}")
        for tensor in self._plan.tensors:
            vocabulary = architecture.is_token_embedding(tensor.name) or architecture.is_head(tensor.name)
            if tensor.name not in self._base:
                if architecture.is_head(tensor.name):
                    continue
                raise ShapeMismatch(f"{self._root.label} has no tensor {tensor.name!r}: give the base of this model")
            shape = self._base[tensor.name].shape
            if tensor.shape != shape and not (vocabulary and tensor.shape[1:] == shape[1:]):
                raise ShapeMismatch(
                    f"{tensor.name} is {list(tensor.shape)} in the model and {list(shape)} in {self._root.label}: give "
                    "the base of this model"
                )

    def run(self, threads: int, progress: Progress | None) -> list[ModuleError]:
        """Every tensor, largest first; the results in order of names."""
        found = self._plan.kept()
        kept = found[1] if found and found[0].folder.resolve() == self._root.folder.resolve() else frozenset()
        tensors = [tensor for tensor in self._plan.tensors if tensor.name not in kept]
        tensors.sort(key=lambda tensor: -tensor.numel)
        total, done = sum(tensor.bytes for tensor in tensors), 0
        before = torch.get_num_threads()
        results: list[ModuleError] = []
        try:
            with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="extract") as pool:
                for tensor, result in zip(tensors, pool.map(self._one, tensors), strict=True):
                    results += [result] if result else []
                    done += tensor.bytes
                    if progress:
                        progress(done, total)
        finally:
            torch.set_num_threads(before)
        return sorted(results, key=lambda result: result.tensor)

    def _one(self, tensor: OutputTensor) -> ModuleError | None:
        torch.set_num_threads(1)
        name = tensor.name
        with torch.no_grad():
            product = self._sum_of_updates(tensor)
            if product is None:
                after = merge_in_memory(replace(self._plan, tensors=(tensor,)), threads=1)[name]
                torch.set_num_threads(1)
                before = self._root.store.tensor(name) if name in self._base else None
                if before is not None and same(before, after):
                    return None
                if before is None or not self._decomposed(tensor):
                    return self._whole(name, before, after)
                if self._rank is None:
                    raise ModelError(f"{name} is no sum of low-rank updates; give a rank, at which it is approximated")
                product = decompose(after.float() - before.float(), self._rank, key=name)
        self.parts.products[name] = product
        return ModuleError(name, product.rank, product.relative_error, product.squared_norm)

    def _decomposed(self, tensor: OutputTensor) -> bool:
        if len(tensor.shape) != 2 or tensor.shape != self._base[tensor.name].shape:
            return False
        vocabulary = architecture.is_token_embedding(tensor.name) or architecture.is_head(tensor.name)
        if vocabulary:
            return self._embeddings == "lora" and not self._tied
        return tensor.name.endswith(".weight") and not architecture.is_embedding(tensor.name)

    def _whole(self, name: str, before: Tensor | None, after: Tensor) -> ModuleError | None:
        vocabulary = architecture.is_embedding(name) or architecture.is_head(name)
        if vocabulary and self._embeddings == "skip":
            self.skipped.append(name)
            return None
        self.parts.whole[name] = after
        alike = before is not None and before.shape == after.shape
        norm = float((after.double() - before.double()).square().sum()) if alike and before is not None else 0.0
        return ModuleError(name, 0, 0.0, norm)

    def _sum_of_updates(self, tensor: OutputTensor) -> Product | None:
        """The factors side by side, where the tensor is this base's plus a sum of adapters' updates."""
        node = tensor.node
        source = self._plan.sources[node.source] if isinstance(node, Load) else None
        if (
            source is None
            or not isinstance(source.store, SumStore)
            or source.folder.resolve() != self._root.folder.resolve()
        ):
            return None
        factors = source.store.factors(tensor.name)
        return reduce(factors.left, factors.right, self._rank)


def _card(report: AdapterReport, base: ModelReference) -> str:
    head = cards.Metadata(cards.hub_ids([base]), "adapter", "peft", "text-generation", ("lora", "evomerge"))
    ranks = sorted({module.rank for module in report.modules if module.rank})
    return (
        f"{head.front_matter()}\n# LoRA adapter of {base.public}\n\nMade by EvoMerge. Rank "
        f"{' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}; of all changes to the base "
        f"{report.relative_error:.2%} (Frobenius) are lost.\n"
    )
