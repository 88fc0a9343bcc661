"""A transformers module gets its weights: made afresh, or by swapping a candidate's tensors into the one that is there.

Safetensors only by memory map; .bin only through torch's weights-only unpickler; no code of a model folder ever runs;
nothing is fetched.
"""

from __future__ import annotations

from typing import Any

import torch

from evomerge_common.errors import NotAModel, ShapeMismatch
from evomerge_scoring.tensors import MadeTensor, Weights
from evomerge_scoring.uncompiled import ShapesAlone, without_compiler

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options of every `from_pretrained`."""


def fresh_module(model_class: Any, config: Any, weights: Weights, dtype: torch.dtype, device: torch.device) -> Any:
    """A module of a class of transformers with these weights, in eval mode, on its device.

    Raises:
        ShapeMismatch: a tensor has another shape than the config asks for.
        NotAModel: tensors are missing.

    """
    # mismatched sizes are "ignored" so that they are told below, by name
    options: dict[str, Any] = {
        "config": config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True,
    }  # fmt: skip
    with without_compiler(), ShapesAlone():
        if weights.folder is not None:
            module, info = model_class.from_pretrained(weights.folder, weights_only=True, **options, **LOCAL)
        else:
            state = {name: source.read() for name, source in (weights.sources or {}).items()}
            module, info = model_class.from_pretrained(None, state_dict=state, **options)
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise ShapeMismatch(
            f"tensor {name!r} has shape {list(found)}, the config asks for {list(wanted)}; "
            "config.json and weights are not of one model"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise NotAModel(
            f"{len(missing)} tensors are missing, such as {missing[0]!r}, which a {model_class.__name__} of this "
            "config has: the weights are of a model without that part, of fewer layers, or under other names; put the "
            "config.json and the weights of one save together"
        )
    own_memory(module)
    return module.to(device).eval().requires_grad_(False)


def own_memory(module: Any) -> None:
    """Moves every tensor off a memory-mapped file into memory of its own, ties kept.

    A file may go away or change under a map; and memory that torch allocates is aligned as it always is, so that a
    fresh load and a swap compute bit for bit the same.
    """
    moved: dict[int, torch.Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if not tensor.numel():
            continue
        pointer = tensor.data_ptr()
        if pointer not in moved:
            moved[pointer] = tensor.detach().clone(memory_format=torch.contiguous_format)
        tensor.data = moved[pointer].view(tensor.shape)


def swap_weights(module: Any, weights: Weights, there: frozenset[str]) -> int | None:
    """Copies a candidate's tensors into a module; returns how many.

    Args:
        module: whose tensors are written.
        weights: of the candidate.
        there: names of tensors that are in the module already.

    Returns:
        None, and nothing is copied, where names, shapes or ties differ: the module is of another model.

    """
    own = module.state_dict(keep_vars=True)
    given = weights.sources or {}
    covered: dict[int, str] = {}
    for name, source in given.items():
        if name not in own or tuple(source.shape) != tuple(own[name].shape):
            return None
        first = covered.setdefault(own[name].data_ptr(), name)
        if first != name and not torch.equal(given[first].read(), source.read()):
            return None  # tied here, not tied there
    if any(tensor.data_ptr() not in covered for tensor in own.values()):
        return None
    wanted = [name for name in covered.values() if name not in there]
    with torch.no_grad():
        made = _merged_into({name: own[name] for name in wanted}, weights)
        for name in wanted:
            if name not in made:
                own[name].copy_(given[name].read())
    return len(wanted)


def _merged_into(targets: dict[str, torch.Tensor], weights: Weights) -> frozenset[str]:
    """Merges straight into the targets that are a merge's and lie in this machine's memory; says which those were."""
    sources = weights.sources or {}
    made = {
        name: (source, target)
        for name, target in targets.items()
        if isinstance(source := sources[name], MadeTensor) and target.is_contiguous() and target.device.type == "cpu"
    }
    if made:
        next(source for source, _ in made.values()).maker.put({name: target for name, (_, target) in made.items()})
    return frozenset(made)
