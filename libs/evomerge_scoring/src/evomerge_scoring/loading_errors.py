"""What goes wrong while a model is loaded, in the words of EvoMerge's own errors."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from evomerge_common.errors import EvoMergeException, NotAModel, UnsafeFile


@contextmanager
def model_errors(folder: Path) -> Iterator[None]:
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
