"""vLLM as a backend: one engine, and the next candidate of the same build swaps its weights into it.

The weights go by vLLM's own `reload_weights`, which loads a checkpoint's tensors in place; the keys and values that it
remembers of prompts are forgotten with the weights that they were made by. Where the engine lives in this process (one
device), the tensors come straight from the merge or the folder; else from files that every worker reads.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from evomerge_common.errors import ModelError, Unavailable
from evomerge_scoring.backend import LoadingBackend
from evomerge_scoring.config import config_key, context_of, end_ids, text_config, tokenizer_digest
from evomerge_scoring.devices import choose_dtype
from evomerge_scoring.loading_errors import model_errors
from evomerge_scoring.module import LOCAL
from evomerge_scoring.reading import CAUSAL, reading_of
from evomerge_scoring.tensors import Weights
from evomerge_scoring.vllm_model import VllmModel

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: tensors need no copy, steps are deterministic
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""What vLLM is told by the environment, unless a user says otherwise."""
BATCH_INVARIANT = (8, 0)
"""Compute capability from which vLLM can keep a score apart from who shares its batch."""


def use_vllm(backend: str, device: str) -> bool:
    """Whether vLLM is to score: asked for, or "auto", installed, and on a GPU.

    Raises:
        Unavailable: it is asked for and not here.

    """
    if backend == "torch":
        return False
    installed = importlib.util.find_spec("vllm") is not None
    if backend == "vllm" and not (installed and device in {"cuda", "cpu"}):
        raise Unavailable(
            "EVOMERGE_BACKEND=vllm needs vLLM, built for a CUDA GPU (pip install vllm) or for the CPU; set it to auto "
            "or torch"
        )
    return backend == "vllm" or (installed and device == "cuda")


class VllmResident(LoadingBackend[VllmModel]):
    """Holds one engine; see `backend.LoadingBackend`.

    Args:
        device: "cuda" is the first device that the process sees, or as many as `tensor_parallel` says.
        tensor_parallel: devices that the model is spread over.

    """

    def __init__(self, device: torch.device, *, tensor_parallel: int = 1) -> None:
        super().__init__(device)
        self._tensor_parallel = tensor_parallel
        self._llm: Any = None
        self._key = ""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if device.type == "cuda" and torch.cuda.get_device_capability(device) >= BATCH_INVARIANT:
            os.environ.setdefault("VLLM_BATCH_INVARIANT", "1")

    def _load(self, folder: Path, weights: Weights) -> VllmModel:
        """See `LoadingBackend._load`."""
        with model_errors(folder):
            config = AutoConfig.from_pretrained(folder, **LOCAL)
            if reading_of(config).how != CAUSAL:
                raise ModelError(f"vLLM is asked for causal models, not {config.model_type}; EVOMERGE_BACKEND=torch")
            dtype = choose_dtype(self.device, parameters=weights.parameters, wanted=self.dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
            words = tokenizer_digest(folder, config.model_type)
            key = _build(config_key(folder, dtype), words, weights)
            if not (key == self._key and self._swap(folder, weights)):
                self._start(folder, weights, dtype)
                self._key = key
        length = int(self._llm.llm_engine.model_config.max_model_len)
        stored = getattr(config, "dtype", None)
        itemsize = (stored if isinstance(stored, torch.dtype) else torch.float32).itemsize
        return VllmModel(
            llm=self._llm,
            end_engine=self._forget,
            tokenizer=tokenizer,
            tokenizer_digest=words,
            # A prompt is asked for one more token, and holds the token that the last query asks about.
            context=min(context_of(config, tokenizer), length - 2),
            vocabulary=int(text_config(config).vocab_size),
            end_ids=end_ids(folder, config, tokenizer),
            parameters=weights.parameters,
            weight_bytes=weights.parameters * itemsize,
            device=self.device,
            dtype=dtype,
        )

    def _start(self, folder: Path, weights: Weights, dtype: torch.dtype) -> None:
        """Starts an engine: the one before holds most of the device's memory, and ends first."""
        from vllm import LLM

        self._forget()
        with _files(folder, weights) as place:
            self._llm = LLM(
                model=str(place),
                dtype=str(dtype).removeprefix("torch."),
                seed=0,
                trust_remote_code=False,
                enable_prefix_caching=True,
                generation_config="vllm",
                tensor_parallel_size=self._tensor_parallel,
            )
        self.loads += 1

    def _swap(self, folder: Path, weights: Weights) -> bool:
        """Whether the engine that is there could take the weights, and forgets what it knew by those before."""
        if weights.sources is None:
            return False
        try:
            if self._tensor_parallel == 1:
                tensors = ((name, source.read()) for name, source in weights.sources.items())
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
            else:
                with _files(folder, weights) as place:
                    self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(place)})
            done = bool(self._llm.reset_prefix_cache())
        except BaseException:
            self._forget()  # half of one candidate and half of another
            raise
        self.swaps += done
        return done

    def _forget(self) -> None:
        self._key = ""
        if self._llm is None:
            return
        with suppress(AttributeError):
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _build(config: str, words: str, weights: Weights) -> str:
    """Equal where one engine serves both: config, dtype and tokenizer, and all names and shapes of the weights.

    vLLM loads what it is given, and leaves of the candidate before what is missing.
    """
    shapes = sorted((name, tuple(source.shape)) for name, source in (weights.sources or {}).items())
    return hashlib.sha256(json.dumps([config, words, shapes]).encode()).hexdigest()


@contextmanager
def _files(folder: Path, weights: Weights) -> Iterator[Path]:
    """A model folder with these weights: their own, or one that is written for as long as this takes."""
    if weights.folder is not None:
        yield weights.folder
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="evomerge-") as name:
        place = Path(name)
        for path in folder.iterdir():
            if path.is_file() and path.suffix not in {".safetensors", ".bin"}:
                shutil.copyfile(path, place / path.name)
        tensors = {name: source.read().contiguous() for name, source in (weights.sources or {}).items()}
        save_file(_apart(tensors), place / "model.safetensors", metadata={"format": "pt"})
        yield place


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share memory get memory of their own: a file holds each by itself."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found
