"""Jobs and events as values. Their definition is proto/evomerge/v1; `codec` maps field by field, and a test holds
both sides equal. See the .proto files for what each field means.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Model:
    reference: str = ""
    digest: str = ""
    uri: str = ""
    commit: str = ""
    architecture: str = ""
    num_layers: int = 0
    parameters: int = 0
    bytes: int = 0
    base: str = ""
    layers: str = ""
    fixed_scale: bool = False
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    position: int = 0
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    task: str = ""
    score: float = 0.0
    metric: str = ""
    metric_value: float = 0.0
    item_scores: tuple[float, ...] = ()
    positions: tuple[int, ...] = ()
    credit: float = 0.0
    answers: tuple[Answer, ...] = field(default=(), compare=False)  # for people; known scores come without


@dataclass(frozen=True, kw_only=True)
class TaskItems:
    task: str = ""
    positions: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ErrorInfo:
    type: str = ""
    message: str = ""


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class DownloadJob:
    reference: str = ""
    base: str = ""
    together: tuple[str, ...] = ()
    accept_licence_conflict: bool = False


@dataclass(frozen=True, kw_only=True)
class MergeJob:
    recipe_json: str = ""
    recipe_digest: str = ""
    sources: tuple[Model, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    recipe_json: str = ""
    recipe_digest: str = ""
    sources: tuple[Model, ...] = ()
    artifact_uri: str = ""
    suite_uri: str = ""
    suite_digest: str = ""
    split: str = ""
    threads: int = 0
    items: tuple[TaskItems, ...] = ()
    rung: int = 0
    dtype: str = ""
    graded: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    recipe_json: str = ""
    recipe_digest: str = ""
    sources: tuple[Model, ...] = ()
    format: str = ""
    destination: str = ""
    card: str = ""
    gguf_type: str = ""


ADHOC = "adhoc"
"""Run id of the jobs that a service's own API queues: they belong to no run, and no selector waits for them."""
JobPayload = DownloadJob | MergeJob | EvaluateJob | ExportJob
JOB_KINDS: dict[type, str] = {DownloadJob: "download", MergeJob: "merge", EvaluateJob: "evaluate", ExportJob: "export"}


@dataclass(frozen=True, kw_only=True)
class Job:
    job_id: str
    run_id: str
    payload: JobPayload
    attempt: int = 0

    @property
    def message_id(self) -> str:
        """Names this attempt: the same one is queued once, a later one again."""
        return f"{self.job_id}+{self.attempt}" if self.attempt else self.job_id

    @property
    def kind(self) -> str:
        """Says download, merge, evaluate or export: the end of the queue's subject."""
        return JOB_KINDS[type(self.payload)]


# ---- decisions ----


@dataclass(frozen=True, kw_only=True)
class TaskShape:
    task: str = ""
    weight: float = 0.0
    items: int = 0
    fitness: str = ""


