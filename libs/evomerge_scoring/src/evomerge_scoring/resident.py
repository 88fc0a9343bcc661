"""A model that stays in memory: the next candidate of the same config only swaps its tensors in.

Safetensors only by memory map; .bin only through torch's weights-only unpickler; no code of a model folder ever runs;
nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from evomerge_common.domain.recipe import ModelReference, Recipe
from evomerge_common.errors import EvoMergeException, ModelError, NotAModel, ShapeMismatch, UnsafeFile
from evomerge_models.describe import describe_model
from evomerge_models.pair import read_pair
from evomerge_scoring.devices import choose_dtype, describe
from evomerge_scoring.encode import tree_limit
from evomerge_scoring.forward import Answer, Gather, Row, token_answers
from evomerge_scoring.generation import Stop, generate
from evomerge_scoring.model import Progress

if TYPE_CHECKING:
    from evomerge_merging import Plan
    from evomerge_merging.engine.plan import OutputTensor
    from evomerge_merging.io.model_folder import TensorStore

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template*")  # fmt: skip
_NO_EFFECT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # config keys that change no score
_MASKED_TYPES = frozenset(
    ("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mobilebert", "modernbert",
     "mpnet", "roberta", "xlm-roberta")
)  # fmt: skip
DEFAULT_CONTEXT = 2048
MERGE_THREADS = 2


@dataclass
class LoadedModel:
    """A model ready to score.

    Attributes:
        module: in eval mode, on its device; `gather` picks the positions whose logits it computes.
        context: tokens that it reads at most.
        masked: a masked language model (BERT and its kin).
        end_ids: tokens that end a generation.
        halved: batches so far that did not fit into memory: scores may differ in their last bits from those elsewhere.

    """

    module: Any
    gather: Gather
    tokenizer: Any
    tokenizer_digest: str
    context: int
    masked: bool
    end_ids: frozenset[int]
    device: torch.device
    dtype: torch.dtype
    halved: int = 0

    @property
    def tree(self) -> int:
        """See `encode.tree_limit`."""
        return tree_limit(self.module.config.get_text_config())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in the dtype that the model is stored in."""
        stored = getattr(self.module.config, "dtype", None)
        return self.parameters * int((stored if isinstance(stored, torch.dtype) else torch.float32).itemsize)

    def answers(
        self, rows: Sequence[Row], size: int, progress: Progress | None = None, *, greedy: bool = False
    ) -> list[Answer]:
        """See `forward.token_answers`."""
        return token_answers(self, rows, size, progress, greedy=greedy)

    def continuations(
        self, prompts: Sequence[Sequence[int]], stop: Stop, size: int, progress: Progress | None = None
    ) -> list[list[int]]:
        """See `generation.generate`."""
        return generate(self, prompts, stop, size, progress)

    def describe(self, threads: int) -> str:
        """Where and how it computed."""
        return describe(self.device, self.dtype, threads) + (", batches halved" if self.halved else "")

    @property
    def parameters(self) -> int:
        """Numbers in its weights, tied ones once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def vocabulary(self) -> int:
        return int(self.module.config.get_text_config().vocab_size)


class Resident:
    """Holds one module and one tokenizer, and replaces of them only what the next candidate needs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loads = 0
        self.copied = 0
        self.swaps = 0
        self._key = ""
        self._weights = ""  # of which all tensors in the module are, but `_changed`
        self._changed: frozenset[str] = frozenset()
        self._module: Any = None
        self._gather: Gather | None = None
        self._tokenizer: Any = None
        self._tokenizer_digest = ""

    def load_folder(self, folder: Path) -> LoadedModel:
        """Makes a model folder the resident model.

        Raises:
            ModelError: it is missing, no model, unsafe, or its tensors do not fit its config.

        """
        if read_pair(folder) is not None:
            from evomerge_merging import plan_merge

            with _model_errors(folder), plan_merge(Recipe.of_source(ModelReference(str(folder)))) as plan:
                return self.load_plan(plan)
        files = weight_files(folder)
        if not files:
            return self._load(folder, folder, None)
        tensors = list(_tensors_of(files))
        return self._load(folder, folder, tensors, _identity(folder), frozenset(name for name, _ in tensors))

    def load_plan(self, plan: Plan, *, threads: int = 2) -> LoadedModel:
        """Makes the model of a merge plan the resident one, without a file of it anywhere.

        Of adapters over one base only what they change is made and put in place, where the base is resident already.

        Raises:
            ModelError: the merge cannot be made, or its result is no model.

        """
        threads = max(MERGE_THREADS, threads)  # they change no bit of it
        with tempfile.TemporaryDirectory(prefix="evomerge-") as name:
            folder = Path(name)
            plan.tokenizer.write(folder)
            (folder / "config.json").write_text(json.dumps(dict(plan.config)), "utf-8")
            found = plan.kept()
            root, kept = found if found is not None else (None, frozenset[str]())
            maker = _Maker(plan, kept, threads)
            tensors: list[tuple[str, Any]] = [
                (
                    tensor.name,
                    _Stored(root.store, tensor.name) if root and tensor.name in kept else _Made(maker, tensor),
                )
                for tensor in plan.tensors
            ]
            return self._load(folder, None, tensors, _identity(root.folder) if root else "", kept)

    def load_tensors(self, tensors: Mapping[str, torch.Tensor], config_folder: Path) -> LoadedModel:
        """Makes tensors in memory the resident model; config and tokenizer come from a folder.

        Raises:
            ModelError: the tensors do not fit the config.

        """
        return self._load(config_folder, None, list(tensors.items()))

    def _load(
        self,
        folder: Path,
        weights: Path | None,
        tensors: list[tuple[str, Any]] | None,
        origin: str = "",
        kept: frozenset[str] = frozenset(),
    ) -> LoadedModel:
        """`kept`: names of tensors that are those of the weights with the identity `origin`."""
        with _model_errors(folder):
            config = AutoConfig.from_pretrained(folder, **_LOCAL)
            count = sum(_numel(tensor) for _, tensor in tensors) if tensors else 0
            dtype = choose_dtype(self.device, parameters=count)
            masked = _is_masked(config)
            key = _config_key(folder, dtype)
            if key == self._key and tensors is not None and self._swap(tensors, origin, kept):
                self.swaps += 1
            else:
                self._forget()
                self._module = self._fresh(config, weights, tensors, dtype, masked)
                self._gather = Gather(self._module)
                self._key = key
                self.loads += 1
            self._weights = origin
            self._changed = frozenset(name for name, _ in tensors or ()) - kept
            tokenizer = self._load_tokenizer(folder, config.model_type)
        assert self._gather is not None
        return LoadedModel(
            module=self._module,
            gather=self._gather,
            tokenizer=tokenizer,
            tokenizer_digest=self._tokenizer_digest,
            context=_context(config, tokenizer),
            masked=masked,
            end_ids=_end_ids(folder, config, tokenizer),
            device=self.device,
            dtype=dtype,
        )

    def _forget(self) -> None:
        self._module = self._gather = None
        self._key = self._weights = ""

    def _fresh(self, config: Any, weights: Path | None, tensors: Any, dtype: torch.dtype, masked: bool) -> Any:
        auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        # mismatched sizes are "ignored" so that they are told below, by name
        options: dict[str, Any] = {
            "config": config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True,
        }  # fmt: skip
        if weights is not None:
            module, info = auto.from_pretrained(weights, weights_only=True, **options, **_LOCAL)
        else:
            kind = auto._model_mapping[type(config)]
            state = {name: _read(tensor) for name, tensor in tensors}
            module, info = kind.from_pretrained(None, state_dict=state, **options)
        if info["mismatched_keys"]:
            name, found, wanted = min(info["mismatched_keys"])
            raise ShapeMismatch(
                f"tensor {name!r} has shape {list(found)}, the config asks for {list(wanted)}; "
                "config.json and weights are not of one model"
            )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise NotAModel(
                f"{len(missing)} tensors are missing, such as {missing[0]!r}; fetch or merge the model again"
            )
        own_memory(module)
        return module.to(self.device).eval().requires_grad_(False)

    def _swap(self, tensors: list[tuple[str, Any]], origin: str, kept: frozenset[str]) -> bool:
        """Copies the tensors into the resident module; False (and nothing copied) where names or shapes differ.

        Those that are there already, from the same files, are left alone.
        """
        there = kept - self._changed if origin and origin == self._weights else frozenset()
        own = self._module.state_dict(keep_vars=True)
        given = dict(tensors)
        covered: dict[int, str] = {}
        for name, tensor in given.items():
            if name not in own or _shape(tensor) != tuple(own[name].shape):
                return False
            first = covered.setdefault(own[name].data_ptr(), name)
            if first != name and not torch.equal(_read(given[first]), _read(tensor)):
                return False  # tied here, not tied there
        if any(tensor.data_ptr() not in covered for tensor in own.values()):
            return False
        self._weights = ""  # until all are in place
        with torch.no_grad():
            wanted = [name for name in covered.values() if name not in there]
            made = {name: own[name] for name in wanted if isinstance(given[name], _Made) and own[name].is_contiguous()}
            if made and self.device.type == "cpu":
                given[next(iter(made))].maker.put(made)
            else:
                made = {}
            for name in wanted:
                if name not in made:
                    own[name].copy_(_read(given[name]))
            self.copied += len(wanted)
        return True

    def _load_tokenizer(self, folder: Path, model_type: str) -> Any:
        # the same files make another tokenizer under another model_type: transformers picks its class by it
        files = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}
        digest = f"{model_type}:{_files_digest(files)}"
        if digest != self._tokenizer_digest:
            self._tokenizer_digest = ""
            self._tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
            self._tokenizer_digest = digest
        return self._tokenizer


