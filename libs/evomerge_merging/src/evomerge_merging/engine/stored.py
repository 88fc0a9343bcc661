"""A folder's config put right by what its tensors are: what is left over in it from an earlier save does not count."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge_common.errors import ModelError
from evomerge_merging.engine import architecture
from evomerge_merging.io.model_folder import RenamedStore, TensorStore, raw_elements
from evomerge_models.quantised import is_stale, without_quantisation

TIED_BY_DEFAULT = frozenset(
    {
        "albert", "bert", "bloom", "camembert", "cohere", "cohere2", "deberta", "deberta-v2", "distilbert", "electra",
        "ernie", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo", "mamba",
        "modernbert", "mpnet", "mpt", "opt", "roberta", "smollm3", "starcoder2", "t5", "xlm-roberta",
    }
)  # fmt: skip
"""Model types whose config class ties head and embedding where config.json has no word about it; for the others, which
are asked for seldom, transformers is imported."""
_WRAPPER = re.compile(r"(^|\.)_orig_mod\.")
_PIECE = 1 << 20


def config_as_stored(config: Mapping[str, Any], store: TensorStore, label: str) -> tuple[dict[str, Any], list[str]]:
    """The config of a folder as transformers follows it for these tensors, and what was put right, in words.

    A quantisation that no tensor has is left out. A head that is stored and differs from the embedding is one of its
    own, whatever `tie_word_embeddings` says (transformers' `tie_weights` compares the two). A head that is not stored
    is tied only where the config or its class says so.
    """
    result, notes = dict(config), []
    if is_stale(config, {name: info.dtype.name for name, info in store.tensors.items()}):
        result = without_quantisation(config)
        notes.append(
            f"the config of {label} speaks of a quantisation that its tensors do not have: they are taken as they "
            "are, and quantization_config is left out"
        )
    flag = architecture.tie_flag(config)
    if flag is True and _has_own_head(store):
        result = architecture.untied(result)
        notes.append(
            f"the config of {label} ties its head to its embedding, but it has a head that differs: the head is kept, "
            "as transformers does"
        )
    elif flag is None and architecture.is_tied(config, store.tensors) and not _ties_by_default(config):
        result = architecture.untied(result)
    return result, notes


def without_wrappers(store: TensorStore, label: str) -> tuple[TensorStore, list[str]]:
    """The tensors without the names of what a trainer wraps a model in (torch.compile, DataParallel), and a note."""
    names = bare_names(store.tensors)
    if all(own == name for own, name in names.items()):
        return store, []
    first = next(own for own, name in names.items() if own != name)
    note = f"names of {label}: what torch.compile or DataParallel adds, as in {first}, is taken away"
    return RenamedStore(store, unique(names, label)), [note]


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Name → the same without what torch.compile (anywhere) and DataParallel (before all names) add."""
    bare = {name: _WRAPPER.sub(r"\1", name) for name in names}
    while bare and all(name.startswith("module.") for name in bare.values()):
        bare = {own: name.removeprefix("module.") for own, name in bare.items()}
    return bare


def unique(names: Mapping[str, str], label: str) -> dict[str, str]:
    """New name → own, of own → new.

    Raises:
        ModelError: two tensors would have one name.

    """
    found: dict[str, str] = {}
    for own, name in names.items():
        if found.setdefault(name, own) != own:
            raise ModelError(f"{label} holds {name} twice, as {found[name]} and as {own}; remove one of them")
    return found


def _has_own_head(store: TensorStore) -> bool:
    """Whether a head is stored that is not the input embedding once more; reads both where it is."""
    embedding = architecture.input_embedding(store.tensors)
    head = next((name for name in store.tensors if architecture.is_head(name)), None)
    if embedding is None or head is None:
        return False
    one, other = store.tensors[embedding], store.tensors[head]
    if one.shape != other.shape:
        return True
    if one.dtype != other.dtype:
        return not bool((store.tensor(embedding).float() == store.tensor(head).float()).all())
    size = math.prod(one.shape)
    for start in range(0, size, _PIECE):
        stop = min(start + _PIECE, size)
        pieces = [raw_elements(store, name, start, stop)[0] for name in (embedding, head)]
        if pieces[0].tobytes() != pieces[1].tobytes():
            return True
    return False


def _ties_by_default(config: Mapping[str, Any]) -> bool:
    """What the config's class does without a word; True for classes that transformers does not know."""
    kind = str(config.get("model_type", ""))
    if kind in TIED_BY_DEFAULT:
        return True
    import transformers

    if kind not in transformers.CONFIG_MAPPING:
        return True
    return bool(getattr(transformers.CONFIG_MAPPING[kind](), "tie_word_embeddings", True))
