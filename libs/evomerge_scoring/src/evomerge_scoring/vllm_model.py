"""Scoring by vLLM, where it is installed and there is a GPU.

Uses its offline API alone: `LLM`, `SamplingParams`, `TokensPrompt`, prompt log-probabilities. A candidate is a new
engine: vLLM has no stable way to swap weights. Choices do not share rows; vLLM's prefix cache finds what they share.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evomerge_common.domain.spec import AUTO
from evomerge_common.errors import InvalidInput, ModelError, NonFiniteScore, Unavailable
from evomerge_models.describe import describe_model
from evomerge_scoring.model import Answer, Picture, Progress, Prompt, Row, Stop
from evomerge_scoring.pictures import Sight

if TYPE_CHECKING:
    from evomerge_merging import Plan


def use_vllm(backend: str, device: str) -> bool:
    """Whether vLLM is to score: asked for, or "auto", installed, and on a GPU.

    Raises:
        Unavailable: it is asked for and not here.

    """
    installed = importlib.util.find_spec("vllm") is not None
    if backend == "vllm" and not (installed and device == "cuda"):
        raise Unavailable("EVOMERGE_BACKEND=vllm needs vLLM (pip install vllm) and a CUDA GPU; set it to auto or torch")
    return backend != "torch" and installed and device == "cuda"


class VllmModel:
    """One candidate in a vLLM engine; see `model.ScoringModel`."""

    masked = False
    decoder_start: int | None = None
    sight = Sight(fault="vLLM is not given images; EVOMERGE_BACKEND=torch is")
    tree = 0

    def __init__(self, llm: Any, folder: Path) -> None:
        self._llm = llm
        self.tokenizer = llm.get_tokenizer()
        config = llm.llm_engine.model_config
        self.tokenizer_digest = f"vllm:{folder}"
        self.context = int(config.max_model_len) - 1  # a prompt is asked for at least one more token
        self.vocabulary = int(config.get_vocab_size())
        self.dtype = str(config.dtype).removeprefix("torch.")
        described = describe_model(folder)
        self.parameters, self.weight_bytes = described.parameters, described.bytes
        end = self.tokenizer.eos_token_id
        self.end_ids = frozenset() if end is None else frozenset([int(end)])

    def describe(self, threads: int) -> str:
        """Where and how it computes."""
        del threads
        return f"{torch.cuda.get_device_name()} {self.dtype} vllm"

    def answers(
        self, rows: Sequence[Row], size: int, progress: Progress | None = None, *, greedy: bool = False
    ) -> list[Answer]:
        """Log-probabilities of queried tokens, from vLLM's of the whole prompt; it batches as it likes."""
        from vllm import SamplingParams

        del size
        whole = [_with_last(row) for row in rows]
        options = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        found = self._llm.generate([_prompt(ids) for ids in whole], options, use_tqdm=False)
        result = []
        for row, ids, output in zip(rows, whole, found, strict=True):
            table: list[Mapping[int, Any] | None] = output.prompt_logprobs
            chosen = [(table[position + 1] or {})[ids[position + 1]] for position, _ in row.queries]
            values = [float(entry.logprob) for entry in chosen]
            if not all(map(math.isfinite, values)):
                raise NonFiniteScore("the model answered NaN or infinity; its weights are broken")
            result.append(Answer(values, [entry.rank == 1 for entry in chosen] if greedy else []))
        if progress:
            progress(range(len(rows)))
        return result

    def continuations(
        self, prompts: Sequence[Prompt], stop: Stop, size: int, progress: Progress | None = None
    ) -> list[list[int]]:
        """Greedy continuations without the end token; a stop string may still be in them."""
        from vllm import SamplingParams

        del size
        options = SamplingParams(
            max_tokens=stop.max_new_tokens, temperature=0.0, stop=list(stop.strings) or None,
            include_stop_str_in_output=True,
        )  # fmt: skip
        texts = [_prompt(list(ids)) for ids in prompts if not isinstance(ids, Picture)]
        found = self._llm.generate(texts, options, use_tqdm=False)
        if progress:
            progress(range(len(prompts)))
        return [[t for t in output.outputs[0].token_ids if t not in self.end_ids] for output in found]


class VllmResident:
    """Holds one engine; see `resident.Resident`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = AUTO
        self.loads = self.swaps = 0
        self._model: VllmModel | None = None

    def load_folder(self, folder: Path) -> VllmModel:
        """Starts an engine on a model folder.

        Raises:
            ModelError: it is no model, or vLLM cannot run it.

        """
        from vllm import LLM

        describe_model(folder)
        self._model = None
        gc.collect()  # the engine before holds most of the GPU's memory
        torch.cuda.empty_cache()
        try:
            llm = LLM(model=str(folder), seed=0, trust_remote_code=False, enable_prefix_caching=True)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{folder}: vLLM cannot run it: {str(error)[:300]}; EVOMERGE_BACKEND=torch may") from error
        self._model = VllmModel(llm, folder)
        self.loads += 1
        return self._model

    def load_plan(self, plan: Plan, *, threads: int = 2) -> VllmModel:
        """Merges into a folder that lives as long as the engine needs to read it."""
        from evomerge_merging import execute

        with tempfile.TemporaryDirectory(prefix="evomerge-") as name:
            execute(plan, Path(name) / "model", threads=threads)
            return self.load_folder(Path(name) / "model")

    def load_tensors(self, tensors: Mapping[str, torch.Tensor], config_folder: Path) -> VllmModel:
        """Not possible: vLLM reads folders."""
        raise InvalidInput("vLLM cannot score weights in memory; EVOMERGE_BACKEND=torch can")


def _with_last(row: Row) -> list[int]:
    """What is read, and the token that the last query asks about."""
    last = dict(row.queries).get(len(row.ids) - 1)
    return [*row.ids] if last is None else [*row.ids, last]


def _prompt(ids: list[int]) -> Any:
    from vllm import TokensPrompt

    return TokensPrompt(prompt_token_ids=ids)