class _Maker:
    """Makes tensors of a merge plan: into memory that waits for them, or all that are not kept at once."""

    def __init__(self, plan: Plan, kept: frozenset[str], threads: int) -> None:
        self._plan, self._kept, self._threads = plan, kept, threads
        self._tensors: dict[str, torch.Tensor] = {}

    def put(self, targets: dict[str, torch.Tensor]) -> None:
        from evomerge_merging import merge_into

        merge_into(self._plan, targets, threads=self._threads)

    def tensor(self, name: str) -> torch.Tensor:
        from evomerge_merging import merge_in_memory

        if not self._tensors:
            self._tensors = merge_in_memory(self._plan, threads=self._threads, without=self._kept)
        return self._tensors[name]


class _Made:
    """A tensor of a merge plan, made when it is needed."""

    def __init__(self, maker: _Maker, tensor: OutputTensor) -> None:
        self.maker = maker
        self._name, self.shape = tensor.name, tensor.shape

    def read(self) -> torch.Tensor:
        return self.maker.tensor(self._name)


class _Stored:
    """A tensor in an open store, read when it is needed."""

    def __init__(self, store: TensorStore, name: str) -> None:
        self._store, self._name = store, name
        self.shape = store.tensors[name].shape

    def read(self) -> torch.Tensor:
        return self._store.tensor(self._name)


