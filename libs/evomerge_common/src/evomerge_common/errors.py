"""Every error that EvoMerge raises on purpose.

EvoMergeException
├── InvalidInput                what was given cannot work; nothing expensive has started
│   ├── SpecError               a run spec, suite or recipe file: says file, line and key
│   │   ├── RecipeError         a recipe that means nothing: unknown method, parameter, layer range
│   │   └── SuiteError          a suite that cannot score: no items, unknown kind of task
│   ├── ModelError              a model that cannot be used
│   │   ├── ModelNotFound       no such folder, no such hub id, no access to it
│   │   ├── NotAModel           a folder without config or weights
│   │   ├── QuantisedModel      codes and scales in place of weights
│   │   ├── UnsafeFile          a pickle, a lying header, a path that leaves its folder
│   │   ├── OverQuota           a model that is larger than the store may be
│   │   ├── ShapeMismatch       models whose tensors do not fit each other
│   │   └── NonFiniteWeights    NaN or infinity in the weights
│   ├── AccessDenied            a hub wants a token, or another one
│   ├── LicenceConflict         sources whose licences exclude each other
│   ├── NotFound                no such run, model, job or artifact
│   └── UnservedScheme          a URI whose scheme no store serves
├── ResourceExhausted           this machine lacks something
│   ├── DiskFull
│   └── OutOfMemory
├── WorkFailed                  a job that was tried and will not succeed
│   ├── WorkerCrashed           the process that did the work died
│   ├── DeadlineExceeded        it took longer than it may
│   └── NonFiniteScore          the model answered NaN
└── Unavailable                 something that EvoMerge needs does not answer; trying again may help
    ├── Fenced                  another selector owns this run now
    └── BackPressure            the work queue is full
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

__all__ = [
    "AccessDenied",
    "BackPressure",
    "DeadlineExceeded",
    "DiskFull",
    "EvoMergeException",
    "Fenced",
    "InvalidInput",
    "LicenceConflict",
    "ModelError",
    "ModelNotFound",
    "NonFiniteScore",
    "NonFiniteWeights",
    "NotAModel",
    "NotFound",
    "OutOfMemory",
    "OverQuota",
    "QuantisedModel",
    "RecipeError",
    "ResourceExhausted",
    "ShapeMismatch",
    "SpecError",
    "SuiteError",
    "Unavailable",
    "UnsafeFile",
    "UnservedScheme",
    "WorkFailed",
    "WorkerCrashed",
    "did_you_mean",
    "error_from_info",
    "is_disk_full",
]


class EvoMergeException(Exception):
    """Root of the tree. Its message says what happened, where, and what to do."""


class InvalidInput(EvoMergeException):
    """What was given cannot work."""


Path = tuple[str | int, ...]


class SpecError(InvalidInput):
    """A run spec, suite or recipe that cannot work.

    `path` is the place inside the document, such as ("models", 0, "weight"); whoever read the document from
    a file adds the file name and line with `located`.
    """

    def __init__(self, message: str, path: Path = (), *, file: str = "", line: int = 0) -> None:
        self.problem = _shortened(message, 1000)
        self.path = path
        self.file = file
        self.line = line
        where = f"{file}:{line}" if file and line else file
        super().__init__(": ".join(part for part in (where, self.key, self.problem) if part))

    @property
    def key(self) -> str:
        """Returns the path as people write it: models[0].weight."""
        keys = (f"[{key}]" if isinstance(key, int) else f".{_shortened(key, 100)}" for key in self.path)
        return _shortened("".join(keys).lstrip("."), 300)

    def located(self, file: str, line: int) -> SpecError:
        """Returns the same error, of the same class, with its file and line."""
        return type(self)(self.problem, self.path, file=file, line=line)


class RecipeError(SpecError):
    """A recipe that means nothing."""


class SuiteError(SpecError):
    """A suite that cannot score."""


class ModelError(InvalidInput):
    """A model that cannot be used."""


class ModelNotFound(ModelError):
    """No such folder, no such hub id, or no access to it."""


class NotAModel(ModelError):
    """A folder without config or weights."""


class QuantisedModel(ModelError):
    """A model that holds codes and scales in place of weights: GPTQ, AWQ, bitsandbytes, scaled float8."""


class UnsafeFile(ModelError):
    """A file that EvoMerge refuses to read: a pickle, a lying header, a path that leaves its folder."""


class OverQuota(ModelError):
    """A model that is larger than the quota of the model store."""


class ShapeMismatch(ModelError):
    """Models whose tensors do not fit each other."""


class NonFiniteWeights(ModelError):
    """NaN or infinity in the weights."""


class AccessDenied(InvalidInput):
    """A hub that wants a token, or one that may do more."""


class LicenceConflict(InvalidInput):
    """Sources whose licences exclude each other, so that what is made of them could not be shared."""


class NotFound(InvalidInput):
    """No such run, model, job or artifact."""


class UnservedScheme(InvalidInput):
    """A URI whose scheme no store of this version serves."""


class ResourceExhausted(EvoMergeException):
    """This machine lacks something."""


class DiskFull(ResourceExhausted):
    """Too little room for what is about to be written."""


class OutOfMemory(ResourceExhausted):
    """Too little memory for one item."""


class WorkFailed(EvoMergeException):
    """A job that was tried and will not succeed."""


class WorkerCrashed(WorkFailed):
    """The process that did the work died."""


class DeadlineExceeded(WorkFailed):
    """It took longer than it may."""


class NonFiniteScore(WorkFailed):
    """The model answered NaN."""


class Unavailable(EvoMergeException):
    """Something that EvoMerge needs does not answer; trying again may help."""


class Fenced(Unavailable):
    """Another selector owns this run now."""


class BackPressure(Unavailable):
    """The work queue is full."""


def is_disk_full(error: BaseException) -> bool:
    """Tells whether an operating system's error, or one of ours, means that a disk or a quota is full."""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Writes a sentence that names the nearest valid word, or all of them when none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(word[:100], names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(names)}"


def _shortened(text: str, most: int) -> str:
    """What a client wrote may be megabytes long, and is quoted in errors."""
    return text if len(text) <= most else f"{text[:most]}…"


def error_from_info(type_name: str, message: str) -> EvoMergeException:
    """Makes the exception that an ErrorInfo (class name and message) tells of."""
    found = globals().get(type_name)
    if isinstance(found, type) and issubclass(found, EvoMergeException):
        return found(message)
    return WorkFailed(f"{type_name}: {message}")