@dataclass(frozen=True, kw_only=True)
class EarlierCandidate:
    run_id: str = ""
    recipe_digest: str = ""
    genome_json: str = ""
    fitness: float = 0.0
    scores: tuple[float, ...] = ()
    credits: tuple[float, ...] = ()
    dtype: str = ""


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    spec_json: str = ""
    request_id: str = ""
    version: str = ""
    suite_uri: str = ""
    suite_digest: str = ""
    has_holdout: bool = False
    tasks: tuple[TaskShape, ...] = ()
    earlier: tuple[EarlierCandidate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskGraded:
    task: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CandidateProposed:
    index: int = 0
    recipe_digest: str = ""
    recipe_json: str = ""
    genome_json: str = ""
    operator: str = ""
    parents: tuple[str, ...] = ()
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class CandidateSelected:
    generation: int = 0
    recipe_digests: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationCompleted:
    generation: int = 0
    evaluated: int = 0
    best_fitness: float = 0.0
    mean_fitness: float = 0.0
    diversity: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ChampionChanged:
    recipe_digest: str = ""
    fitness: float = 0.0
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class RungEstimate:
    fitness: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CandidateRaced:
    recipe_digest: str = ""
    index: int = 0
    stopped: bool = False
    rung: int = 0
    items: int = 0
    fitness: float = 0.0
    low: float = 0.0
    high: float = 0.0
    scores: tuple[TaskScore, ...] = ()
    against: str = ""
    chance: float = 0.0
    estimates: tuple[RungEstimate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunPaused:
    reason: str = ""
    lack: ErrorInfo = field(default_factory=ErrorInfo)


@dataclass(frozen=True, kw_only=True)
class RunResumed:
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RunContinued:
    spec_json: str = ""


@dataclass(frozen=True, kw_only=True)
class RunCancelled:
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFailed:
    error: ErrorInfo = field(default_factory=ErrorInfo)


@dataclass(frozen=True, kw_only=True)
class Control:
    kind: str = ""
    recipe_digest: str = ""
    recipe_json: str = ""


@dataclass(frozen=True, kw_only=True)
class SearchEnded:
    champion_digest: str = ""
    reason: str = ""
    evaluated: int = 0
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    champion_digest: str = ""
    reason: str = ""
    fitness: float = 0.0


# ---- results ----


@dataclass(frozen=True, kw_only=True)
class ModelReady:
    job_id: str = ""
    model: Model = field(default_factory=Model)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CandidateMerged:
    job_id: str = ""
    recipe_digest: str = ""
    uri: str = ""
    bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CandidateEvaluated:
    job_id: str = ""
    recipe_digest: str = ""
    suite_digest: str = ""
    split: str = ""
    fitness: float = 0.0
    scores: tuple[TaskScore, ...] = ()
    seconds: float = 0.0
    device: str = ""
    cached: bool = False
    partial: bool = False
    rung: int = 0
    computed: int = 0
    dtype: str = ""


@dataclass(frozen=True, kw_only=True)
class CandidateFailed:
    job_id: str = ""
    kind: str = ""
    recipe_digest: str = ""
    split: str = ""
    reference: str = ""
    error: ErrorInfo = field(default_factory=ErrorInfo)


@dataclass(frozen=True, kw_only=True)
class JobPostponed:
    job_id: str = ""
    kind: str = ""
    attempt: int = 0
    error: ErrorInfo = field(default_factory=ErrorInfo)


@dataclass(frozen=True, kw_only=True)
class ArtifactExported:
    job_id: str = ""
    recipe_digest: str = ""
    format: str = ""
    uri: str = ""
    bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


Decision = (
    RunStarted | CandidateProposed | CandidateSelected | GenerationCompleted | ChampionChanged | CandidateRaced
    | TaskGraded | RunPaused | RunResumed | RunContinued | RunCancelled | RunFailed | SearchEnded | RunFinished
)  # fmt: skip
Result = ModelReady | CandidateMerged | CandidateEvaluated | CandidateFailed | JobPostponed | ArtifactExported
TERMINAL = (RunFinished, RunCancelled, RunFailed)
"""A run ends with one of these: no decision follows it but `RunContinued`."""


def ends(payload: Decision | Result) -> bool | None:
    """Tells whether a run has ended with this event (True), or goes on after an end (False); of others None."""
    return isinstance(payload, TERMINAL) if isinstance(payload, (*TERMINAL, RunContinued)) else None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One fact of a run. `time` and `began` are Unix seconds, for people: no decision reads them.

    A result began when the worker took the job in hand; the run, when the call came that started it.
    """

    run_id: str
    payload: Decision | Result
    time: float = 0.0
    worker: str = ""
    began: float = 0.0

    @property
    def type(self) -> str:
        """Returns the payload's name, the end of the event's subject."""
        return type(self.payload).__name__

    @property
    def is_result(self) -> bool:
        """Tells whether it comes from a worker (a decision is the selector's)."""
        return isinstance(self.payload, Result)