class _Lazy:
    """A tensor in a memory-mapped file, read when it is needed."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name
        self.shape = tuple(file.get_slice(name).get_shape())

    def read(self) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(self._name)
        return tensor


def _tensors_of(files: Iterable[Path]) -> Iterator[tuple[str, _Lazy]]:
    for path in files:
        file: Any = safe_open(path, framework="pt", device="cpu")
        names: list[str] = file.keys()
        yield from ((name, _Lazy(file, name)) for name in names)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, after checking it; empty for .bin weights."""
    return [folder / name for name in describe_model(folder).files if name.endswith(".safetensors")]


def _identity(folder: Path) -> str:
    """What tells one folder's weights from others, and from their own earlier state; "" where that is not known."""
    stats = [(str(path.resolve()), path.stat()) for path in weight_files(folder)]
    return repr([(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]) if stats else ""


def _read(tensor: Any) -> torch.Tensor:
    found: torch.Tensor = tensor.read() if isinstance(tensor, _Lazy | _Stored | _Made) else tensor
    return found


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _numel(tensor: Any) -> int:
    count = 1
    for n in _shape(tensor):
        count *= n
    return count


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


@contextmanager
def _model_errors(folder: Path) -> Iterator[None]:
    """Whatever the libraries raise about a model folder, as an error of our tree that names the folder."""
    try:
        yield
    except EvoMergeException as error:
        if str(folder) in str(error):
            raise
        raise type(error)(f"{folder}: {error}") from error
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise UnsafeFile(f"{folder}: its weights cannot be read safely: {_short(error)}") from error
    except FileNotFoundError:
        raise  # gone between the check and now: the caller knows why
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        text = str(error)
        if "custom code" in text or "trust_remote_code" in text:
            raise UnsafeFile(f"{folder} needs code of its own to run; EvoMerge never runs a model's code") from error
        if "memory" in text and isinstance(error, RuntimeError):
            raise
        raise NotAModel(f"{folder} cannot be loaded: {_short(error)}") from error
    except Exception as error:  # tokenizers raises bare Exception
        raise NotAModel(f"{folder} cannot be loaded: {_short(error)}") from error


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"


def _is_masked(config: Any) -> bool:
    names = config.architectures or [""]
    if any("ForMaskedLM" in name for name in names):
        return True
    causal = any("ForCausalLM" in name or "LMHead" in name for name in names)
    return config.model_type in _MASKED_TYPES and not causal


def _config_key(folder: Path, dtype: torch.dtype) -> str:
    data = json.loads((folder / "config.json").read_bytes())
    kept = {key: value for key, value in data.items() if key not in _NO_EFFECT}
    return hashlib.sha256(json.dumps([kept, str(dtype)], sort_keys=True).encode()).hexdigest()


def _files_digest(paths: set[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _context(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    found = next(
        (int(getattr(text, key)) for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
         if isinstance(getattr(text, key, None), int)),
        0,
    )  # fmt: skip
    if found and text.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        found -= (text.pad_token_id or 0) + 1  # their positions start after the padding id
    said = int(min(getattr(tokenizer, "model_max_length", 0) or 0, 10**9))
    if 0 < said < 10**9:
        found = min(found, said) if found else said
    return found if found > 1 else DEFAULT_CONTEXT


def _end_ids(folder: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    """End tokens as config, generation config and tokenizer name them."""
    named = [getattr(config.get_text_config(), "eos_token_id", None), tokenizer.eos_token_id]
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            named.append(json.loads(path.read_bytes()).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{path} is no JSON object: {error}") from error
    flat = [n for item in named for n in (item if isinstance(item, list) else [item])]
    return frozenset(n for n in flat if isinstance(n, int))
